"""Refreshes in the keeper: one an app, taken up when their process dies, decided by people, begun by drift or the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from noria.app import refreshes as module
from noria.app.definition import Definition
from noria.app.refresh_plan import Wish
from noria.app.refresh_words import explained
from noria.app.refreshes import DEATHS, OPEN_OF, Refreshes
from noria.app.registry import EVENT, Registry
from noria.contracts.drift import DriftState
from noria.contracts.error import Conflict, NotFound, RequestError, Unavailable
from noria.contracts.evaluation import Suite
from noria.contracts.event import Event
from noria.contracts.port import JobState
from noria.contracts.refresh import Ending, Plan, Refresh, Step, Told
from noria.contracts.release import App, Endpoint, Release, Snapshot
from noria.contracts.rollout import RolloutPolicy
from noria.engines.memory import MemoryRecords

TURN: dict[str, Any] = {"suite": "s", "data": {"dataset": "desk"}, "train": {"method": "tiny"}}
MAIN = Release("r1:main", "main", "app", (Endpoint("m", "scripted", "m"),))


class Runner:
    """A job runner whose jobs the test ends."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobState] = {}
        self.stopped: list[str] = []

    async def start(self, tenant: str, id: str, argv: Any, folder: str) -> None:
        if id in self.jobs:
            raise Conflict("there")
        self.jobs[id] = JobState(id, "running")

    async def state(self, tenant: str, id: str) -> JobState | None:
        return self.jobs.get(id)

    async def stop(self, tenant: str, id: str) -> None:
        self.stopped.append(id)

    def kill(self, id: str) -> None:
        self.jobs[id] = JobState(id, "lost", detail="It was killed.")


class House:
    """As much of a keeper as refreshes need."""

    tenant = "local"

    def __init__(self, home: Any) -> None:
        self.home = home
        (home / "run").mkdir()
        (home / "run" / "address.json").write_text("{}")
        self.records = MemoryRecords("memory://")
        self.registry = Registry(self.records, "local", self._nothing)
        self.declared: dict[str, Any] = {"app": TURN}
        self.states: list[DriftState] = []
        self.overrides: list[tuple[str, str]] = []
        self.rolling: list[Any] = []
        suites = {"s": Suite("s", "desk", metrics=("label",))}
        version = SimpleNamespace(id="d1:0", splits={"train": 5}, name="desk")

        async def given(*_: Any) -> Any:
            return version

        async def declared() -> Any:
            return suites

        async def stopped(*_: Any) -> None:
            self.overrides.append(("train", "stop"))

        self.evaluations: Any = SimpleNamespace(suites=declared, version=given)
        self.datasets: Any = SimpleNamespace(find=given)
        self.trainings: Any = SimpleNamespace(stop=stopped)
        self.rollouts: Any = SimpleNamespace(declared_policy=self._policy, all=self._rollouts, override=self._override)
        self.drift: Any = SimpleNamespace(states=self._states)

    async def _nothing(self) -> None: ...

    async def _policy(self, app: str) -> RolloutPolicy:
        return RolloutPolicy(metric="thumbs_up", min_answers=7)

    async def _rollouts(self, app: str) -> list[Any]:
        return self.rolling

    async def _override(self, id: str, action: str, **_: Any) -> None:
        self.overrides.append((id, action))

    async def _states(self) -> list[DriftState]:
        return self.states

    def current(self) -> Snapshot:
        return Snapshot("c1:", "local", 0, {"app": App("app", {"main": MAIN}, {"main": 1.0})}, {})

    async def definition(self) -> Definition:
        return Definition("", {}, refreshes=self.declared)

    async def events(self) -> list[Event]:
        found = await self.records.scan("local", EVENT)
        return [msgspec.msgpack.decode(r.value, type=Event) for r in found]


@pytest.fixture
def house(tmp_path: Any) -> House:
    return House(tmp_path)


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def them(house: House, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refreshes]:
    made: Any = Refreshes(house, runner)  # type: ignore[arg-type]  # as much of one as it needs
    monkeypatch.setattr(module, "time", SimpleNamespace(time_ns=time.time_ns, monotonic=lambda: 1e9 + len(runner.jobs) * 1e3))
    return made


