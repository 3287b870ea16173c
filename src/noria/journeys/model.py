"""The journey of a model: one turn of the wheel, from why it turns to what serves afterwards (ADR 23). Read `turn`.

A step reads the plan and what steps before it found; the hash of that is its key. A step that is done with the same key is not done
again: whoever takes a turn up reads the table and goes on, to the same end. So every step is one that may be begun twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from noria.contracts.error import NoriaError
from noria.contracts.refresh import (
    Compared,
    Detected,
    Ending,
    Exported,
    Harvested,
    Judged,
    Leaked,
    Measured,
    Plan,
    Refresh,
    Released,
    Rolled,
    Settled,
    Step,
    StepName,
    Trained,
    Versioned,
)
from noria.kit.ids import digest

T = TypeVar("T")
STALE = "stale"
"""Code of an error that says that another process has the turn now."""


class Work(Protocol):
    """What the steps are done by. Each may have been begun before, by a process that died: then it goes on, or finds what is there."""

    async def detect(self, plan: Plan) -> Detected:
        """Why this turn is."""
        ...

    async def harvest(self, plan: Plan) -> Harvested:
        """Rows from traffic, beside those of the dataset."""
        ...

    async def version(self, plan: Plan, harvested: Harvested) -> Versioned:
        """Clean, without duplicates, split; the suite pinned."""
        ...

    async def leak(self, plan: Plan, versioned: Versioned) -> Leaked:
        """What the suite asks must not have been learned."""
        ...

    async def train(self, plan: Plan, leaked: Leaked) -> Trained:
        """A training job to its end."""
        ...

    async def export(self, plan: Plan, leaked: Leaked, trained: Trained) -> Exported:
        """What was trained, as signed artifacts."""
        ...

    async def equivalence(self, plan: Plan, trained: Trained, exported: Exported) -> Compared:
        """Whether what would be served is what was trained."""
        ...

    async def release(self, plan: Plan, exported: Exported) -> Released:
        """The candidate, without traffic."""
        ...

    async def evaluate(self, plan: Plan, versioned: Versioned, released: Released) -> Measured:
        """Both releases on the suite."""
        ...

    async def gate(self, plan: Plan, evidence: tuple[Leaked, Compared, Released, Measured]) -> Judged:
        """The declared rules against what was found."""
        ...

    async def rollout(self, plan: Plan, evidence: tuple[Leaked, Compared, Released, Measured], waived: str) -> Rolled:
        """Traffic, step by step, to a verdict."""
        ...

    async def settle(self, released: Released, rolled: Rolled) -> Settled:
        """What serves now."""
        ...


async def turn(plan: Plan, work: Work, table: Table) -> Ending:
    """One turn to its end. Raises `Asks` where a person must be asked first, and what a step raises."""
    detected = await table.step("detect", Detected, work.detect, plan)
    harvested = await table.step("harvest", Harvested, work.harvest, plan)
    if detected.cause in ("drift", "schedule") and harvested.new < plan.policy.data.min_new:
        return Ending("inconclusive", too_few(plan, harvested))

    versioned = await table.step("version", Versioned, work.version, plan, harvested)
    leaked = await table.step("leak", Leaked, work.leak, plan, versioned)
    if plan.policy.data.leak == "refuse" and leaked.left:
        return Ending("rejected", leaked.says)

    trained = await table.step("train", Trained, work.train, plan, leaked)
    exported = await table.step("export", Exported, work.export, plan, leaked, trained)
    compared = await table.step("equivalence", Compared, work.equivalence, plan, trained, exported)
    if compared.fault:
        return Ending("rejected", compared.says)

    released = await table.step("release", Released, work.release, plan, exported)
    if released.same:
        return Ending("rejected", released.says)
    measured = await table.step("evaluate", Measured, work.evaluate, plan, versioned, released)

    evidence = (leaked, compared, released, measured)
    judged = await table.step("gate", Judged, work.gate, plan, evidence)
    waived = "" if judged.verdict == "pass" else table.waived(judged)
    if judged.verdict != "pass" and not waived:
        return Ending("inconclusive" if judged.verdict == "inconclusive" else "rejected", judged.says)

    rolled = await table.step("rollout", Rolled, work.rollout, plan, evidence, waived)
    if rolled.state == "inconclusive":
        return Ending("inconclusive", rolled.says)
    settled = await table.step("settle", Settled, work.settle, released, rolled)
    return Ending(rolled.state, f"{rolled.says} {settled.says}")


def too_few(plan: Plan, harvested: Harvested) -> str:
    """Why a turn that nobody asked for ends without a candidate."""
    missing = plan.policy.data.min_new - harvested.new
    return (
        f"{harvested.new} new rows with a person's correction or label are too few to learn from: {missing} more are needed "
        f"(data.min_new is {plan.policy.data.min_new})."
    )


class Asks(NoriaError):
    """A person must decide before this step."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.says, code="asks")
        self.step = step


