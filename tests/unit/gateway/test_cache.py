from __future__ import annotations

from noria.gateway.cache import EVENTS, Cache
from noria.gateway.flight import Flight
from noria.gateway.shelf import Kept

KEPT = Kept(b"x" * 1000, False, 0, 10, 1)


def test_an_app_that_goes_takes_its_answers_along_and_its_numbers_stay():
    cache = Cache(now=lambda: 0)
    shelf = cache.shelf("a", 2000)
    index = cache.index("a", b"e", 5)
    for n in range(3):
        shelf.put(bytes([n]), KEPT)
    assert (cache.tally()["evicted"], cache.held > 0) == (2, True)
    cache.keep_only(["b"])
    assert (cache.tally()["evicted"], cache.held) == (2, 0)
    assert cache.shelf("a", 2000) is not shelf
    assert cache.index("a", b"e", 5) is not index


def test_a_new_configuration_keeps_what_is_there():
    cache = Cache(now=lambda: 0)
    shelf = cache.shelf("a", 10_000)
    shelf.put(b"1", KEPT)
    cache.keep_only(["a"])
    assert cache.shelf("a", 5000).get(b"1") is KEPT
    index = cache.index("a", b"e", 5)
    assert cache.index("a", b"e", 5) is index
    assert cache.index("a", b"other embedder", 5) is not index


def test_every_event_is_told_and_no_other():
    cache = Cache()
    assert set(cache.tally()) == set(EVENTS)


def test_what_has_expired_leaves_memory_unasked():
    now = [0]
    cache = Cache(now=lambda: now[0])
    cache.shelf("a", 10_000).put(b"1", KEPT)
    now[0] = 11
    cache.sweep()
    assert (cache.held, cache.tally()["expired"]) == (0, 1)


def test_two_workers_have_secrets_of_their_own():
    assert Cache().secret != Cache().secret


def test_a_flight_that_outgrows_its_bound_lets_nobody_join_and_forgets_its_bytes():
    flight = Flight(stream=True, shared=True)
    assert flight.open
    for _ in range(6):
        flight.feed(b"x" * (1 << 20))
    assert not flight.open
    assert flight.body == b""
