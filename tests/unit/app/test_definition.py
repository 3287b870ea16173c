"""What `apply` stores and what workers get, over the records in memory."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from noria.app.definition import (
    DEFINITION,
    KEY,
    LIVE,
    RELEASE,
    Definition,
    apply,
    build_snapshot,
    stored_definition,
    stored_keys,
    with_ids,
)
from noria.contracts.port import Write
from noria.contracts.release import App, Endpoint, Key, Release
from noria.engines.memory import MemoryRecords


@pytest.fixture
def records() -> MemoryRecords:
    return MemoryRecords("memory://")


def app(name: str, model: str = "m", **weights: float) -> App:
    names = weights or {"main": 1.0}
    releases = {n: Release(f"r1:{name}-{n}-{model}", n, name, (Endpoint("e", "scripted", model),)) for n in names}
    return App(name, releases, dict(names))


def definition(*apps: App, source: str = "s1", **more: object) -> Definition:
    return Definition(source, {a.name: a for a in apps}, **more)


async def test_nothing_is_defined_before_the_first_apply(records: MemoryRecords) -> None:
    assert await stored_definition(records, "local") is None
    assert await build_snapshot(records, "local") is None


async def test_what_is_applied_comes_back(records: MemoryRecords) -> None:
    given = definition(app("support"), app("small"), keys_required=True, hosts=("noria.lan",), body_limit=99)
    assert await apply(records, "local", given) == ["+ app support", "+ app small"]
    assert await stored_definition(records, "local") == given
    snapshot = await build_snapshot(records, "local")
    assert snapshot.apps == given.apps
    assert (snapshot.keys_required, snapshot.hosts, snapshot.body_limit) == (True, ("noria.lan",), 99)


async def test_the_same_definition_twice_changes_nothing(records: MemoryRecords) -> None:
    await apply(records, "local", definition(app("support")))
    revision = await records.revision("local")
    assert await apply(records, "local", definition(app("support"))) == []
    assert await records.revision("local") == revision


async def test_all_of_an_apply_is_one_commit(records: MemoryRecords) -> None:
    await apply(records, "local", definition(app("support"), app("small")))
    assert await records.revision("local") == 1


async def test_changes_are_told_in_words(records: MemoryRecords) -> None:
    await apply(records, "local", definition(app("support"), app("old")))
    changes = await apply(records, "local", definition(app("support", "m2"), app("new")))
    assert changes == ["+ app new", "- app old", "~ app support: main r1:support-"]
    assert await apply(records, "local", definition(app("support", "m2"), app("new"), source="s2")) == ["~ settings"]


async def test_an_app_that_is_gone_takes_its_live_state_along_and_leaves_its_releases(records: MemoryRecords) -> None:
    await apply(records, "local", definition(app("old")))
    await apply(records, "local", definition(app("new")))
    assert [r.id for r in await records.scan("local", LIVE)] == ["new"]
    assert {r.id for r in await records.scan("local", RELEASE)} == {"r1:old-main-m", "r1:new-main-m"}


async def test_live_shares_outlive_an_apply_that_does_not_touch_the_app(records: MemoryRecords) -> None:
    await apply(records, "local", definition(app("support", a=1.0, b=0.0)))
    await records.commit("local", [Write(LIVE, "support", msgspec.msgpack.encode({"weights": {"a": 0.2, "b": 0.8}}))])
    await apply(records, "local", definition(app("support", a=1.0, b=0.0), app("other")))
    assert (await build_snapshot(records, "local")).apps["support"].weights == {"a": 0.2, "b": 0.8}


async def test_a_changed_release_gets_the_shares_of_its_definition(records: MemoryRecords) -> None:
    await apply(records, "local", definition(app("support", a=1.0, b=0.0)))
    await apply(records, "local", definition(app("support", "m2", a=0.4, b=0.6)))
    assert (await build_snapshot(records, "local")).apps["support"].weights == {"a": 0.4, "b": 0.6}


async def test_a_snapshot_is_named_by_its_content(records: MemoryRecords) -> None:
    await apply(records, "local", definition(app("support")))
    first = await build_snapshot(records, "local")
    assert first.hash.startswith("c1:")
    await records.commit("local", [Write("event", "e1", b"x")])
    again = await build_snapshot(records, "local")
    assert (again.hash, again.revision) == (first.hash, first.revision + 1)
    await apply(records, "local", definition(app("support"), hosts=("a",)))
    assert (await build_snapshot(records, "local")).hash != first.hash


async def test_another_keeper_that_never_saw_the_file_builds_the_same(records: MemoryRecords) -> None:
    given = definition(app("b"), app("a"))
    await apply(records, "local", given)
    other = MemoryRecords("memory://")
    for kind in (DEFINITION, LIVE):
        for r in await records.scan("local", kind):
            await other.commit("local", [Write(kind, r.id, r.value)])
    assert (await build_snapshot(other, "local")).hash == (await build_snapshot(records, "local")).hash


async def test_keys_are_found_by_hash_and_read_page_by_page(records: MemoryRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    await apply(records, "local", definition(app("support")))
    keys = [Key(f"key_{i:03}", f"h{i}") for i in range(25)]
    await records.commit("local", [Write(KEY, k.id, msgspec.msgpack.encode(k)) for k in keys])
    scan = records.scan

    async def short(tenant: str, kind: str, *, after: str = "", limit: int = 1000) -> list:
        return await scan(tenant, kind, after=after, limit=min(limit, 10))

    monkeypatch.setattr(records, "scan", short)
    assert await stored_keys(records, "local") == keys
    assert (await build_snapshot(records, "local")).keys["h7"] == keys[7]


async def test_another_tenants_apply_is_another_matter(records: MemoryRecords) -> None:
    await apply(records, "a", definition(app("support")))
    assert await build_snapshot(records, "b") is None


def test_ids_are_given_to_every_release() -> None:
    made = with_ids(app("support", a=1.0, b=1.0), lambda r: f"r1:{r.name}!")
    assert {n: r.id for n, r in made.releases.items()} == {"a": "r1:a!", "b": "r1:b!"}
    assert replace(made, releases={}).weights == {"a": 1.0, "b": 1.0}
