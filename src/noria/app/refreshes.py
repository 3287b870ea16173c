"""Refreshes in the keeper: what was asked for, the table of steps, who decided what, and the process that works on each.

The work is a job's (`app.refresh_job`), which reads its turn, does a step, tells it, and goes on. A turn whose process died is
given to another one, which runs no step again that is done with the same inputs. Everything that is kept of a turn is one record.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from noria.app.refresh_plan import House, Wish, plan
from noria.app.registry import event, put
from noria.contracts.drift import DriftReport
from noria.contracts.error import Conflict, NoriaError, NotFound, RequestError, StoreError
from noria.contracts.port import JobRunner, Write
from noria.contracts.refresh import OPEN, STEPS, Action, Refresh, RefreshJob, State, Step, StepName, Told, Word
from noria.contracts.rollout import Rollout
from noria.journeys.model import STALE
from noria.kit.atomic import write_whole
from noria.kit.ids import digest, uuid7
from noria.settings.refresh import RefreshSettings

log = logging.getLogger("noria.refreshes")

REFRESH, OPEN_OF = "refresh", "refresh_open"
"""Record kinds: turns by id; the one that an app has under way, by app."""
FOLDER = "refreshes"
LOOK_S = 1.0
PUT_OFF_S = 60.0
DEATHS = 20
"""Processes of one step that may die, one after the other, before a person has to look."""
TRIES = 5
"""Of a change, where somebody else changes the turn meanwhile."""
_FROM: dict[Action, tuple[State, ...]] = {
    "approve": ("asks",), "reject": ("asks",), "waive": ("asks", "rejected", "inconclusive"),
    "stop": ("running", "asks"), "resume": ("stopped", "failed", "inconclusive"),
}  # fmt: skip
_REASON: frozenset[Action] = frozenset({"reject", "waive"})


class Refreshes:
    """All turns of the tenant."""

    def __init__(self, house: House, jobs: JobRunner) -> None:
        self._house = house
        self._jobs = jobs
        self._progress: dict[str, dict[str, Any]] = {}
        """How far the step under way is, by turn: not kept."""
        self._later: dict[str, float] = {}
        """When (monotonic) a turn that keeps dying, or an app whose turn does not begin, is tried again."""
        self._news = asyncio.Event()
        self._one = asyncio.Lock()

    # -- what is asked ------------------------------------------------------------------------------

    async def all(self, app: str = "") -> list[Refresh]:
        """Turns, of an app or all, newest first."""
        found = [r for r, _ in (await self._house.registry.all(REFRESH, Refresh)).values() if app in ("", r.app)]
        return sorted(found, key=lambda r: r.id, reverse=True)

    async def get(self, id: str) -> tuple[Refresh, int]:
        """A turn with its record's version, by its id, or the latest of an app by the app's name. Raises `NotFound`."""
        found = await self._house.registry.get(REFRESH, id, Refresh)
        if found is None:
            latest = next(iter(await self.all(id)), None)
            found = await self._house.registry.get(REFRESH, latest.id, Refresh) if latest else None
        if found is None:
            raise NotFound(f"No refresh {id!r}, nor one of an app of that name.", code="refresh_not_found")
        return found

    def progress(self, refresh: Refresh) -> dict[str, Any]:
        """How far its step is, in the words of whoever works on it; empty where nobody does."""
        return self._progress.get(refresh.id, {}) if refresh.state == "running" else {}

    # -- what is done -------------------------------------------------------------------------------

    async def start(self, wish: Wish) -> Refresh:
        """Begin a turn. Raises `NotFound`, `RequestError` (409 where one is under way) before anything is kept."""
        house = self._house
        async with self._one:
            if there := await house.registry.get(OPEN_OF, wish.app, str):
                raise RequestError(
                    f"A refresh of {wish.app} is under way ({there[0]}).", code="refresh_under_way", status=409,
                    hint=f"See `noria refresh watch {there[0]}`, or stop it.",
                )  # fmt: skip
            made = Refresh(
                "refresh_" + uuid7(), wish.app, wish.cause, wish.by, await plan(house, wish), time.time_ns(),
                alert_ns=wish.alert_ns,
            )  # fmt: skip
            detail = {"refresh": made.id, "cause": made.cause, "plan": msgspec.to_builtins(made.plan)}
            await house.records.commit(
                house.tenant,
                [
                    put(REFRESH, made.id, made, expect=0),
                    put(OPEN_OF, made.app, made.id, expect=0),
                    event(house.tenant, "refresh.started", wish.by, made.app, detail),
                ],
                quiet=True,
            )
        await self._run(made)
        return made

    async def say(self, id: str, action: Action, *, by: str, why: str = "") -> Refresh:
        """A person decides. Raises `RequestError` where that makes no sense now, or a reason is missing."""
        if action in _REASON and not why.strip():
            raise RequestError(f"To {action} needs a reason.", code="reason_missing", param="why")
        async with self._one:
            for left in range(TRIES, 0, -1):
                try:
                    before, version = await self.get(id)
                    changed = await self._said(before, version, Word(action, before.at, by, time.time_ns(), why.strip()))
                except Conflict:
                    if left == 1:
                        raise
                else:
                    break
        if action == "stop":
            await self._still(before)
        elif changed.state == "running":
            if action == "resume":
                await self._rollout_on(changed, by)
            await self._run(changed)
        return changed

    async def take(self, id: str, told: Told) -> Refresh:
        """What the process of a turn says. Raises `Conflict` for a process that another one has replaced, or a turn that ended."""
        house = self._house
        for left in range(TRIES, 0, -1):
            old, version = await self.get(id)
            _listened(told.attempt, old)
            new, kind = _after(old, told, time.time_ns())
            if new == old:
                return old
            writes = [put(REFRESH, old.id, new, expect=version)]
            if kind:
                writes.append(event(house.tenant, kind, f"refresh:{old.id}", old.app, _evidence(new, told)))
            if new.state not in OPEN:
                writes.append(Write(OPEN_OF, old.app, None))
            try:
                await house.records.commit(house.tenant, writes, quiet=True)
            except Conflict:
                if left == 1:
                    raise
                continue
            self._progress.pop(old.id, None)
            return new
        raise AssertionError("the last try returns or raises")

    async def tell(self, id: str, attempt: int, progress: dict[str, Any]) -> None:
        """How far the step under way is. Raises `Conflict` as `take`."""
        _listened(attempt, (await self.get(id))[0])
        self._progress[id] = progress | {"attempt": attempt, "at_ns": time.time_ns()}

    async def alert(self, report: DriftReport) -> None:
        """There is drift: look at once."""
        log.info("drift of %s: %s", report.app, report.says)
        self._news.set()

    async def run(self) -> None:
        """Begin what is due and take up what has died, until cancelled."""
        while True:
            self._news.clear()
            try:
                await self.look()
            except (StoreError, NoriaError) as e:
                log.warning("refreshes stand still for a moment: %s", e.text)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()

    async def look(self) -> None:
        """One look at every turn under way, and at what should begin one."""
        for name, _ in (await self._house.registry.all(OPEN_OF, str)).values():
            found = await self._house.registry.get(REFRESH, name, Refresh)
            if found is not None and found[0].state == "running":
                await self._look_at(*found)
        for wish in await self._due():
            if time.monotonic() < self._later.get(wish.app, 0.0):
                continue
            try:
                await self.start(wish)
            except NoriaError as e:
                self._later[wish.app] = time.monotonic() + PUT_OFF_S
                log.warning("the refresh of %s does not begin: %s", wish.app, e.text)

    # -- inside -------------------------------------------------------------------------------------

    async def _look_at(self, refresh: Refresh, version: int) -> None:
        """Give a turn whose process has ended to another one."""
        state = await self._jobs.state(self._house.tenant, f"{refresh.id}.{refresh.attempt}")
        if state is None:
            await self._run(refresh)
            return
        if state.state in ("waiting", "running") or time.monotonic() < self._later.get(refresh.id, 0.0):
            return
        now = await self._house.registry.get(REFRESH, refresh.id, Refresh)
        if now is None or now[1] != version:
            return  # its process had said its last word just before it ended
        deaths = refresh.deaths + 1
        if deaths > DEATHS:
            says = f"The process of this refresh died {deaths} times at the step {refresh.at}: {state.detail}"
            over = replace(refresh, state="failed", says=says, ended_ns=time.time_ns())
            detail = {"refresh": refresh.id, "state": "failed", "says": says}
            await self._commit(over, version, event(self._house.tenant, "refresh.failed", "keeper", refresh.app, detail))
            return
        log.info("the process of %s has ended (%s): another one takes it up", refresh.id, state.detail)
        self._later[refresh.id] = time.monotonic() + min(30.0, 0.1 * 2**deaths)
        again = replace(refresh, attempt=refresh.attempt + 1, deaths=deaths)
        with suppress(Conflict):
            await self._commit(again, version)
            await self._run(again)

    async def _run(self, refresh: Refresh) -> None:
        home = self._house.home.absolute()
        folder = home / FOLDER / refresh.id
        order = msgspec.json.encode(RefreshJob(refresh.id, str(home), refresh.attempt))
        await asyncio.to_thread(_prepare, folder, order)
        argv = [sys.executable, "-P", "-m", "noria.app.refresh_job", str(folder)]
        with suppress(Conflict):  # started before
            await self._jobs.start(self._house.tenant, f"{refresh.id}.{refresh.attempt}", argv, str(folder))

    async def _due(self) -> list[Wish]:
        """Turns that drift or the schedule asks for."""
        snapshot, found = self._house.current(), []
        definition = await self._house.definition()
        every = definition.refreshes if definition and snapshot else {}
        declared = {app: RefreshSettings(**given) for app, given in every.items() if given.get("start", "manual") != "manual"}
        if not declared:
            return []
        past = await self.all()
        states = {s.app: s for s in await self._house.drift.states()}
        now = time.time_ns()
        for app, settings in declared.items():
            mine = [r for r in past if r.app == app]
            if any(r.state in OPEN for r in mine):
                continue
            drift = states.get(app)
            if settings.start == "drift" and drift is not None and drift.firing:
                ended = max((r.ended_ns for r in mine), default=0)
                known = any(r.alert_ns == drift.since_ns and r.state != "inconclusive" for r in mine)
                if not known and ended + settings.cool_down * 1e9 <= now:
                    found.append(Wish(app, "drift", "drift", alert_ns=drift.since_ns, report=drift.report))
            began = max((r.began_ns for r in mine), default=0)
            if settings.start == "schedule" and began + settings.every * 1e9 <= now:
                found.append(Wish(app, "schedule", "schedule"))
        return found

    async def _said(self, refresh: Refresh, version: int, word: Word) -> Refresh:
        """The turn after a person's word, kept."""
        if refresh.state not in _FROM[word.action]:
            what = f"The refresh is {refresh.state}: there is nothing to {word.action}."
            raise RequestError(what, code="wrong_state", status=409)
        waivable = refresh.step("gate").state in ("done", "asks") and refresh.step("rollout").state == "waiting"
        if word.action == "waive" and not waivable:
            raise RequestError("No gate has kept it from going on.", code="wrong_state", status=409)
        if word.action == "resume" and refresh.state == "inconclusive" and refresh.step("rollout").state == "waiting":
            what = "It has ended for want of evidence, and would again."
            raise RequestError(what, code="wrong_state", status=409, hint="Begin another refresh, or waive its gate.")
        if word.action == "approve" and refresh.at == "gate":
            raise RequestError(
                "The gate does not let it pass.", code="gate_failed", status=409, hint="Waive it, with a reason, or reject it."
            )
        words = (*refresh.words, word)
        if word.action in ("stop", "reject"):
            state: Literal["stopped", "rejected"] = "stopped" if word.action == "stop" else "rejected"
            says = f"{word.by}: {word.why}" if word.why else f"{state.capitalize()} by {word.by}."
            changed = replace(refresh, words=words, state=state, ended_ns=word.at_ns, says=says)
        else:
            if refresh.state not in OPEN and (there := await self._house.registry.get(OPEN_OF, refresh.app, str)):
                raise RequestError(
                    f"Another refresh of {refresh.app} is under way ({there[0]}).", code="refresh_under_way", status=409
                )
            steps = _undone(refresh, "rollout" if refresh.state == "inconclusive" and word.action == "resume" else None)
            changed = replace(
                refresh, words=words, state="running", ended_ns=0, says="", attempt=refresh.attempt + 1, deaths=0, steps=steps
            )
        kind = {"approve": "approved", "reject": "rejected", "waive": "waived", "stop": "stopped", "resume": "resumed"}
        detail = {"refresh": refresh.id, "step": word.step, "why": word.why, "state": changed.state}
        if word.action == "waive":
            detail["findings"] = refresh.step("gate").output.get("findings", [])
        await self._commit(
            changed, version, event(self._house.tenant, f"refresh.{kind[word.action]}", word.by, refresh.app, detail)
        )
        return changed

    async def _commit(self, refresh: Refresh, version: int, *more: Write) -> None:
        opening = put(OPEN_OF, refresh.app, refresh.id) if refresh.state in OPEN else Write(OPEN_OF, refresh.app, None)
        writes = [put(REFRESH, refresh.id, refresh, expect=version), opening, *more]
        await self._house.records.commit(self._house.tenant, writes, quiet=True)

    async def _still(self, refresh: Refresh) -> None:
        """End the processes of a turn that was stopped; a rollout of its stays at its step."""
        house = self._house
        await self._jobs.stop(house.tenant, f"{refresh.id}.{refresh.attempt}")
        train, evaluate = refresh.step("train"), refresh.step("evaluate")
        with suppress(NoriaError):
            if train.state == "running" and house.trainings and (job := train.output.get("job")):
                await house.trainings.stop(str(job), f"refresh:{refresh.id}")
        for job in evaluate.output.get("jobs", ()) if evaluate.state == "running" and house.evaluations else ():
            with suppress(NoriaError):
                await house.evaluations.stop(str(job), f"refresh:{refresh.id}")  # type: ignore[union-attr]  # there, see above
        if (rollout := await self._rollout(refresh)) and rollout.state == "running":
            with suppress(NoriaError):
                await house.rollouts.override(
                    rollout.id, "pause", actor=f"refresh:{refresh.id}", why="The refresh was stopped."
                )

    async def _rollout_on(self, refresh: Refresh, by: str) -> None:
        """Let a rollout go on that stood still with its turn, or had run out of patience."""
        rollout = await self._rollout(refresh)
        if rollout is not None and rollout.state in ("paused", "inconclusive"):
            await self._house.rollouts.override(rollout.id, "resume", actor=by, why="The refresh goes on.")

    async def _rollout(self, refresh: Refresh) -> Rollout | None:
        mine = [r for r in await self._house.rollouts.all(refresh.app) if r.by == f"refresh:{refresh.id}"]
        return mine[0] if mine else None


