"""What probes say, in the passive health of a worker."""

from __future__ import annotations

import pytest

from noria.gateway.health import Board, standing
from noria.gateway.probed import Probed, apply

S = 1_000_000_000
NOW = 100 * S


class Member:
    def __init__(self, board: Board, name: str) -> None:
        self.name = name
        self.health = board.of(name, name)


def out(name: str, left: float = 10.0, state="ejected") -> Probed:
    return Probed(name, state, left, "GET /up was answered with 503.")


def test_an_endpoint_that_is_out_is_passed_over_and_tried_once_after_its_time():
    board = Board()
    a, b = Member(board, "a"), Member(board, "b")
    apply(board, [out("a")], NOW)
    assert (a.health.state(NOW), board.out, board.counts["ejected"]) == ("ejected", 1, 1)
    assert standing([[a, b]], NOW)[0] == [[b]]
    assert a.health.standing(NOW).last_error == "GET /up was answered with 503."
    later = NOW + 10 * S
    assert a.health.state(later) == "trial"
    assert a.health.begin(later)
    assert a.health.succeeded(later, later + 1)
    assert a.health.well


def test_saying_it_again_each_second_only_lengthens_it_and_counts_once():
    board = Board()
    a = Member(board, "a").health
    apply(board, [out("a", 10.0)], NOW)
    apply(board, [out("a", 9.0)], NOW + S)
    assert (a.until_ns, board.counts["ejected"]) == (NOW + 10 * S, 1)
    apply(board, [out("a", 10.0)], NOW + 5 * S)
    assert a.until_ns == NOW + 15 * S


def test_a_longer_deadline_of_the_traffics_own_is_not_shortened():
    board = Board()
    a = Member(board, "a").health
    a.failed("busy", NOW, NOW, 60.0)
    board.note(a, out=True)
    apply(board, [out("a", 5.0)], NOW)
    assert (a.state(NOW), a.until_ns) == ("cooling", NOW + 60 * S)


def test_a_probe_that_goes_well_shortens_nothing():
    board = Board()
    a = Member(board, "a").health
    apply(board, [out("a", 10.0)], NOW)
    apply(board, [], NOW + S)
    assert a.state(NOW + 9 * S) == "ejected"


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_never_more_than_half_of_a_pool_and_never_the_last(n):
    board = Board()
    members = [Member(board, f"e{i}") for i in range(n)]
    apply(board, [out(m.name) for m in members], NOW)
    able, last_resort = standing([members], NOW)
    asked = [m for pool in able for m in pool]
    assert len(asked) == max(1, n - n // 2)
    assert len(asked) + len(last_resort) == n


def test_a_refused_key_is_an_alarm():
    board = Board()
    a = Member(board, "a").health
    apply(board, [out("a", state="dead")], NOW)
    assert (a.state(NOW), "refuses its key" in a.standing(NOW).alarm) == ("dead", True)


def test_a_name_that_nobody_has_is_passed_over():
    board = Board()
    apply(board, [out("gone")], NOW)
    assert board.out == 0
