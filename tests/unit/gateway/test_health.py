"""How endpoints stand by what they answer: who is passed over, for how long, and who never is."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.gateway.health import COOL_NS, DEAD_NS, EJECT_MOST_NS, EJECT_NS, IN_A_ROW, Board, Health, standing
from noria.gateway.retry import SECOND_NS

S = SECOND_NS


@dataclass
class Member:
    health: Health


def failing(now: int = 100 * S, times: int = IN_A_ROW, health: Health | None = None) -> Health:
    health = health or Health("a")
    for _ in range(times):
        trial = health.begin(now)
        health.failed("failed", now, now)
        health.end(trial=trial)
    return health


def test_failures_in_a_row_eject_and_one_fewer_does_not() -> None:
    assert failing(times=IN_A_ROW - 1).state(100 * S) == "ok"
    assert failing().state(100 * S) == "ejected"


def test_a_success_in_between_starts_the_row_anew() -> None:
    health = failing(times=IN_A_ROW - 1)
    health.succeeded(100 * S, 100 * S)
    assert failing(health=health, times=IN_A_ROW - 1).well


def test_a_share_of_failures_ejects_though_they_are_never_in_a_row() -> None:
    health, now = Health("a"), 100 * S
    for n in range(60):
        now += S // 10
        health.failed("failed", now, now) if n % 3 == 0 else health.succeeded(now, now)
    assert health.state(now) == "ejected"
    assert not health.succeeded(now, now), "what it still answers does not shorten its time"


def test_a_few_failures_among_many_answers_do_not_eject() -> None:
    health, now = Health("a"), 100 * S
    for n in range(1000):
        now += S // 100
        health.failed("failed", now, now) if n % 10 == 0 else health.succeeded(now, now)
    assert health.well


def test_old_failures_are_forgotten() -> None:
    health, now = Health("a"), 100 * S
    for _ in range(30):
        now += 20 * S
        health.failed("failed", now, now)
        health.succeeded(now, now)
    assert health.well, "one failure in 20 s is no outage, however often the other request fails"


def test_after_its_time_one_request_at_a_time_tries_it() -> None:
    health = failing()
    assert not health.open(100 * S + EJECT_NS - 1)
    now = 100 * S + EJECT_NS
    assert health.state(now) == "trial"
    assert health.open(now)
    assert health.begin(now)
    assert not health.open(now), "half-open: one real request, no more"
    assert not health.begin(now), "one that was sent all the same is not the trial"
    health.end()
    assert not health.open(now), "and its end does not end the trial"
    assert health.succeeded(now, now + 1)
    health.end(trial=True)
    assert health.well


def test_a_trial_that_is_cancelled_leaves_room_for_the_next() -> None:
    health, now = failing(), 100 * S + EJECT_NS
    health.end(trial=health.begin(now))
    assert health.open(now)


def test_each_ejection_is_twice_as_long_as_the_one_before_up_to_a_bound() -> None:
    health, now, times = failing(), 100 * S, []
    for _ in range(12):
        times.append(health.until_ns - now)
        now = health.until_ns
        trial = health.begin(now)
        health.failed("failed", now, now)
        health.end(trial=trial)
    assert times[:3] == [EJECT_NS, 2 * EJECT_NS, 4 * EJECT_NS]
    assert max(times) == EJECT_MOST_NS


def test_after_a_long_time_without_trouble_the_doubling_starts_anew() -> None:
    health = failing()
    now = health.until_ns
    assert health.succeeded(now, now)
    later = now + 3600 * S
    failing(later, health=health)
    assert health.until_ns - later == EJECT_NS


def test_requests_that_were_under_way_do_not_lengthen_an_ejection() -> None:
    health = failing()
    until = health.until_ns
    for _ in range(50):
        health.failed("failed", 99 * S, 101 * S)
    assert health.until_ns == until


def test_an_answer_to_a_request_from_before_does_not_end_an_ejection() -> None:
    health = failing()
    assert not health.succeeded(99 * S, 110 * S)
    assert health.state(110 * S) == "trial"


def test_a_rate_limit_cools_for_as_long_as_it_says() -> None:
    health = Health("a")
    assert health.failed("busy", 100 * S, 100 * S, 7.0)
    assert health.state(100 * S) == "cooling"
    assert (health.until_ns - 100 * S) == 7 * S
    silent = Health("b")
    silent.failed("busy", 100 * S, 100 * S)
    assert silent.until_ns - 100 * S == COOL_NS


@pytest.mark.parametrize("second", [("busy", 1.0), ("busy", None), ("failed", None)])
def test_a_deadline_is_never_shortened(second) -> None:
    health = Health("a")
    health.failed("busy", 100 * S, 100 * S, 60.0)
    for _ in range(IN_A_ROW):
        health.failed(second[0], 101 * S, 101 * S, second[1])
    health.succeeded(102 * S, 102 * S)
    assert health.until_ns >= 160 * S
    assert not health.open(159 * S)


def test_a_refused_key_is_out_for_long_with_an_alarm() -> None:
    health = Health("a")
    health.failed("auth", 100 * S, 100 * S)
    told = health.standing(100 * S)
    assert (told.state, told.seconds_left) == ("dead", DEAD_NS / S)
    assert "'a'" in told.alarm


def test_what_was_said_of_the_last_failure_is_kept_short_with_its_age() -> None:
    health = Health("a")
    assert (health.standing(S).last_error, health.standing(S).last_error_ago) == ("", None)
    health.complained("first", 100 * S)
    health.complained("x" * 1000, 101 * S)
    told = health.standing(103 * S)
    assert (len(told.last_error), told.last_error_ago) == (300, 2.0)


@pytest.mark.parametrize("kind", ["caller", "window", "policy"])
def test_the_callers_mistakes_are_not_held_against_an_endpoint(kind) -> None:
    health = Health("a")
    for _ in range(50):
        assert not health.failed(kind, S, S)
    assert health.well


def test_load_is_latency_times_requests_under_way_and_fades() -> None:
    health = Health("a")
    health.waited(2 * S, 100 * S)
    assert health.load(100 * S) == 2 * S
    health.begin(100 * S)
    assert health.load(100 * S) == 4 * S
    assert health.load(200 * S) < S, "one that was slow once is tried again"


def test_a_slow_answer_counts_at_once_a_fast_one_gradually() -> None:
    health = Health("a")
    health.waited(S // 10, 100 * S)
    health.waited(2 * S, 100 * S)
    assert health.load(100 * S) == 2 * S
    health.waited(S // 10, 100 * S)
    assert health.load(100 * S) > S


def test_the_95th_percentile_is_known_after_enough_waits() -> None:
    health = Health("a")
    for n in range(1, 20):
        health.waited(n * S, S)
    assert health.p95() is None
    health.waited(20 * S, S)
    assert health.p95() == 19.0
    for _ in range(1000):
        health.waited(S, S)
    assert health.p95() == 1.0


# -- pools ---------------------------------------------------------------------------------------------

outs = st.lists(
    st.lists(st.tuples(st.sampled_from(["ok", "failed", "busy", "auth"]), st.integers(0, 20)), min_size=1, max_size=7),
    min_size=1,
    max_size=5,
)


@given(outs, st.integers(0, 40))
@settings(max_examples=400)
def test_at_most_half_of_a_pool_is_ejected_and_never_the_last_of_a_route(route, later) -> None:
    now = 100 * S
    pools = []
    for pool in route:
        members = []
        for what, ago in pool:
            health = Health("x")
            if what == "failed":
                failing(now - ago * S, health=health)
            elif what != "ok":
                health.failed(what, now - ago * S, now - ago * S, 20.0)
            members.append(Member(health))
        pools.append(members)
    at = now + later * S
    able, ejected = standing(pools, at)
    asked = [m for pool in able for m in pool]
    assert asked, "never the last"
    assert not {id(m) for m in asked} & {id(m) for m in ejected}
    for pool in pools:
        gone = [m for m in pool if m in ejected]
        assert len(gone) <= (len(pool) // 2 if len(pool) > 1 else 1)
        assert all(m.health.state(at) == "ejected" for m in gone)
        for m in pool:
            if m.health.open(at):
                assert m in asked, "nobody who is well is passed over"


def test_the_one_whose_time_ends_first_returns_to_its_pool() -> None:
    early, late, well = failing(100 * S), failing(102 * S), Health("c")
    pool = [Member(late), Member(early), Member(well)]
    able, ejected = standing([pool], 103 * S)
    assert able == [[pool[1], pool[2]]]
    assert ejected == [pool[0]]


def test_a_pool_of_one_is_passed_over_when_another_stands_behind_it() -> None:
    first, second = Member(failing()), Member(Health("b"))
    able, ejected = standing([[first], [second]], 101 * S)
    assert (able, ejected) == ([[second]], [first])
    assert standing([[first]], 101 * S) == ([[first]], []), "but not when it is the last"


def test_where_all_are_out_the_first_to_return_is_asked_and_a_dead_key_last() -> None:
    dead, cooling = Health("a"), Health("b")
    dead.failed("auth", S, S)
    cooling.failed("busy", S, S, 500.0)
    able, ejected = standing([[Member(dead)], [Member(cooling)]], 2 * S)
    assert [[m.health.name for m in pool] for pool in able] == [["b"]]
    assert ejected == []


def test_cooling_endpoints_are_left_alone_though_they_be_more_than_half() -> None:
    pool = [Member(Health(str(n))) for n in range(4)]
    for member in pool[:3]:
        member.health.failed("busy", S, S, 30.0)
    assert standing([pool], 2 * S) == ([[pool[3]]], [])


def test_the_board_counts_who_is_out_and_forgets_who_is_gone() -> None:
    board = Board()
    a, b = board.of("a", "a"), board.of("b", "b")
    assert board.of("a", "a") is a
    a.failed("auth", S, S)
    board.note(a, out=True)
    assert (board.out, board.counts["dead"]) == (1, 1)
    b.succeeded(S, S)
    assert board.attempts() == {("a", "ok"): 0, ("a", "auth"): 1, ("b", "ok"): 1}
    assert [s.state for s in board.standings(S)] == ["dead", "ok"]
    board.keep_only(["b"])
    assert board.out == 0
    assert [s.endpoint for s in board.standings(S)] == ["b"]