def _prepare(folder: Path, order: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(folder / "job.json", order)


def _listened(attempt: int, refresh: Refresh) -> None:
    """Raise `Conflict` where a process has been replaced, or its turn is over."""
    if attempt != refresh.attempt or refresh.state != "running":
        words = f"The refresh {refresh.id} is {refresh.state}, at attempt {refresh.attempt}: this one is over."
        raise Conflict(words, code=STALE)


def _undone(refresh: Refresh, again: StepName | None) -> tuple[Step, ...]:
    """Its steps, with what failed or waited for a person, and `again`, to be done."""
    return tuple(
        Step(s.name, attempt=s.attempt) if s.state in ("failed", "asks") or s.name == again else s for s in refresh.steps
    )


def _after(refresh: Refresh, told: Told, now_ns: int) -> tuple[Refresh, str]:
    """(the turn after its process has said something, the event that tells of it, or nothing)."""
    new, kind = refresh, ""
    if (step := told.step) is not None:
        steps = tuple(step if s.name == step.name else s for s in _from(refresh.steps, step))
        kind = {"done": "refresh.step_done", "asks": "refresh.asks"}.get(step.state, "")
        new = replace(new, steps=steps)
        if step.state == "done":
            new = replace(new, deaths=0)
            if step.name == "release":
                new = replace(new, release=str(step.output["id"]), release_name=str(step.output["name"]))
        if step.state == "asks":
            new = replace(new, state="asks", says=step.says)
    if told.ending is not None:
        new, kind = (
            replace(new, state=told.ending.state, says=told.ending.says, ended_ns=now_ns),
            f"refresh.{told.ending.state}",
        )
    if told.failed:
        new, kind = replace(new, state="failed", says=told.failed, ended_ns=now_ns), "refresh.failed"
    return new, kind


def _from(steps: Sequence[Step], changed: Step) -> tuple[Step, ...]:
    """The steps, where one that begins anew, by other inputs, makes those after it undone."""
    at = STEPS.index(changed.name)
    if changed.state != "running" or steps[at].inputs == changed.inputs:
        return tuple(steps)
    return (*steps[: at + 1], *(Step(s.name, attempt=s.attempt) for s in steps[at + 1 :]))


def _evidence(refresh: Refresh, told: Told) -> dict[str, Any]:
    """What an event keeps: figures, ids and sentences; outputs of steps hold no text of rows."""
    found: dict[str, Any] = {"refresh": refresh.id, "state": refresh.state, "says": refresh.says}
    if told.step is not None:
        output = told.step.output
        found |= {"step": told.step.name, "inputs": told.step.inputs, "says": told.step.says, "output": output}
        found["output_hash"] = digest(msgspec.json.encode(output, order="deterministic"))
    if told.ending is not None:
        found["release"] = refresh.release
    return found