async def begin(them: Refreshes, **given: Any) -> Refresh:
    return await them.start(Wish("app", "person", "ann", **given))


async def done(them: Refreshes, refresh: Refresh, name: Any, /, **output: Any) -> Refresh:
    step = Step(name, "done", "key", {"says": "ok", **output}, 1, 2, says="ok")
    return await them.take(refresh.id, Told(refresh.attempt, step))


async def test_a_turn_is_planned_from_the_file_with_what_is_said_besides(them: Refreshes, house: House) -> None:
    refresh = await begin(them, settings={"data": {"min_new": 9}, "rollout": {"steps": [25, 50]}})
    plan: Plan = refresh.plan
    assert (plan.parent, plan.metric, plan.base, plan.suite.dataset) == ("r1:main", "label", "", "desk")
    assert (plan.policy.data.dataset, plan.policy.data.min_new) == ("desk", 9)
    assert plan.policy.rollout.steps == (25.0, 50.0)
    assert plan.until_ns - plan.since_ns == 30 * 86_400 * 10**9
    house.declared = {"app": TURN}
    await them.say(refresh.id, "stop", by="ann")
    assert (await begin(them)).plan.policy.rollout.min_answers == 7, "without its own, the app's rollout"
    house.declared = {}
    await them.say("app", "stop", by="ann")
    with pytest.raises(RequestError, match="has no `refresh`"):
        await begin(them)


async def test_without_a_gateway_nothing_begins(them: Refreshes, house: House) -> None:
    (house.home / "run" / "address.json").unlink()
    with pytest.raises(Unavailable, match="not running"):
        await begin(them)
    assert await them.all() == []


async def test_an_app_has_one_turn_at_a_time(them: Refreshes, runner: Runner) -> None:
    refresh = await begin(them)
    assert list(runner.jobs) == [f"{refresh.id}.1"]
    with pytest.raises(RequestError) as e:
        await begin(them)
    assert (e.value.code, e.value.status) == ("refresh_under_way", 409)
    await them.take(refresh.id, Told(1, ending=Ending("rejected", "Worse.")))
    assert (await begin(them)).id != refresh.id


async def test_a_turn_whose_process_died_is_taken_up_by_another(them: Refreshes, runner: Runner) -> None:
    refresh = await begin(them)
    refresh = await done(them, refresh, "detect")
    await them.look()
    assert list(runner.jobs) == [f"{refresh.id}.1"], "it runs"
    runner.kill(f"{refresh.id}.1")
    await them.look()
    assert list(runner.jobs) == [f"{refresh.id}.1", f"{refresh.id}.2"]
    with pytest.raises(Conflict, match="at attempt 2"):
        await done(them, refresh, "harvest")  # the first one was not dead after all: nobody listens to it
    with pytest.raises(Conflict):
        await them.tell(refresh.id, 1, {"done": 3})
    await them.tell(refresh.id, 2, {"done": 4})
    assert them.progress((await them.get(refresh.id))[0])["done"] == 4
    now = (await them.get(refresh.id))[0]
    assert (now.attempt, now.deaths, now.step("harvest").state, now.step("detect").state) == (2, 1, "waiting", "done")
    assert (await done(them, now, "harvest")).deaths == 0


async def test_a_keeper_that_is_started_again_finds_a_turn_that_was_never_begun(
    them: Refreshes, house: House, runner: Runner
) -> None:
    refresh = await begin(them)
    runner.jobs.clear()
    again = Refreshes(house, runner)  # type: ignore[arg-type]  # as much of one as it needs
    await again.look()
    assert list(runner.jobs) == [f"{refresh.id}.1"]


async def test_a_turn_that_keeps_dying_fails_and_says_where(them: Refreshes, runner: Runner, house: House) -> None:
    refresh = await begin(them)
    for n in range(1, DEATHS + 2):
        runner.kill(f"{refresh.id}.{n}")
        await them.look()
    now = (await them.get("app"))[0]
    assert now.state == "failed"
    assert f"died {DEATHS + 1} times at the step detect: It was killed." in now.says
    assert [e.kind for e in await house.events()] == ["refresh.started", "refresh.failed"]
    assert (await them.say("app", "resume", by="ann")).state == "running"


