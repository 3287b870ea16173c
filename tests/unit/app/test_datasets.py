"""`app.datasets`: the keeper's side, over the memory engine."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from noria.app.dataset_client import Reference
from noria.app.datasets import Datasets, Draft
from noria.contracts.dataset import Member, Row, StoredRow
from noria.contracts.error import NotFound, RequestError
from noria.data.row import version_id
from noria.engines.memory import MemoryDatasets

T = "local"


class Keys:
    """Keys that can be destroyed: whoever asks again gets a fresh one, as of the keeper."""

    def __init__(self) -> None:
        self.made: dict[tuple[str, str], bytes] = {}
        self.count = 0

    async def __call__(self, tenant: str, subject: str) -> bytes:
        self.count += (tenant, subject) not in self.made
        return self.made.setdefault((tenant, subject), bytes([self.count]) * 32)


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def datasets(keys: Keys) -> Datasets:
    return Datasets(MemoryDatasets("memory://"), keys)


def rows(n: int = 4) -> list[Row]:
    return [Row(({"role": "user", "content": f"问题 {i}"},), label="l", subject="ann" if i % 2 else "") for i in range(n)]


async def make(datasets: Datasets, some: list[Row], name: str = "help", **draft) -> str:
    ids, _ = await datasets.add(T, some)
    members = sorted((Member(i, "train") for i in set(ids)), key=lambda m: m.row)
    return (await datasets.put(T, name, members, [], Draft(**draft)))[0].id


async def test_the_same_rows_are_the_same_version_in_any_order(datasets: Datasets) -> None:
    one = await make(datasets, rows())
    two = await make(datasets, rows()[::-1], "other")
    assert one == two
    assert one != await make(datasets, rows(3))
    assert (await datasets.add(T, rows()))[1] == 0, "rows that are there are not stored again"


async def test_rows_come_back_in_the_order_of_their_ids(datasets: Datasets) -> None:
    version = await make(datasets, rows())
    page = await datasets.page(T, version, after="", limit=10)
    assert sorted(r.row.messages[0]["content"] for r in page if r.row) == [f"问题 {i}" for i in range(4)]
    assert [r.id for r in page] == sorted(r.id for r in page)
    assert (await datasets.page(T, version, after=page[1].id, limit=1)) == [page[2]]
    assert all(r.state == "ok" and r.row is None for r in await datasets.page(T, version, after="", limit=10, content=False))


async def test_a_subjects_rows_are_gone_with_its_key_and_the_root_stays(datasets: Datasets, keys: Keys) -> None:
    version = await make(datasets, rows())
    del keys.made[T, "ann"]
    page = await datasets.page(T, version, after="", limit=10)
    assert sorted(r.state for r in page) == ["erased", "erased", "ok", "ok"]
    assert version_id(Member(r.id, r.split) for r in page) == version
    await datasets.store.erase(T, "ann")
    assert await datasets.page(T, version, after="", limit=10) == page
    ids, new = await datasets.add(T, [r for r in rows() if r.subject])
    assert new == 2, "what the same person says again is other rows, under another key"
    assert not {r.id for r in page} & set(ids)


async def test_a_damaged_row_is_named(datasets: Datasets) -> None:
    version = await make(datasets, rows())
    (row,) = await datasets.page(T, version, after="", limit=1)
    store = datasets.store
    stored = (await store.rows(T, [row.id]))[0]
    assert isinstance(store, MemoryDatasets)
    store._rows[T, row.id] = StoredRow(row.id, stored.subject, stored.data[:-1] + bytes([stored.data[-1] ^ 1]))
    (found,) = await datasets.page(T, version, after="", limit=1)
    assert (found.id, found.state, found.row) == (row.id, "damaged", None)
    assert row.id[:12] in found.detail


async def test_a_version_is_found_by_its_name_its_id_and_the_beginning_of_it(datasets: Datasets) -> None:
    one, two = await make(datasets, rows(2)), await make(datasets, rows(3), note="more")
    assert (await datasets.find(T, "help")).id == two
    assert (await datasets.find(T, "help", one)).id == one
    assert (await datasets.find(T, "", one[:9])).id == one
    assert (await datasets.find(T, "help", one[3:12])).id == one
    with pytest.raises(RequestError, match="Several"):
        await datasets.find(T, "help", "d1:")
    with pytest.raises(NotFound, match="no version"):
        await datasets.find(T, "other", one)
    with pytest.raises(NotFound) as e:
        await datasets.find(T, "hlep")
    assert "'help'" in e.value.text
    assert [v.note for v in await datasets.latest(T)] == ["more"]


@pytest.mark.parametrize("name", ["", "Help", "a/b", "a@b", ".x", "x" * 65, "客服"])
async def test_names_that_a_reference_could_not_hold_are_refused(datasets: Datasets, name: str) -> None:
    with pytest.raises(RequestError, match="name"):
        await make(datasets, rows(1), name)


async def test_a_version_needs_rows_and_names_of_splits(datasets: Datasets) -> None:
    with pytest.raises(RequestError, match="at least one"):
        await datasets.put(T, "help", [], [], Draft())
    ids, _ = await datasets.add(T, rows(1))
    for split in ("", " ", "a/b", "a\nb"):
        with pytest.raises(RequestError, match="split"):
            await datasets.put(T, "help", [Member(ids[0], split)], [], Draft())
    with pytest.raises(RequestError, match="row id"):
        await datasets.put(T, "help", [Member("zz", "train")], [], Draft())
    with pytest.raises(NotFound, match="not stored"):
        await datasets.put(T, "help", [Member("0" * 64, "train")], [], Draft())


async def test_equal_rows_of_two_people_do_not_look_equal(datasets: Datasets) -> None:
    (one,) = rows(1)
    ids, _ = await datasets.add(T, [one, replace(one, subject="ann"), replace(one, subject="bob")])
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("help", Reference("help")),
        ("help/test", Reference("help", "latest", "test")),
        ("help@d1:ab", Reference("help", "d1:ab")),
        ("d1:ab/train", Reference("-", "d1:ab", "train")),
    ],
)
def test_references(text: str, meant: Reference) -> None:
    assert Reference.read(text) == meant


@pytest.mark.parametrize("text", ["", "/test", "@d1:ab", "help@"])
def test_what_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        Reference.read(text)
