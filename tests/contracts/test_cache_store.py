"""The guarantees of `CacheStore`, on every engine that serves it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noria.contracts.port import CacheEntry, CacheStore

PORT = CacheStore
SECOND = 1_000_000_000
NOW = 1_795_000_000 * SECOND
ROOM = {"app": 1 << 20, "other": 1 << 20}


def entry(key: bytes = b"k" * 32, app: str = "app", *, subject: str = "", data: bytes = b"sealed", **more) -> CacheEntry:
    return CacheEntry(key, app, subject, more.pop("stored", NOW), more.pop("expires", NOW + 60 * SECOND), data, **more)


@pytest.fixture
async def store(make):
    return make(CacheStore)


async def test_an_entry_is_read_back_as_it_was_put(store):
    assert await store.get("a", b"k" * 32, now_ns=NOW) is None
    data = bytes(range(256)) * 4000
    assert await store.put("a", [entry(subject="ann", data=data)], room=ROOM, now_ns=NOW) == 1
    assert await store.get("a", b"k" * 32, now_ns=NOW) == entry(subject="ann", data=data)


async def test_a_later_entry_replaces_an_earlier_one_of_its_key(store):
    await store.put("a", [entry(data=b"old"), entry(data=b"new")], room=ROOM, now_ns=NOW)
    assert (await store.get("a", b"k" * 32, now_ns=NOW)).data == b"new"
    assert [t.answers for t in await store.totals("a", now_ns=NOW)] == [1]


async def test_nothing_is_given_out_after_its_time(store):
    await store.put("a", [entry(expires=NOW + 5)], room=ROOM, now_ns=NOW)
    assert await store.get("a", b"k" * 32, now_ns=NOW + 4) is not None
    assert await store.get("a", b"k" * 32, now_ns=NOW + 5) is None
    assert await store.totals("a", now_ns=NOW + 5) == []
    assert await store.expire(now_ns=NOW + 5) in (0, 1)  # some engines have dropped it by themselves
    assert await store.get("a", b"k" * 32, now_ns=NOW) is None


async def test_tenants_are_apart(store):
    await store.put("a", [entry(data=b"of a")], room=ROOM, now_ns=NOW)
    assert await store.get("b", b"k" * 32, now_ns=NOW) is None
    assert await store.totals("b", now_ns=NOW) == []
    await store.put("b", [entry(data=b"of b")], room=ROOM, now_ns=NOW)
    assert (await store.get("a", b"k" * 32, now_ns=NOW)).data == b"of a"
    assert (await store.purge("b", now_ns=NOW))[1] == 1
    assert (await store.purges("a", 0)).purges == ()
    assert (await store.get("a", b"k" * 32, now_ns=NOW)).data == b"of a"


async def test_each_app_has_its_own_room_and_the_oldest_leave(store):
    many = [entry(b"%032d" % n, data=b"x" * 10_000) for n in range(40)]
    await store.put("a", [entry(b"o" * 32, "other")], room=ROOM, now_ns=NOW)
    for e in many:
        await store.put("a", [e], room={"app": 200_000}, now_ns=NOW)
    totals = {t.app: t for t in await store.totals("a", now_ns=NOW)}
    assert totals["app"].bytes <= 200_000
    assert 15 <= totals["app"].answers < 20
    assert totals["other"].answers == 1
    there = [await store.get("a", e.key, now_ns=NOW) is not None for e in many]
    assert there == sorted(there), "what stays is what came last"


async def test_what_is_larger_than_the_room_is_left_out_and_pushes_nothing_out(store):
    await store.put("a", [entry()], room={"app": 5000}, now_ns=NOW)
    assert await store.put("a", [entry(b"l" * 32, data=b"x" * 6000)], room={"app": 5000}, now_ns=NOW) == 0
    assert await store.get("a", b"k" * 32, now_ns=NOW) is not None


@pytest.mark.parametrize(
    ("purge", "left"),
    [
        ({}, set()),
        ({"app": "app"}, {"3", "4"}),
        ({"subject": "ann"}, {"1", "3"}),
        ({"app": "app", "subject": "ann"}, {"1", "3", "4"}),
    ],
)
async def test_a_purge_drops_what_it_covers_and_is_told(store, purge, left):
    one = [
        entry(b"1" * 32),
        entry(b"2" * 32, subject="ann"),
        entry(b"3" * 32, "other"),
        entry(b"4" * 32, "other", subject="ann"),
    ]
    await store.put("a", one, room=ROOM, now_ns=NOW)
    before = (await store.purges("a", 0)).seq
    seq, dropped = await store.purge("a", **purge, now_ns=NOW + 1)
    assert seq > before
    assert dropped == 4 - len(left)
    assert {e.key[:1].decode() for e in one if await store.get("a", e.key, now_ns=NOW)} == left
    told = await store.purges("a", before)
    assert (told.seq, told.complete) == (seq, True)
    assert [(p.app, p.subject) for p in told.purges] == [(purge.get("app", ""), purge.get("subject", ""))]
    assert (await store.purges("a", seq)).purges == ()


async def test_what_was_begun_before_a_purge_is_not_kept_after_it(store):
    seq, _ = await store.purge("a", app="app", now_ns=NOW)
    late = [entry(b"1" * 32), entry(b"2" * 32, "other"), entry(b"3" * 32, seen=seq)]
    assert await store.put("a", late, room=ROOM, now_ns=NOW) == 2
    assert await store.get("a", b"1" * 32, now_ns=NOW) is None


async def test_sequence_numbers_rise_whatever_the_clock_does(store):
    seqs = [(await store.purge("a", now_ns=now))[0] for now in (NOW, NOW - SECOND, NOW, NOW + SECOND)]
    assert seqs == sorted(set(seqs))


async def test_a_reader_that_was_away_too_long_is_told_so(store):
    seqs = [(await store.purge("a", app=f"app{n}", now_ns=NOW + n))[0] for n in range(3)]
    later = NOW + 2 * 3600 * SECOND
    await store.expire(now_ns=later)
    told = await store.purges("a", seqs[0])
    assert (told.complete, told.seq) == (False, seqs[2])
    assert (await store.purges("a", told.seq)).complete
    assert not (await store.purges("a", told.seq + SECOND)).complete, "nor does it know a reader that is ahead of it"


async def test_another_instance_sees_what_one_keeps_and_purges(store, make, shared):
    other = make(CacheStore)
    assert await other.get("a", b"k" * 32, now_ns=NOW) is None
    await store.put("a", [entry()], room=ROOM, now_ns=NOW)
    assert await other.get("a", b"k" * 32, now_ns=NOW) is not None
    await other.purge("a", now_ns=NOW)
    assert await store.get("a", b"k" * 32, now_ns=NOW) is None


async def test_many_instances_write_at_once_and_the_room_holds(crowd):
    stores = crowd(CacheStore, 4)

    async def fill(n: int) -> None:
        for i in range(20):
            await stores[n].put("a", [entry(b"%02d%030d" % (n, i), data=b"x" * 500)], room={"app": 30_000}, now_ns=NOW)

    await asyncio.gather(*map(fill, range(4)))
    (total,) = await stores[0].totals("a", now_ns=NOW)
    assert 20_000 < total.bytes <= 30_000


async def test_a_writer_that_is_killed_leaves_whole_entries_and_a_store_that_works(store, spawn):
    """Each entry's data says its key: whatever is read after the kill is what was put under that key."""
    for _ in range(3):
        writer = spawn(
            f"""
            from noria.contracts.port import CacheEntry, CacheStore
            async def main():
                store = make(CacheStore)
                n = 0
                while True:
                    batch = [CacheEntry(b"%032d" % (n + i), "app", "", {NOW}, {NOW + 60 * SECOND}, b"%032d" % (n + i) * 300) for i in range(20)]
                    await store.put("a", batch, room={{"app": 1 << 22}}, now_ns={NOW})
                    n += 20
                    if n == 200:
                        say("begun")
            asyncio.run(main())
            """
        )
        assert writer.line() == "begun", writer.end()
        await asyncio.sleep(0.02)  # anywhere within a write
        writer.kill()
        found = 0
        for n in range(0, 20_000, 3):  # the first have left for want of room
            e = await store.get("a", b"%032d" % n, now_ns=NOW)
            found += e is not None
            assert e is None or e.data == e.key * 300
            if found >= 100:
                break
        assert found
        assert await store.put("a", [entry()], room=ROOM, now_ns=NOW) == 1
        (total,) = await store.totals("a", now_ns=NOW)
        assert total.bytes <= 1 << 20