async def test_steps_and_the_end_are_events_with_their_evidence(them: Refreshes, house: House) -> None:
    refresh = await begin(them)
    gate = {"verdict": "fail", "findings": [{"rule": {"kind": "cost"}, "verdict": "fail", "says": "Dear."}]}
    refresh = await done(them, refresh, "release", id="r1:new", name="tuned")
    refresh = await done(them, refresh, "gate", **gate)
    again = await done(them, refresh, "gate", **gate)  # its answer was lost
    assert again == refresh
    over = await them.take(refresh.id, Told(1, ending=Ending("rejected", "Dear.")))
    assert (over.state, over.release, over.release_name, over.says, over.at) == ("rejected", "r1:new", "tuned", "Dear.", "gate")
    events = await house.events()
    assert [e.kind for e in events] == ["refresh.started", "refresh.step_done", "refresh.step_done", "refresh.rejected"]
    assert events[2].detail["output"]["findings"] == gate["findings"]
    assert (events[2].detail["inputs"], len(events[2].detail["output_hash"])) == ("key", 64)
    assert events[3].detail["release"] == "r1:new"
    assert await house.registry.get(OPEN_OF, "app", str) is None
    told = explained(over)
    assert "begun by ann" in told.summary
    assert "ended rejected: Dear." in told.summary
    assert any("cost: fail. Dear." in p.facts for p in told.paragraphs)


async def test_a_person_waives_a_gate_after_it_was_rejected(them: Refreshes, house: House, runner: Runner) -> None:
    refresh = await begin(them)
    with pytest.raises(RequestError, match="nothing to waive"):
        await them.say("app", "waive", by="ann", why="x")
    refresh = await done(them, refresh, "gate", verdict="fail", findings=[{"says": "Dear."}])
    await them.take(refresh.id, Told(1, ending=Ending("rejected", "Dear.")))
    with pytest.raises(RequestError) as e:
        await them.say("app", "waive", by="ann", why=" ")
    assert e.value.code == "reason_missing"
    now = await them.say("app", "waive", by="ann", why="it is worth it")
    assert (now.state, now.attempt, now.step("gate").state, now.words[-1].why) == ("running", 2, "done", "it is worth it")
    assert f"{refresh.id}.2" in runner.jobs
    with pytest.raises(RequestError):
        await begin(them)
    last = (await house.events())[-1]
    assert (last.kind, last.actor, last.detail["findings"]) == ("refresh.waived", "ann", [{"says": "Dear."}])
    await them.take(refresh.id, Told(2, ending=Ending("rejected", "Again.")))
    other = await begin(them)
    with pytest.raises(RequestError, match=other.id):
        await them.say(refresh.id, "waive", by="ann", why="once more")


async def test_a_turn_that_asks_waits_and_is_approved_or_rejected(them: Refreshes, runner: Runner) -> None:
    refresh = await begin(them)
    asking = Told(1, Step("train", "asks", "key", says="A person is asked."))
    now = await them.take(refresh.id, asking)
    assert (now.state, now.says) == ("asks", "A person is asked.")
    runner.kill(f"{refresh.id}.1")
    await them.look()
    assert len(runner.jobs) == 1, "nobody works on a turn that waits for a person"
    now = await them.say("app", "approve", by="bob")
    assert (now.state, now.step("train").state, now.words[0].by) == ("running", "waiting", "bob")
    await them.take(refresh.id, Told(2, Step("rollout", "asks", "key", says="?")))
    now = await them.say("app", "reject", by="bob", why="not this week")
    assert (now.state, now.says) == ("rejected", "bob: not this week")


