"""One worker's way to the shared answers, over a real store."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from noria.contracts.error import StoreError
from noria.contracts.exchange import Exchange
from noria.contracts.release import Caching, Endpoint, Key, Release
from noria.engines.sqlite import SqliteCache
from noria.gateway import tier as module
from noria.gateway.cache import EVENTS, Cache, Recall
from noria.gateway.sameness import Sameness
from noria.gateway.shelf import Kept
from noria.gateway.tier import Tier, Written
from noria.observe.vault import Vault

SECOND = 1_000_000_000
WALL = 1_795_000_000 * SECOND
KEY = b"k" * 32


class Worker:
    """A worker's cache with its tier; clocks by hand."""

    def __init__(self, store, keys: dict[tuple[str, str], bytes]) -> None:
        self.mono, self.wall, self.keys, self.asked = 5 * SECOND, WALL, keys, 0
        self.store = store
        self.cache = Cache(now=lambda: self.mono, secret=b"s" * 32)
        self.tier = self.cache.tier = Tier(
            store, self.vault, self.cache.forget, self.cache.counts, now=lambda: self.mono, wall=lambda: self.wall
        )

    async def vault(self, tenant: str, subject: str) -> Vault:
        self.asked += 1
        await asyncio.sleep(0)
        return Vault(self.keys.setdefault((tenant, subject), os.urandom(32)))

    async def put(self, body: bytes = b"answer", *, tenant: str = "t", subject: str = "", key: bytes = KEY, **more) -> None:
        kept = Kept(body, False, self.mono, self.mono + 60 * SECOND, 7, "up-1", tenant=tenant, subject=subject)
        self.tier.keep(Written(key, "app", kept, more.get("room", 1 << 20), more.get("since", self.tier.seen(tenant))))
        while self.tier._waiting:
            await self.tier._flush()

    async def look(self) -> None:
        for tenant in list(self.tier._seen):
            await self.tier._look(tenant)

    def counts(self, *events: str) -> list[int]:
        return [self.cache.counts[e] for e in events]


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> None:
    """A machine that is busy with other tests makes no miss."""
    monkeypatch.setattr(module, "WITHIN", 10.0)


@pytest.fixture
async def make(tmp_path):
    stores, keys = [], {}

    def one() -> Worker:
        stores.append(SqliteCache(f"sqlite:///{tmp_path}/cache.db"))
        return Worker(stores[-1], keys)

    yield one
    for store in stores:
        await store.close()


async def test_what_one_worker_keeps_another_finds_with_its_age(make):
    one, other = make(), make()
    await one.put(subject="ann")
    other.mono, other.wall = 900 * SECOND, WALL + 20 * SECOND
    found = await other.tier.find("t", KEY)
    assert found == Kept(b"answer", False, 880 * SECOND, 940 * SECOND, 7, "up-1", tenant="t", subject="ann")
    assert other.counts("shared", "shared_late", "shared_failed") == [1, 0, 0]
    assert await other.tier.find("t", b"n" * 32) is None
    assert await other.tier.find("other tenant", KEY) is None
    other.wall = WALL + 60 * SECOND
    assert await other.tier.find("t", KEY) is None


async def test_an_answer_from_the_future_is_a_miss(make):
    one, other = make(), make()
    await one.put()
    other.wall = WALL - 1
    assert await other.tier.find("t", KEY) is None


@pytest.mark.parametrize("column", ["key", "app", "subject", "stored_ns", "expires_ns", "data", "tenant"])
async def test_an_entry_that_was_moved_or_touched_is_a_miss(make, column):
    """Whoever can write to the file can take answers away, not give one for another."""
    one, other = make(), make()
    await one.put(subject="ann")
    entry = await one.store.get("t", KEY, now_ns=WALL)
    changed = {
        "key": b"x" * 32, "app": "b", "subject": "bob", "stored_ns": WALL - 5, "expires_ns": WALL + 10**15,
        "data": entry.data[:-1] + bytes([entry.data[-1] ^ 1]),
    }  # fmt: skip
    tenant = "u" if column == "tenant" else "t"
    entry = replace(entry, **{k: v for k, v in changed.items() if k == column})
    await one.store.put(tenant, [entry], room={}, now_ns=WALL)
    assert await other.tier.find(tenant, entry.key) is None
    assert other.counts("shared", "shared_failed") == [0, 1]


