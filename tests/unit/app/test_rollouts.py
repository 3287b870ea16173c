"""Rollouts in the keeper: each decision one commit, over records in memory and counts that the test sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from noria.app.added import ADDED, place, registered
from noria.app.definition import Canary, Definition, apply, build_snapshot, live_shares
from noria.app.registry import EVENT, Registry, put
from noria.app.rollouts import Plan, Rollouts
from noria.contracts.error import ConfigError, Conflict, NotFound, RequestError
from noria.contracts.event import Event
from noria.contracts.release import App, Endpoint, GuardRule, Release
from noria.contracts.rollout import Finding, GateRule, Rollout, RolloutPolicy
from noria.contracts.trace import Clause, Total
from noria.contracts.usage import Usage
from noria.engines.memory import MemoryRecords
from noria.release.registry import Added

POLICY = RolloutPolicy(steps=(10.0, 50.0), metric="answered", min_answers=50, max_regression=0.3, alpha=0.05)


class Counted:
    """A trace store that counts what the test says: release id → (good, failed, found by the check)."""

    def __init__(self) -> None:
        self.now: dict[str, tuple[int, int, int]] = {}
        self.asked: list[dict[str, str]] = []

    async def totals(
        self, tenant: str, clauses: Sequence[Clause], by: Sequence[str] = (), *, quality: bool = True
    ) -> list[Total]:
        want = {c.column: c.value for c in clauses}
        self.asked.append(want)
        good, failed, found = self.now.get(want["release"], (0, 0, 0))
        counts = {"ok": found} if "check" in want else {"ok": good, "error": failed, "cancelled": 7, "refused": 3}
        return [Total((k,), n, 0, 0, 0, 0, Usage(0, 0)) for k, n in counts.items() if n]


class World:
    """Records, a snapshot that follows them, and rollouts over both."""

    def __init__(self, records: MemoryRecords) -> None:
        self.records, self.traces, self.snapshot, self.missing = records, Counted(), None, ""
        self.rollouts = self.again()

    def again(self) -> Rollouts:
        registry = Registry(self.records, "local", self.refresh)
        return Rollouts(registry, self.traces, current=lambda: self.snapshot, unready=lambda e: self.missing)

    async def refresh(self) -> None:
        self.snapshot = await build_snapshot(self.records, "local")

    async def apply(self, *names: str, canary: Canary | None = None, **models: str) -> None:
        releases = {n: release(n, models.get(n, "m")) for n in names}
        app = App("app", releases, {n: float(i == 0) for i, n in enumerate(names)})
        await apply(self.records, "local", Definition(str(models), {"app": app}, rollouts={"app": canary} if canary else {}))
        await self.refresh()

    def answered(self, **counts: tuple[int, int] | tuple[int, int, int]) -> None:
        for name, (good, failed, *more) in counts.items():
            self.traces.now[self.snapshot.apps["app"].releases[name].id] = (good, failed, more[0] if more else 0)

    async def events(self) -> list[Event]:
        return [msgspec.msgpack.decode(r.value, type=Event) for r in await self.records.scan("local", EVENT)]

    @property
    def shares(self) -> dict[str, float]:
        return dict(self.snapshot.apps["app"].weights)


def release(name: str, model: str) -> Release:
    return Release(f"r1:{name}{model}0000", name, "app", (Endpoint("e", "scripted", model),), guard=(GuardRule("pii", "flag"),))


@pytest.fixture
async def world() -> World:
    made = World(MemoryRecords("memory://"))
    await made.apply("a", "b", b="other")
    return made


async def begun(world: World, **policy: Any) -> Rollout:
    return await world.rollouts.start(Plan("app", "b", "test", replace(POLICY, **policy)))


async def test_a_rollout_goes_up_its_steps_and_is_promoted_by_evidence(world: World) -> None:
    run = await begun(world)
    assert (run.state, world.shares) == ("running", {"a": 90.0, "b": 10.0})
    world.answered(a=(500, 5), b=(49, 0))
    await world.rollouts.look()
    assert world.shares["b"] == 10.0, "one answer is missing"
    world.answered(a=(500, 5), b=(50, 0))
    await world.rollouts.look()
    assert world.shares == {"a": 50.0, "b": 50.0}
    world.answered(a=(900, 9), b=(400, 2))
    await world.rollouts.look()
    done = (await world.rollouts.get(run.id))[0]
    assert (done.state, world.shares) == ("promoted", {"a": 0.0, "b": 100.0})
    kinds = [e.kind for e in await world.events()]
    assert kinds == ["release.rollout_started", "release.advanced", "release.advanced", "release.promoted"]
    last = (await world.events())[-1]
    assert last.target == "app/b"
    assert last.detail["evidence"]["interval"][0] > -0.3
    assert [d.action for d in await world.rollouts.decisions(done)] == ["advance", "promote"]
    with pytest.raises(RequestError, match="has the traffic already"):
        await begun(world)


async def test_how_it_became_sure_is_kept_as_the_answers_grow(world: World) -> None:
    run = await begun(world, max_regression=0.05)
    for judged in (10, 10, 10, 11, 30, 49, 50, 400, 410):
        world.answered(a=(500, 5), b=(judged, 0))
        await world.rollouts.look()
    looks = await world.rollouts.looks((await world.rollouts.get(run.id))[0])
    assert [k.judged for k in looks] == [10, 30, 49, 50, 400], "a step is kept, a tenth more answers is not yet"
    widths = [k.high - k.low for k in looks]
    assert widths == sorted(widths, reverse=True)
    assert (looks[0].stable_judged, looks[0].mean, looks[-1].step) == (505, 1.0, 1)
    await world.rollouts.override(run.id, "rollback", actor="ann", why="enough")
    assert await world.rollouts.looks(run) == looks


async def test_harm_is_rolled_back_to_exactly_what_was_before(world: World) -> None:
    run = await begun(world)
    world.answered(a=(500, 5), b=(5, 20))
    await world.rollouts.look()
    assert ((await world.rollouts.get(run.id))[0].state, world.shares) == ("rolled_back", {"a": 1.0, "b": 0.0})
    event = (await world.events())[-1]
    assert (event.kind, event.actor) == ("release.rolled_back", "keeper")
    assert event.detail["evidence"]["candidate"]["failed"] == 20
    await begun(world)  # a person may try again


async def test_one_piece_of_evidence_decides_once_whoever_looks(world: World) -> None:
    run = await begun(world)
    other, before = world.again(), await world.rollouts.get(run.id)
    world.answered(a=(500, 5), b=(60, 0))
    await world.rollouts.look()
    first = len(await world.events())
    with pytest.raises(Conflict):  # another keeper that has read the rollout as it was
        await other._one_look(*before)
    assert len(await world.events()) == first
    assert (await world.rollouts.get("app"))[0].step == 1


async def test_a_keeper_that_is_started_again_goes_on(world: World) -> None:
    run = await begun(world)
    again = world.again()
    world.answered(a=(500, 5), b=(50, 0))
    await again.look()
    assert (await again.get(run.id))[0].step == 1
    assert [d.action for d in await again.decisions((await again.get(run.id))[0])] == ["advance"]


async def test_no_traffic_before_the_model_is_there(world: World) -> None:
    world.missing = "e is loading."
    run = await begun(world)
    assert (world.shares["b"], run.step_began_ns) == (0.0, 0)
    assert "e is loading" in (await world.rollouts.decisions(run))[0].says
    world.missing = ""
    await world.rollouts.look()
    assert world.shares["b"] == 10.0


async def test_a_person_pauses_resumes_promotes_and_rolls_back_with_a_reason(world: World) -> None:
    run = await begun(world)
    await world.rollouts.override(run.id, "pause", actor="ann")
    world.answered(a=(500, 5), b=(80, 0))
    await world.rollouts.look()
    assert world.shares["b"] == 10.0
    await world.rollouts.override("app", "resume", actor="ann")
    await world.rollouts.look()
    assert world.shares["b"] == 50.0
    with pytest.raises(RequestError, match="needs a reason"):
        await world.rollouts.override("app", "promote", actor="ann")
    promoted = await world.rollouts.override("app", "promote", actor="ann", why="the launch")
    assert (promoted.state, promoted.reason, world.shares["b"]) == ("promoted", "ann: the launch", 100.0)
    back = await world.rollouts.override("app", "rollback", actor="bob", why="complaints")
    assert (back.state, world.shares) == ("rolled_back", {"a": 1.0, "b": 0.0})
    with pytest.raises(RequestError, match="nothing to pause"):
        await world.rollouts.override("app", "pause", actor="bob")
    assert [(e.kind, e.actor) for e in await world.events()][-2:] == [
        ("release.promoted", "ann"),
        ("release.rolled_back", "bob"),
    ]


async def test_what_is_paused_is_rolled_back_when_it_does_harm(world: World) -> None:
    run = await begun(world)
    await world.rollouts.override(run.id, "pause", actor="ann")
    world.answered(a=(500, 5), b=(5, 20))
    await world.rollouts.look()
    assert (await world.rollouts.get(run.id))[0].state == "rolled_back"


async def test_patience_ends_in_inconclusive_and_stays_where_it_is(world: World) -> None:
    run = await begun(world, patience_hours=1e-9)
    await world.rollouts.look()
    waiting = (await world.rollouts.get(run.id))[0]
    assert (waiting.state, world.shares["b"]) == ("inconclusive", 10.0)
    assert (await world.events())[-1].kind == "release.inconclusive"
    await world.rollouts.look()
    assert len([e for e in await world.events() if e.kind == "release.inconclusive"]) == 1


async def test_a_check_of_both_releases_or_feedback_can_be_the_metric(world: World) -> None:
    await begun(world, metric="pii")
    world.answered(a=(500, 0, 5), b=(60, 0, 50))
    await world.rollouts.look()
    assert (await world.rollouts.get("app"))[0].state == "rolled_back"
    assert all(asked["tag"] == "noria.release=pinned" for asked in world.traces.asked)

    async def scores(app: str, metric: str, release: str, since_ns: int) -> tuple[int, float]:
        assert (app, metric) == ("app", "thumbs_up")
        return (300, 290.0) if "a" in release[:4] else (60, 10.0)

    world.rollouts.scores = scores
    await begun(world, metric="thumbs_up")
    await world.rollouts.look()
    told = (await world.rollouts.get("app"))[0]
    assert told.state == "rolled_back"
    assert "thumbs_up is 16.7 % against 96.7 %" in told.reason


async def test_a_candidate_that_did_not_pass_its_gate_gets_no_traffic(world: World) -> None:
    run = await world.rollouts.start(Plan("app", "b", "test", POLICY, passed=False))
    assert (run.state, world.shares["b"]) == ("rejected", 0.0)
    assert [e.kind for e in await world.events()] == ["release.rejected"]
    await begun(world)


@pytest.mark.parametrize(
    "wrong", [{"steps": ()}, {"steps": (50.0, 10.0)}, {"alpha": 0.0}, {"max_regression": 1.0}, {"metric": ""}]
)
async def test_a_policy_that_cannot_be_carried_out_is_refused(world: World, wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        await begun(world, **wrong)
    with pytest.raises(NotFound):
        await world.rollouts.start(Plan("app", "zz", "test", POLICY))


async def test_a_configuration_that_changes_a_release_ends_its_rollout(world: World) -> None:
    run = await begun(world)
    await world.apply("a", "b", b="changed")
    await world.rollouts.look()
    ended = (await world.rollouts.get(run.id))[0]
    assert ended.state == "rolled_back"
    assert "changed or taken away" in ended.reason
    assert world.shares == {"a": 1.0, "b": 0.0}


# -- the file and the registry ---------------------------------------------------------------------------


async def test_the_file_begins_a_rollout_once_for_each_candidate(world: World) -> None:
    canary = Canary("b", POLICY)
    for _ in range(2):
        await world.apply("a", "b", canary=canary, b="other")
        await world.rollouts.declare({"app": canary})
    assert len(await world.rollouts.all()) == 1
    world.answered(a=(500, 5), b=(5, 20))
    await world.rollouts.look()
    await world.rollouts.declare({"app": canary})
    assert [r.state for r in await world.rollouts.all()] == ["rolled_back"]
    await world.apply("a", "b", canary=canary, b="third")
    await world.rollouts.declare({"app": canary})
    assert [r.state for r in await world.rollouts.all()] == ["running", "rolled_back"]


async def test_a_candidate_of_the_file_passes_the_gate_too_and_one_that_does_not_is_not_tried_again(world: World) -> None:
    canary, found = Canary("b", POLICY), [Finding(GateRule("files"), "fail", "b.gguf is truncated.")]

    async def asked(app: str, candidate: str) -> tuple[Finding, ...]:
        return (replace(found[0], says=f"{app}/{candidate}: {found[0].says}"),)

    world.rollouts.asked = asked
    for _ in range(2):
        await world.apply("a", "b", canary=canary, b="other")
        await world.rollouts.declare({"app": canary})
    (told,) = await world.rollouts.all()
    assert (told.state, told.findings[0].says, world.shares["b"]) == ("rejected", "app/b: b.gguf is truncated.", 0.0)
    found[0] = Finding(GateRule("files"), "pass", "")
    await world.apply("a", "b", canary=canary, b="third")
    await world.rollouts.declare({"app": canary})
    assert [r.state for r in await world.rollouts.all()] == ["running", "rejected"]


async def test_what_was_promoted_stays_in_service_while_the_file_replaces_it(world: World) -> None:
    canary = Canary("b", POLICY)
    await world.apply("a", "b", canary=canary, b="other")
    await world.rollouts.declare({"app": canary})
    await world.rollouts.override("app", "promote", actor="ann", why="good")
    old = world.snapshot.apps["app"].releases["b"]
    await world.apply("a", "b", canary=canary, b="edited")
    kept = f"b-{old.id[3:9]}"
    assert world.shares == {"a": 0.0, "b": 0.0, kept: 100.0}
    assert world.snapshot.apps["app"].releases[kept].id == old.id
    await world.rollouts.declare({"app": canary})
    assert world.shares == {"a": 0.0, "b": 10.0, kept: 90.0}


async def test_an_added_release_outlives_an_apply_and_a_clash_of_names_is_refused(world: World) -> None:
    made = release("tuned", "t")
    await world.records.commit("local", [put(ADDED, place("app", "tuned"), Added(made, 1, "refresh:7"))])
    await world.refresh()
    await world.rollouts.start(Plan("app", "tuned", "refresh:7", POLICY))
    await world.rollouts.override("app", "promote", actor="ann", why="good")
    await world.apply("a", "b", a="new", b="other")
    assert world.shares == {"a": 0.0, "b": 0.0, "tuned": 100.0}, "live traffic that came from elsewhere stays"
    with pytest.raises(ConfigError, match=r"apps\.app\.releases\.tuned: a release of this name was made by refresh:7"):
        await world.apply("a", "b", "tuned", tuned="another")
    await world.apply("a", "b", "tuned", tuned="t")
    assert (await registered(world.records, "local")).added.get("app", {}) == {}, "the file has taken it over"
    assert (await live_shares(world.records, "local"))["app"].weights["tuned"] == 100.0