async def test_stopping_ends_what_the_turn_has_begun_and_resuming_goes_on(
    them: Refreshes, house: House, runner: Runner
) -> None:
    refresh = await begin(them)
    await them.take(refresh.id, Told(1, Step("train", "running", "key", {"job": "train_1"})))
    house.rolling = [SimpleNamespace(id="roll_1", by=f"refresh:{refresh.id}", state="running")]
    now = await them.say("app", "stop", by="ann")
    assert (now.state, runner.stopped) == ("stopped", [f"{refresh.id}.1"])
    assert house.overrides == [("train", "stop"), ("roll_1", "pause")]
    house.rolling = [SimpleNamespace(id="roll_1", by=f"refresh:{refresh.id}", state="paused")]
    now = await them.say("app", "resume", by="ann")
    assert (now.state, now.attempt, house.overrides[-1]) == ("running", 2, ("roll_1", "resume"))
    assert now.step("train").output == {"job": "train_1"}, "the training that was begun is found again"
    await them.take(refresh.id, Told(2, Step("train", "failed", "key", says="No memory."), failed="train: No memory."))
    now = await them.say("app", "resume", by="ann")
    assert (now.step("train").state, now.attempt) == ("waiting", 3)


async def test_what_is_inconclusive_for_want_of_evidence_is_not_resumed(them: Refreshes) -> None:
    refresh = await begin(them)
    await them.take(refresh.id, Told(1, ending=Ending("inconclusive", "3 more rows.")))
    with pytest.raises(RequestError, match="for want of evidence"):
        await them.say("app", "resume", by="ann")
    with pytest.raises(NotFound):
        await them.say("other", "resume", by="ann")


async def test_changed_inputs_undo_the_steps_after_them(them: Refreshes) -> None:
    refresh = await begin(them)
    for name in ("detect", "harvest", "version"):
        refresh = await done(them, refresh, name)
    now = await them.take(refresh.id, Told(1, Step("harvest", "running", "other")))
    assert [now.step(n).state for n in ("detect", "harvest", "version")] == ["done", "running", "waiting"]


async def test_an_alert_begins_one_turn_and_cools_down(them: Refreshes, house: House) -> None:
    house.declared = {"app": TURN | {"start": "drift", "cool_down": 3600.0}}
    await them.look()
    assert await them.all() == [], "nothing drifts"
    house.states = [DriftState("app", firing=True, since_ns=5, report="rep")]
    await them.look()
    await them.look()
    (refresh,) = await them.all()
    assert (refresh.cause, refresh.by, refresh.alert_ns, refresh.plan.report) == ("drift", "drift", 5, "rep")
    await them.take(refresh.id, Told(1, ending=Ending("rejected", "Worse.")))
    await them.look()
    assert len(await them.all()) == 1, "once an alert"
    house.states = [DriftState("app", firing=True, since_ns=6)]
    await them.look()
    assert len(await them.all()) == 1, "it cools down"
    house.declared = {"app": TURN | {"start": "drift", "cool_down": 0.0}}
    await them.look()
    assert [r.alert_ns for r in await them.all()] == [6, 5]


async def test_too_few_rows_are_looked_for_again_after_the_cool_down(them: Refreshes, house: House) -> None:
    house.declared = {"app": TURN | {"start": "drift", "cool_down": 0.0}}
    house.states = [DriftState("app", firing=True, since_ns=5)]
    await them.look()
    (refresh,) = await them.all()
    await them.take(refresh.id, Told(1, ending=Ending("inconclusive", "1 more row.")))
    await them.look()
    assert len(await them.all()) == 2


async def test_the_schedule_begins_turns_and_manual_does_not(
    them: Refreshes, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.declared = {"app": TURN | {"start": "schedule", "every": 3600.0}}
    await them.look()
    (refresh,) = await them.all()
    assert refresh.cause == "schedule"
    await them.take(refresh.id, Told(1, ending=Ending("promoted", "Better.")))
    await them.look()
    assert len(await them.all()) == 1
    later = time.time_ns() + 3601 * 10**9
    monkeypatch.setattr(module, "time", SimpleNamespace(time_ns=lambda: later, monotonic=time.monotonic))
    await them.look()
    assert len(await them.all()) == 2
    await them.say("app", "stop", by="ann")
    house.declared = {"app": TURN}
    house.states = [DriftState("app", firing=True, since_ns=5)]
    await them.look()
    assert len(await them.all()) == 2


async def test_a_turn_that_cannot_begin_is_put_off(them: Refreshes, house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.declared = {"app": TURN | {"start": "schedule", "suite": "gone"}}
    await them.look()
    await them.look()
    assert sum("does not begin: The suite 'gone'" in r.message for r in caplog.records) == 1
