"""The guarantees of `DatasetStore`, on every engine that serves it."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noria.contracts.dataset import Member, Rejection, StoredRow, Version
from noria.contracts.error import NotFound, StoreError
from noria.contracts.port import DatasetStore
from noria.kit.ids import digest

PORT = DatasetStore


def row(n: int, subject: str = "", data: bytes = b"sealed") -> StoredRow:
    return StoredRow(digest(b"%d" % n), subject, data + b" %d" % n)


def members(rows, split: str = "train") -> list[Member]:
    return sorted((Member(r.id, split) for r in rows), key=lambda m: m.row)


def version(id: str = "d1:aa", name: str = "help", rows: int = 3, **more) -> Version:
    return Version(id, name, more.pop("made_ns", 1), {"train": rows}, **more)


@pytest.fixture
async def store(make):
    return make(DatasetStore)


async def put(store, rows, id="d1:aa", name="help", *, tenant="a", now_ns=1, rejections=()):
    await store.add(tenant, rows)
    return await store.put(tenant, version(id, name, len(rows)), members(rows), rejections, now_ns=now_ns)


async def test_rows_are_read_back_as_they_came_in_the_order_asked_for(store):
    rows = [row(n, "ann" if n % 2 else "", bytes(range(256))) for n in range(5)]
    assert await store.add("a", rows) == 5
    asked = [rows[3].id, rows[0].id, digest(b"absent"), rows[3].id]
    assert await store.rows("a", asked) == [rows[3], rows[0]]
    assert await store.rows("a", []) == []


async def test_a_row_that_is_there_stays_as_it_is(store):
    first = row(1)
    assert await store.add("a", [first, row(2)]) == 2
    assert await store.add("a", [StoredRow(first.id, "", b"other"), row(3)]) == 1
    assert await store.rows("a", [first.id]) == [first]


async def test_rows_are_added_all_or_none(store):
    with pytest.raises(StoreError, match="row id"):
        await store.add("a", [row(1), StoredRow("no id", "", b"x")])
    assert await store.rows("a", [row(1).id]) == []


async def test_a_version_is_read_back_with_its_members_and_rejections(store):
    rows = [row(n) for n in range(3)]
    why = [Rejection(row(9).id, "dedup", "near", 0.93, 0.8, rows[0].id), Rejection("", "import", "not_json", source="f:3")]
    made = version(recipe={"step": "import", "files": ["f"]}, parents=("d1:00",), rejected=2, note="客服")
    await store.add("a", rows)
    assert await store.version("a", "help", "d1:aa") is None
    assert await store.put("a", made, members(rows), why, now_ns=1)
    assert await store.version("a", "help", "d1:aa") == made
    assert await store.members("a", "d1:aa") == members(rows)
    assert await store.rejections("a", "help", "d1:aa") == why
    assert await store.rejections("a", "help", "d1:aa", offset=1, limit=1) == why[1:]
    assert await store.members("a", "d1:bb") == []


async def test_putting_a_version_again_changes_nothing_but_which_is_the_latest(store):
    rows = [row(n) for n in range(3)]
    assert await put(store, rows, "d1:aa", now_ns=1)
    assert await put(store, rows[:2], "d1:bb", now_ns=2)
    assert [v.id for v in await store.versions("a", name="help")] == ["d1:bb", "d1:aa"]
    again = version("d1:aa", rows=1, note="other")
    assert not await store.put("a", again, members(rows[:1]), [Rejection("", "x", "y")], now_ns=3)
    assert [v.id for v in await store.versions("a", name="help")] == ["d1:aa", "d1:bb"]
    assert (await store.version("a", "help", "d1:aa")).note == ""
    assert len(await store.members("a", "d1:aa")) == 3
    assert await store.rejections("a", "help", "d1:aa") == []


async def test_two_datasets_may_have_the_same_version(store):
    rows = [row(n) for n in range(3)]
    assert await put(store, rows, "d1:aa", "one", rejections=[Rejection("", "a", "b")])
    assert await put(store, rows, "d1:aa", "two", now_ns=2)
    assert [v.name for v in await store.versions("a", prefix="d1:a")] == ["two", "one"]
    assert len(await store.rejections("a", "one", "d1:aa")) == 1
    assert await store.rejections("a", "two", "d1:aa") == []
    assert await store.members("a", "d1:aa") == members(rows)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda m: [m[1], m[0]], StoreError),
        (lambda m: [m[0], m[0]], StoreError),
        (lambda m: sorted([*m, Member(digest(b"absent"), "train")], key=lambda x: x.row), NotFound),
        (lambda m: [Member("zz", "train")], StoreError),
    ],
    ids=["unsorted", "twice", "absent", "no id"],
)
async def test_a_version_with_wrong_members_leaves_nothing(store, wrong, error):
    rows = [row(n) for n in range(3)]
    await store.add("a", rows)
    with pytest.raises(error):
        await store.put("a", version(), wrong(members(rows)), [Rejection("", "a", "b")], now_ns=1)
    assert await store.versions("a") == []
    assert await store.members("a", "d1:aa") == []
    assert await store.rejections("a", "help", "d1:aa") == []
    assert await store.put("a", version(), members(rows), [], now_ns=1), "a failed put leaves the store usable"


async def test_tenants_are_apart(store):
    rows = [row(n, "ann") for n in range(3)]
    await put(store, rows, rejections=[Rejection("", "a", "b")])
    assert await store.rows("b", [r.id for r in rows]) == []
    assert await store.versions("b") == []
    assert await store.version("b", "help", "d1:aa") is None
    assert await store.members("b", "d1:aa") == []
    assert await store.rejections("b", "help", "d1:aa") == []
    assert await store.holding("b", "ann") == []
    assert await store.erase("b", "ann") == 0
    with pytest.raises(NotFound):  # not even by naming them
        await store.put("b", version(), members(rows), [], now_ns=1)
    assert await store.add("b", rows[:1]) == 1, "whether another tenant has a row does not show"
    assert await store.rows("a", [rows[0].id]) == [rows[0]]


async def test_members_come_in_pages_and_by_split(store):
    rows = [row(n) for n in range(100)]
    mixed = [Member(m.row, "test" if n % 4 == 0 else "train") for n, m in enumerate(members(rows))]
    await store.add("a", rows)
    await store.put("a", version(rows=100), mixed, [], now_ns=1)
    got: list[Member] = []
    while page := await store.members("a", "d1:aa", after=got[-1].row if got else "", limit=7):
        assert len(page) <= 7
        got += page
    assert got == mixed
    assert await store.members("a", "d1:aa", split="test") == [m for m in mixed if m.split == "test"]
    assert await store.members("a", "d1:aa", split="test", after=mixed[4].row, limit=2) == [mixed[8], mixed[12]]
    assert await store.members("a", "d1:aa", split="none") == []


async def test_versions_are_listed_latest_first_in_pages(store):
    rows = [row(1)]
    for n in range(5):
        await put(store, rows, f"d1:{n}", "help" if n % 2 else "other", now_ns=n)
    assert [v.id for v in await store.versions("a", limit=2, offset=1)] == ["d1:3", "d1:2"]
    assert [v.id for v in await store.versions("a", name="help")] == ["d1:3", "d1:1"]
    assert [v.id for v in await store.versions("a", prefix="d1:4")] == ["d1:4"]
    assert await store.versions("a", prefix="d1:9") == []


async def test_versions_that_hold_a_subject_are_found_before_and_after_it_is_erased(store):
    rows = [row(n, {0: "ann", 1: "bob"}.get(n % 3, "")) for n in range(9)]
    await put(store, rows, "d1:all", now_ns=1)
    await put(store, [r for r in rows if r.subject != "ann"], "d1:rest", now_ns=2)
    await put(store, [rows[0]], "d1:one", "other", now_ns=3)
    assert [v.id for v in await store.holding("a", "ann")] == ["d1:one", "d1:all"]
    assert [v.id for v in await store.holding("a", "bob")] == ["d1:rest", "d1:all"]
    assert await store.holding("a", "") == []
    before = await store.members("a", "d1:all")
    assert await store.erase("a", "ann") == 3
    assert await store.erase("a", "") == 0
    assert [v.id for v in await store.holding("a", "ann")] == ["d1:one", "d1:all"]
    assert await store.members("a", "d1:all") == before, "ids stay: the root over them is still valid"
    data = {
        r.subject: {bool(s.data) for s in await store.rows("a", [x.id for x in rows if x.subject == r.subject])} for r in rows
    }
    assert data == {"ann": {False}, "bob": {True}, "": {True}}
    await store.add("a", rows[:1])
    assert (await store.rows("a", [rows[0].id]))[0].data == b"", "what was erased does not come back under its old id"


@pytest.mark.parametrize("n", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_a_version_of_100_000_rows_is_written_and_paged_in_bounded_memory(store, n):
    part = 2_000
    ids = sorted(digest(b"%d" % i) for i in range(n))
    for start in range(0, n, part):
        await store.add("a", [StoredRow(i, "", b"x" * 40) for i in ids[start : start + part]])
    tracemalloc.start()
    try:
        await store.put("a", version(rows=n), (Member(i, "train") for i in ids), [], now_ns=1)
        count, after = 0, ""
        while page := await store.members("a", "d1:aa", after=after, limit=part):
            count, after = count + len(page), page[-1].row
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == n
    assert peak < 1e6 + 400 * n, f"{peak / 1e6:.1f} MB"


async def test_another_instance_sees_what_was_put(make, shared):
    rows = [row(n) for n in range(3)]
    await put(make(DatasetStore), rows)
    other = make(DatasetStore)
    assert await other.rows("a", [rows[0].id]) == [rows[0]]
    assert await other.members("a", "d1:aa") == members(rows)


async def test_of_callers_that_put_one_version_at_the_same_time_one_is_first(crowd):
    stores = crowd(DatasetStore, 4)
    rows = [row(n) for n in range(3)]
    await stores[0].add("a", rows)
    new = await asyncio.gather(*(s.put("a", version(), members(rows), [], now_ns=n) for n, s in enumerate(stores)))
    assert sorted(new) == [False, False, False, True]
    assert await stores[0].members("a", "d1:aa") == members(rows)


async def test_a_writer_that_is_killed_leaves_no_half_version(make, spawn):
    store = make(DatasetStore)
    rows = [row(n) for n in range(3)]
    await store.add("a", rows)
    child = spawn("""
        import asyncio, os
        from noria.contracts.dataset import Member, Version
        from noria.contracts.port import DatasetStore
        from noria.kit.ids import digest

        async def main():
            import noria.kit.sql_datasets as of
            real = of.put
            def put(*args):
                work = real(*args)
                answer = None
                for n in range(3):  # the manifest, the question for its rows, its members; never the end
                    answer = yield (work.send(answer) if n else next(work))
                say("inside")
                os.kill(os.getpid(), 9)
            of.put = put
            ids = sorted(digest(b"%d" % n) for n in range(3))
            store = make(DatasetStore)
            await store.put("a", Version("d1:aa", "help", 1, {"train": 3}), [Member(i, "train") for i in ids], [], now_ns=1)

        asyncio.run(main())
    """)
    assert await asyncio.to_thread(child.line) == "inside", child.end()
    child.end()
    assert await store.versions("a") == []
    assert await store.members("a", "d1:aa") == []
    assert await store.put("a", version(), members(rows), [], now_ns=1)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.sets(st.integers(0, 2000), max_size=600), size=st.integers(1, 700))
async def test_any_set_of_rows_is_listed_whole_and_in_order(store, numbers, size):
    rows = [row(n) for n in numbers]
    name = "d1:" + digest(repr(sorted(numbers)).encode())
    await store.add("a", rows)
    await store.put("a", version(name, rows=len(rows)), members(rows), [], now_ns=1)
    got: list[Member] = []
    while page := await store.members("a", name, after=got[-1].row if got else "", limit=size):
        got += page
    assert got == members(rows)
    assert await store.rows("a", [r.id for r in rows]) == rows
