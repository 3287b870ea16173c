"""Releases of the running service over records in memory: made, named, retired; models and adapters that are artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from noria.app.definition import Definition, apply, build_snapshot
from noria.app.house import identify
from noria.app.registry import Registry
from noria.app.releases import Releases, Wish, install
from noria.app.rollouts import Plan, Rollouts
from noria.contracts.error import Conflict, NoriaError, NotFound, RequestError
from noria.contracts.release import App, Endpoint, GuardRule, Release
from noria.contracts.rollout import RolloutPolicy
from noria.engines.memory import MemoryRecords
from noria.release import artifact, catalogue

LOCAL = Endpoint("small", "local", "base", digests={"weights": "sha256:" + "ab" * 32}, context=4096)
GUARDS = {"careful": (GuardRule("pii", "mask"),)}


class World:
    def __init__(self, home: Path) -> None:
        self.home, self.records, self.snapshot = home, MemoryRecords("memory://"), None
        self.registry = Registry(self.records, "local", self.refresh)
        self.releases = Releases(home, self.registry, lambda: self.snapshot)
        self.releases.find_model = {"far": Endpoint("far", "scripted", "far")}.get

    async def refresh(self) -> None:
        self.snapshot = await build_snapshot(self.records, "local")

    async def make(self, name: str = "new", parent: str = "main", **what: Any) -> Release:
        return await self.releases.create(Wish("app", parent, name, "test", **what))

    @property
    def app(self) -> App:
        return self.snapshot.apps["app"]


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    bare = Release("", "main", "app", (LOCAL,), params={"temperature": 0.5})
    app = App("app", {"main": replace(bare, id=identify(bare))}, {"main": 1.0})
    await apply(made.records, "local", Definition("s", {"app": app}, guards=GUARDS))
    await made.refresh()
    return made


def gguf(path: Path, content: bytes = b"x") -> Path:
    path.write_bytes(b"GGUF" + content)
    return path


async def test_a_release_is_served_without_traffic_and_its_parts_come_from_where_they_are_named(world: World) -> None:
    made = await world.make(prompt="Be brief.", guard="careful", params={"top_p": 0.9}, note="n")
    assert (made.prompt.text, made.guard, made.params) == ("Be brief.", GUARDS["careful"], {"temperature": 0.5, "top_p": 0.9})
    assert world.app.releases["new"].id == made.id == identify(made)
    assert world.app.weights == {"main": 1.0, "new": 0.0}
    assert (await world.make("far", model="far")).route[0].name == "far"
    assert [d["part"] for d in await world.releases.compare("app", "production", "new")] == [
        "prompt",
        "guard",
        "parameter top_p",
    ]
    assert (await world.releases.get("app", made.id[:12])).name == "new"
    row = next(r for r in await world.releases.all("app") if r["name"] == "new")
    assert (row["from"], row["parent"], row["note"]) == ("test", world.app.releases["main"].id, "n")
    for wrong, error in (
        ({"guard": "carefull"}, NotFound), ({"model": "none"}, NotFound), ({"parent": "none", "params": {"seed": 1}}, NotFound),
        ({"name": "a/b", "params": {"seed": 1}}, RequestError), ({"name": "new", "params": {"seed": 1}}, Conflict),
        ({"name": "main", "params": {"seed": 1}}, Conflict), ({"model": "far", "adapter": "a1:x"}, RequestError),
    ):  # fmt: skip
        with pytest.raises(error):
            await world.make(**{"name": "other", **wrong})


async def test_what_anybody_may_need_is_not_retired(world: World) -> None:
    await world.make(params={"seed": 1})
    retire = world.releases.retire
    with pytest.raises(RequestError, match=r"100 % of the traffic"):
        await retire("app", "main", actor="t")
    await world.releases.alias("app", "staging", "new", actor="t")
    with pytest.raises(RequestError, match="environment staging"):
        await retire("app", "new", actor="t")
    await world.releases.alias("app", "staging", None, actor="t")
    rollouts = Rollouts(world.registry, None, current=lambda: world.snapshot, unready=lambda _: "loading")
    await rollouts.start(Plan("app", "new", "t", RolloutPolicy()))
    with pytest.raises(RequestError, match="takes part in a rollout"):
        await retire("app", "new", actor="t")
    await rollouts.override("app", "promote", actor="t", why="x")
    await retire("app", "main", actor="t", why="old")
    assert set(world.app.releases) == {"new"}
    assert (await world.releases.get("app", "main")).name == "main", "the record stays"
    await retire("app", "main", actor="t")
    with pytest.raises(NotFound):
        await retire("app", "none", actor="t")
    with pytest.raises(RequestError, match="main is retired"):
        await rollouts.override("app", "rollback", actor="t", why="x")


async def test_an_adapter_must_be_whole_of_its_kind_and_of_this_base(world: World, tmp_path: Path) -> None:
    file = {"adapter.gguf": gguf(tmp_path / "a.gguf")}
    fits = artifact.publish(tmp_path, "adapter_gguf", file, inputs={"base": "ab" * 32}, facts={"scale": "0.5"})
    e = (await world.make("tuned", adapter=fits.id)).route[0]
    assert (e.name, e.options) == (f"small+{fits.id[3:11]}", {"adapter": fits.id, "scale": 0.5})
    assert e.digests["adapter"] == f"sha256:{fits.files[0].sha256}"
    again = (await world.make("retuned", "tuned", adapter=fits.id, scale=1.0)).route[0]
    assert (again.name, again.options["scale"]) == (e.name, 1.0)
    strange = artifact.publish(tmp_path, "adapter_gguf", file, inputs={"base": "cd" * 32})
    with pytest.raises(RequestError, match="trained upon another model"):
        await world.make("x", adapter=strange.id)
    report = artifact.publish(tmp_path, "report", file)
    with pytest.raises(RequestError, match="of kind report"):
        await world.make("x", adapter=report.id)
    assert await world.releases.verify("app", "tuned") == {fits.id: ""}
    (artifact.folder(tmp_path, fits.id) / "adapter.gguf").write_bytes(b"GGUFy")
    assert "adapter.gguf was changed" in (await world.releases.verify("app", "tuned"))[fits.id]
    with pytest.raises(NoriaError, match="refused"):
        await world.make("y", adapter=fits.id)


async def test_a_model_that_is_an_artifact_is_installed_pinned_and_checked_with_its_signature(
    world: World, tmp_path: Path
) -> None:
    made = artifact.publish(tmp_path, "model_gguf", {"model.gguf": gguf(tmp_path / "m.gguf")}, inputs={"base": "ab" * 32})
    e = (await world.make("merged", model=made.id)).route[0]
    assert (e.provider, e.model, e.context) == ("local", f"a1-{made.id[3:19]}", 4096)
    assert e.digests["weights"] == f"sha256:{made.files[0].sha256}"
    assert catalogue.verify(tmp_path, e.model) == install(tmp_path, made.id, context=4096)
    assert catalogue.weights(tmp_path, e.model) == artifact.folder(tmp_path, made.id) / "model.gguf"
    manifest = artifact.folder(tmp_path, made.id) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(made.signature.encode(), b"00" * 64))
    with pytest.raises(NoriaError, match="signature is not its signer's"):
        catalogue.verify(tmp_path, e.model)
    assert "signature" in (await world.releases.verify("app", "merged"))[made.id]