class Failed(NoriaError):
    """A step failed, for a reason that trying again at once does not mend."""

    def __init__(self, step: Step, says: str) -> None:
        super().__init__(says, code="step_failed")
        self.step = step


Keep = Callable[[Step], Awaitable[None]]
"""Keeps a step as it stands now, durably, before it returns. Raises where this process has been replaced."""


class Table:
    """The steps of a turn as they were when this process took it up, and what it adds."""

    def __init__(self, refresh: Refresh, keep: Keep, now_ns: Callable[[], int]) -> None:
        self._refresh = refresh
        self._keep = keep
        self._now_ns = now_ns
        self._steps = {s.name: s for s in refresh.steps}

    async def step(self, name: StepName, type: type[T], do: Callable[..., Awaitable[T]], *reads: Any) -> T:
        """What a step gives: from the table where it is done with these inputs, else by doing it. Raises `Asks`, `Failed`."""
        key, known = inputs(name, *reads), self._steps[name]
        if known.state == "done" and known.inputs == key:
            return msgspec.convert(known.output, type)
        if name != "gate" and name in self._refresh.plan.policy.ask and not self._word("approve", name):
            raise Asks(Step(name, "asks", key, attempt=known.attempt, says=f"A person is asked before the step {name}."))
        going = known.output if known.inputs == key else {}
        begun = Step(name, "running", key, going, self._now_ns(), attempt=known.attempt + 1)
        await self._put(begun)
        try:
            found = await do(*reads)
        except NoriaError as e:
            if e.status == 503 or e.code == STALE:
                raise
            at = self._steps[name]
            raise Failed(replace(at, state="failed", ended_ns=self._now_ns(), says=e.text), f"{name}: {e.text}") from e
        output = msgspec.to_builtins(found)
        done = replace(begun, state="done", output=output, ended_ns=self._now_ns(), says=str(output["says"]))
        await self._put(done)
        return found

    async def note(self, name: StepName, facts: dict[str, Any]) -> None:
        """Keep what a running step has begun (ids of jobs), so that others can find and end it."""
        await self._put(replace(self._steps[name], output=facts))

    def waived(self, judged: Judged) -> str:
        """Who lets the candidate pass, and why; empty where nobody does. Raises `Asks` where somebody is to be asked."""
        if (word := self._word("waive", "gate")) is not None:
            return word
        if "gate" in self._refresh.plan.policy.ask:
            raise Asks(replace(self._steps["gate"], state="asks", says=f"The gate does not let it pass. {judged.says}"))
        return ""

    def _word(self, action: str, step: StepName) -> str | None:
        """The latest of such words: who, and why."""
        said = [w for w in self._refresh.words if w.action == action and w.step == step]
        return f"{said[-1].by}: {said[-1].why}" if said else None

    async def _put(self, step: Step) -> None:
        await self._keep(step)
        self._steps[step.name] = step


def inputs(name: StepName, *reads: Any) -> str:
    """The key of a step: the hash of its name and all that it reads."""
    return digest(msgspec.json.encode([name, *reads], order="deterministic"))