KEYS = st.sampled_from([b"1" * 32, b"2" * 32])
TENANTS = st.sampled_from(["a", "b", "", "a\0b", "B"])


@given(st.lists(st.tuples(TENANTS, KEYS, st.sampled_from(["put", "purge", "purge ann"])), max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_two_tenants_never_share(make, steps):
    """Whatever is done in whatever order: each tenant reads what it put, and nothing else."""
    store = make(CacheStore)
    for tenant in ("a", "b", "", "a\0b", "B"):
        await store.purge(tenant, now_ns=NOW)
    seen = {t: (await store.purges(t, 0)).seq for t in ("a", "b", "", "a\0b", "B")}
    held: dict[tuple[str, bytes], bytes] = {}
    for n, (tenant, key, what) in enumerate(steps):
        if what == "put":
            data = f"{tenant}/{n}".encode()
            await store.put(tenant, [entry(key, subject="ann", data=data, seen=seen[tenant])], room=ROOM, now_ns=NOW)
            held[tenant, key] = data
        else:
            seen[tenant], _ = await store.purge(tenant, subject="ann" if what != "purge" else "", now_ns=NOW)
            held = {k: v for k, v in held.items() if k[0] != tenant}
    for tenant in seen:
        for key in (b"1" * 32, b"2" * 32):
            found = await store.get(tenant, key, now_ns=NOW)
            assert (found.data if found else None) == held.get((tenant, key))
    await store.close()