async def test_what_is_sealed_under_a_key_that_is_gone_is_a_miss(make):
    one, other = make(), make()
    await one.put(subject="ann")
    one.keys.clear()
    assert await other.tier.find("t", KEY) is None
    assert other.counts("shared_failed") == [1]


async def test_a_large_answer_comes_back_whole(make):
    one, other = make(), make()
    body = os.urandom(300_000)
    await one.put(body)
    assert (await other.tier.find("t", KEY)).body == body


async def test_a_key_is_asked_for_once(make):
    one = make()
    await asyncio.gather(*(one.put(key=b"%032d" % n, subject="ann") for n in range(5)))
    await asyncio.gather(*(one.tier.find("t", b"%032d" % n) for n in range(5)))
    assert one.asked == 1


async def test_a_lookup_that_takes_too_long_is_given_up_and_after_some_nobody_waits(make, monkeypatch):
    monkeypatch.setattr(module, "WITHIN", 0.005)
    one, gate = make(), asyncio.Event()
    await one.put()

    async def stuck(*_: object, **__: object) -> None:
        await gate.wait()

    get, one.store.get = one.store.get, stuck
    for _ in range(module.LATE_IN_A_ROW):
        assert await one.tier.find("t", KEY) is None
    one.store.get = get
    assert await one.tier.find("t", KEY) is None, "nobody waits for a second"
    assert one.counts("shared_late") == [module.LATE_IN_A_ROW + 1]
    one.mono += module.REST_NS
    monkeypatch.setattr(module, "WITHIN", 5.0)
    assert await one.tier.find("t", KEY) is not None


async def test_a_store_or_a_keeper_that_is_away_costs_misses_and_is_counted(make):
    one = make()

    async def away(*_: object, **__: object) -> None:
        raise StoreError("away")

    vault, one.tier._vault_of = one.tier._vault_of, away
    await one.put()
    assert one.counts("shared_unwritten") == [1]
    one.tier._vault_of = vault
    await one.put()
    one.store.get = away
    assert await one.tier.find("t", KEY) is None
    assert one.counts("shared_failed") == [1]


async def test_answers_that_wait_to_be_written_are_bounded(make, monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 1000)
    one = make()
    for n in range(5):
        kept = Kept(b"x" * 400, False, 0, SECOND, None, tenant="t")
        one.tier.keep(Written(b"%032d" % n, "app", kept, 1 << 20, 0))
    assert one.counts("shared_unwritten") == [3]


async def test_run_writes_follows_and_writes_what_waits_at_its_end(make):
    one, other = make(), make()
    running = asyncio.create_task(one.tier.run())
    kept = Kept(b"answer", False, one.mono, one.mono + SECOND, None, tenant="t")
    one.tier.keep(Written(KEY, "app", kept, 1 << 20, one.tier.seen("t")))
    async with asyncio.timeout(5):
        while await other.tier.find("t", KEY) is None:
            await asyncio.sleep(0.01)
    one.tier.keep(Written(b"2" * 32, "app", kept, 1 << 20, one.tier.seen("t")))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await other.tier.find("t", b"2" * 32) is not None


# -- purges -----------------------------------------------------------------------------------------


