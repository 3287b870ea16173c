"""The journey of prompts whose answers another worker has kept: two houses over one shared cache."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from msgspec.structs import replace
from tests.journeys.test_cache import SECOND, House, turns

from noria.contracts.error import StoreError
from noria.contracts.release import Caching
from noria.engines.sqlite import SqliteCache
from noria.gateway.cache import Recall
from noria.gateway.tier import Tier
from noria.observe.vault import Vault

WALL = 1_795_000_000 * SECOND


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> None:
    """A machine that is busy with other tests makes no miss."""
    monkeypatch.setattr("noria.gateway.tier.WITHIN", 10.0)


@pytest.fixture
async def make(tmp_path):
    """`make(caching)`: a worker's house whose tier is the file that all share; nothing is written before `flush`."""
    stores = []

    def one(caching: Caching | None = None) -> House:
        house = House(caching)
        stores.append(SqliteCache(f"sqlite:///{tmp_path}/cache.db"))
        house.store = stores[-1]

        async def vault(tenant: str, subject: str) -> Vault:
            return Vault(f"{tenant}/{subject}".encode().ljust(32, b"."))

        cache = house.cache
        cache.tier = Tier(
            house.store, vault, cache.forget, cache.counts, now=lambda: house.clock, wall=lambda: WALL + house.clock
        )
        return house

    yield one
    for store in stores:
        await store.close()


async def flush(house: House) -> None:
    while house.cache.tier._waiting:
        await house.cache.tier._flush()


@pytest.mark.parametrize("again", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_another_worker_gives_the_answer_for_nothing(make, stream, again):
    one, other = make(), make()
    first = await one.said(stream=stream)
    await flush(one)
    other.clock += 3 * SECOND
    second = await other.said(stream=again)
    assert (second.text, second.headers["x-noria-cache"], second.headers["age"]) == (first.text, "hit", "3")
    assert (len(other.model.calls), other.reserved, other.row.cache, other.row.cost_nanousd) == (0, 0, "hit", 0)
    await other.store.close()
    third = await other.said(stream=again)
    assert third.headers["x-noria-cache"] == "hit", "by now it is in this worker's memory too"
    assert other.cache.counts["shared"] == 1


async def test_another_key_does_not_get_it(make):
    one, other = make(), make()
    await one.said()
    await flush(one)
    assert (await other.said(who="bob")).headers["x-noria-cache"] == "miss"


async def test_those_who_ask_at_the_same_time_share_one_lookup_and_one_call(make):
    one, other = make(), make()
    await one.said()
    await flush(one)
    asked, get = 0, other.store.get

    async def counted(*a, **k):
        nonlocal asked
        asked += 1
        return await get(*a, **k)

    other.store.get = counted
    outs = await asyncio.gather(*(other.said() for _ in range(5)))
    assert {o.headers["x-noria-cache"] for o in outs} == {"hit"}
    assert (asked, other.model.calls) == (1, [])


@pytest.mark.parametrize(
    ("control", "said", "lookups"),
    [
        ("no-store", "bypass", 0),
        ("no-cache", "miss", 0),
        ("max-age=2", "miss", 1),
        ("max-age=3", "hit", 1),
        ("min-fresh=3600", "miss", 1),
    ],
)
async def test_cache_control_binds_what_is_shared(make, control, said, lookups):
    one, other = make(), make()
    await one.said()
    await flush(one)
    other.clock += 3 * SECOND
    out = await other.said(control=control)
    assert (out.headers["x-noria-cache"], other.cache.counts["shared"]) == (said, lookups)


async def test_only_if_cached_looks_there_before_it_refuses(make):
    one, other = make(), make()
    assert (await other.said(control="only-if-cached")).error["code"] == "not_cached"
    await one.said()
    await flush(one)
    assert (await other.said(control="only-if-cached")).headers["x-noria-cache"] == "hit"


async def test_no_store_and_an_app_without_room_leave_nothing(make):
    one = make()
    await one.said(control="no-store")
    assert one.cache.tier._waiting == []
    alone = make(Caching(shared_bytes=0))
    await alone.said()
    assert (alone.cache.tier._waiting, alone.cache.counts["stored"]) == ([], 1)


async def test_a_request_that_cannot_be_cached_never_goes_there(make):
    one = make()

    async def never(*_, **__):
        raise AssertionError("asked")

    one.store.get = never
    assert (await one.said(temperature=0.7)).headers["x-noria-cache"] == "bypass"


async def test_a_tier_that_is_away_is_a_miss(make):
    one = make()

    async def away(*_, **__):
        raise StoreError("gone")

    one.store.get = away
    assert (await one.said()).headers["x-noria-cache"] == "miss"
    assert (await one.said()).headers["x-noria-cache"] == "hit"


async def test_an_answer_under_way_when_a_purge_comes_is_given_and_not_kept(make):
    one = make()
    one.model.gate = asyncio.Event()
    task, out = one.begin()
    async with asyncio.timeout(5):
        while not one.model.calls:
            await asyncio.sleep(0)
    await one.store.purge("local", now_ns=WALL)
    await one.cache.tier._look("local")
    one.model.gate.set()
    await task
    assert (out.status, one.cache.counts["stored"], one.cache.tier._waiting) == (200, 0, [])
    await turns()
    assert (await one.said()).headers["x-noria-cache"] == "miss"


@pytest.mark.parametrize("ttl", [5.0, 0.0], ids=["shorter", "off, single flight alone"])
async def test_a_time_to_live_that_was_lowered_binds_what_is_there(make, ttl):
    one = make()
    await one.said()
    one.clock += 10 * SECOND
    caching = Caching(ttl=ttl)
    recall = Recall(replace(one.release, caching=caching), caching, one.cache)
    one.wired = dataclasses.replace(one.wired, cache=recall)
    assert (await one.said()).headers["x-noria-cache"] == "miss"


async def test_when_the_keeper_names_the_secret_what_was_kept_under_another_is_let_go(make):
    one = make()
    await one.said()
    one.cache.share(b"n" * 32)
    assert one.cache.held == 0
    assert (await one.said()).headers["x-noria-cache"] == "miss"
    assert (await one.said()).headers["x-noria-cache"] == "hit"
    one.cache.share(b"n" * 32)
    assert (await one.said()).headers["x-noria-cache"] == "hit", "the same again changes nothing"
