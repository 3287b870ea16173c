from __future__ import annotations

import random

import pytest

from noria.gateway.shelf import OVERHEAD, Kept, Shelf

SIZE = 1000


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


def kept(text: bytes = b"x", ttl: int = 100, now: int = 0) -> Kept:
    return Kept(text.ljust(SIZE - OVERHEAD, b"."), False, now, now + ttl, 1)


def key(n: int) -> bytes:
    return n.to_bytes(4, "big")


def test_what_was_put_comes_back_until_its_time_is_over(clock):
    shelf = Shelf(10 * SIZE, clock)
    shelf.put(key(1), kept())
    clock.ns = 99
    assert shelf.get(key(1)) is not None
    clock.ns = 100
    assert shelf.get(key(1)) is None
    assert (len(shelf), shelf.held, shelf.expired) == (0, 0, 1)


def test_it_never_holds_more_than_it_may(clock):
    shelf, dice = Shelf(10 * SIZE, clock), random.Random(3)
    for _ in range(3000):
        n = dice.randrange(40)
        if shelf.get(key(n)) is None:
            shelf.put(key(n), kept())
        assert shelf.held <= 10 * SIZE
        assert shelf.held == SIZE * len(shelf)
    assert shelf.evicted > 0


def test_what_is_larger_than_the_whole_is_not_taken(clock):
    shelf = Shelf(SIZE, clock)
    shelf.put(key(1), kept())
    assert not shelf.put(key(2), Kept(b"x" * SIZE, False, 0, 100, None))
    assert shelf.get(key(1)) is not None


def test_putting_again_replaces(clock):
    shelf = Shelf(10 * SIZE, clock)
    shelf.put(key(1), kept(b"old"))
    shelf.put(key(1), kept(b"new"))
    assert shelf.get(key(1)).body.startswith(b"new")
    assert shelf.held == SIZE


def test_a_crowd_that_comes_once_does_not_push_out_what_is_asked_for_often(clock):
    shelf = Shelf(20 * SIZE, clock)
    for n in range(5):
        shelf.put(key(n), kept())
        shelf.get(key(n))
    for n in range(100, 1100):
        shelf.put(key(n), kept())
        if n % 20 == 0:
            for often in range(5):
                shelf.get(key(often))
    assert all(shelf.get(key(n)) is not None for n in range(5)), "an LRU of this size would have lost them"


def test_who_comes_back_soon_after_leaving_stays(clock):
    shelf = Shelf(10 * SIZE, clock)
    for n in range(20):
        shelf.put(key(n), kept())
    assert shelf.get(key(0)) is None
    shelf.put(key(0), kept())
    for n in range(100, 140):
        shelf.put(key(n), kept())
    assert shelf.get(key(0)) is not None


def test_a_sweep_lets_go_of_what_has_expired_unasked(clock):
    shelf = Shelf(100 * SIZE, clock)
    for n in range(50):
        shelf.put(key(n), kept())
    clock.ns = 101
    shelf.sweep()
    assert (len(shelf), shelf.held, shelf.expired) == (0, 0, 50)


def test_less_room_takes_effect_at_once(clock):
    shelf = Shelf(100 * SIZE, clock)
    for n in range(50):
        shelf.put(key(n), kept())
    shelf.max_bytes = 10 * SIZE
    shelf.shrink()
    assert shelf.held <= 10 * SIZE