async def test_a_purge_reaches_memory_and_what_is_under_way(make):
    one = make()
    shelves = {app: one.cache.shelf(app, 1 << 20) for app in ("app", "b")}
    kept = Kept(b"x", False, 0, 10**18, None, tenant="t", subject="ann")
    for shelf in shelves.values():
        shelf.put(b"ann's", kept)
        shelf.put(b"bob's", replace(kept, subject="bob"))
        shelf.put(b"other tenant's", replace(kept, tenant="u"))
    since = one.tier.seen("t")
    one.tier.seen("u")
    await one.store.purge("t", app="app", subject="ann", now_ns=WALL)
    await one.look()
    assert [shelves["app"].peek(k) is None for k in (b"ann's", b"bob's", b"other tenant's")] == [True, False, False]
    assert len(shelves["b"]) == 3
    assert one.tier.covered("t", "app", "ann", since)
    assert not one.tier.covered("t", "app", "bob", since)
    assert not one.tier.covered("u", "app", "ann", since)
    assert not one.tier.covered("t", "app", "ann", one.tier.seen("t")), "what began after it may be kept"
    await one.store.purge("t", now_ns=WALL + 1)
    await one.look()
    assert [len(s) for s in shelves.values()] == [1, 1]
    assert one.counts("purged") == [4]


async def test_an_answer_that_began_before_a_purge_is_not_shared_after_it(make):
    one = make()
    await one.look()
    since = one.tier.seen("t")
    await one.store.purge("t", now_ns=WALL)
    await one.put(since=since)
    assert await one.tier.find("t", KEY) is None


async def test_an_answer_that_was_read_before_a_purge_is_not_given_after_it(make):
    one = make()
    await one.put()
    get = one.store.get

    async def slow(*a: object, **k: object):
        found = await get(*a, **k)
        await one.store.purge("t", now_ns=WALL)
        await one.look()
        return found

    one.store.get = slow
    assert await one.tier.find("t", KEY) is None


async def test_the_key_of_a_subject_that_is_purged_is_forgotten(make):
    one = make()
    await one.put(subject="ann")
    await one.put(subject="bob", key=b"2" * 32)
    await one.store.purge("t", subject="ann", now_ns=WALL)
    one.keys.pop(("t", "ann"))  # erased
    await one.look()
    assert set(one.tier._vaults) == {("t", "bob")}


async def test_a_worker_that_missed_purges_forgets_everything(make):
    one = make()
    shelf = one.cache.shelf("app", 1 << 20)
    one.tier.seen("t")
    shelf.put(KEY, Kept(b"x", False, 0, 10**18, None, tenant="t"))
    await one.store.purge("t", app="something else", now_ns=WALL)
    await one.store.expire(now_ns=WALL + 2 * 3600 * SECOND)
    await one.look()
    assert len(shelf) == 0


# -- tenants ----------------------------------------------------------------------------------------

TENANTS = st.sampled_from(["a", "b", "ab", "", "A", "a\0"])


@given(
    st.lists(st.tuples(TENANTS, st.sampled_from(["ann", "bob", ""]), st.sampled_from(["hi", "ho"])), min_size=1, max_size=10)
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_two_tenants_never_share(tmp_path, asked):
    """The widest scope, equal key ids, equal words, workers that share: an answer stays with the tenant it was made for."""
    (path := tmp_path / "cache.db").unlink(missing_ok=True)
    store, keys = SqliteCache(f"sqlite:///{path}"), {}
    workers = [Worker(store, keys), Worker(store, keys)]
    release = Release("r1:x", "main", "app", (Endpoint("m", "p", "m"),))
    caching = Caching(scope="app")
    same = Sameness(release, caching, b"s" * 32)
    made: dict[tuple[str, str], bytes] = {}
    for n, (tenant, user, text) in enumerate(asked):
        body = {"messages": f'[{{"role":"user","content":"{text}"}}]'.encode()}
        x = Exchange("x", "t", "s", tenant, "chat", "app", False, body, 0, key=Key("k", "h", tenant=tenant), subject=user)
        key = same.key(x, same.prefix(x))
        found = await workers[n % 2].tier.find(tenant, key)
        assert (found.body if found else None) == made.get((tenant, text))
        if found is None:
            made[tenant, text] = f"{tenant}/{text}/{n}".encode()
            await workers[n % 2].put(made[tenant, text], tenant=tenant, subject=user, key=key)
    await store.close()


def test_its_events_are_told():
    assert {"shared", "shared_late", "shared_failed", "shared_unwritten"} <= set(EVENTS)
    assert Recall.behaviour == 1
