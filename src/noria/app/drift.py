"""Drift in the keeper: gives the exchanges out, starts the job that compares them, keeps its report and the alert.

The keeper computes nothing of it: `noria.app.drift_job` does, as a process of its own, over the management API.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from noria.app.feedback import Feedbacks
from noria.app.registry import Registry, event, put
from noria.contracts.drift import DriftJob, DriftPolicy, DriftReport, DriftState, Sample, Windows
from noria.contracts.error import Conflict, NoriaError, NotFound, RequestError, Unavailable
from noria.contracts.port import Clock, JobRunner, RecordStore
from noria.contracts.release import Snapshot
from noria.contracts.trace import Clause, ExchangeRow, TraceQuery
from noria.dialects.native import assemble_any, text_asked, text_of_answer
from noria.gateway.admit import PINNED
from noria.kit.atomic import write_whole
from noria.kit.ids import uuid7
from noria.observe.drift import after

log = logging.getLogger("noria.drift")

STATE, REPORT = "drift", "drift-report"
KEPT = 100
"""Reports of an app that are kept."""
LONGEST = 2000
"""Characters of a text that are given out."""
LOOK_S = 5.0
MOST = 1000
"""Exchanges of one question."""
LABELS_AT_ONCE = 10_000

Opens = Callable[[DriftReport], Awaitable[None]]
"""Is told of an alert."""


class WithBodies(Protocol):
    """A row with its bodies in the clear."""

    @property
    def row(self) -> ExchangeRow:
        """The exchange."""
        ...

    @property
    def request(self) -> bytes | None:
        """What the model was sent."""
        ...

    @property
    def answer(self) -> bytes | None:
        """What it gave."""
        ...


class House(Protocol):
    """What is needed of a keeper (`app.keeper.Keeper`)."""

    home: Path
    tenant: str
    registry: Registry
    records: RecordStore
    feedback: Feedbacks

    def current(self) -> Snapshot | None:
        """The snapshot in force."""
        ...

    async def rows(self, query: TraceQuery) -> tuple[list[tuple[ExchangeRow, str, str]], int]:
        """One page of rows, and how many match."""
        ...

    async def recorded(self, named: Sequence[tuple[ExchangeRow, str, str]]) -> Sequence[WithBodies]:
        """Rows with their bodies."""
        ...


class Drifts:
    """The watch over every app of the tenant."""

    def __init__(self, keeper: House, jobs: JobRunner | None, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock
        self.jobs = jobs
        self._running: dict[str, str] = {}
        """Jobs under way, by app."""
        self.opens: Opens | None = None

    # -- what is asked ------------------------------------------------------------------------------

    def policy(self, app: str) -> DriftPolicy | None:
        """How an app is watched; None where it is only when somebody asks. Raises `NotFound` for an unknown app."""
        snapshot = self._keeper.current()
        apps = snapshot.apps if snapshot else {}
        if app not in apps:
            raise NotFound.nearest("app", app, sorted(apps), code="app_not_found")
        return apps[app].drift

    async def states(self) -> list[DriftState]:
        """How every app stands that is watched or has ever been looked at, by name."""
        found = {n: s for n, (s, _) in (await self._keeper.registry.all(STATE, DriftState)).items()}
        snapshot = self._keeper.current()
        for name, app in snapshot.apps.items() if snapshot else ():
            if app.drift is not None:
                found.setdefault(name, DriftState(name))
        return [found[n] for n in sorted(found)]

    async def state(self, app: str) -> DriftState:
        """How an app stands."""
        found = await self._keeper.registry.get(STATE, app, DriftState)
        return found[0] if found else DriftState(app)

    async def reports(self, app: str, limit: int = 20) -> list[DriftReport]:
        """Reports of an app, newest first."""
        return (await self._of(app))[::-1][:limit]

    async def report(self, app: str, id: str) -> DriftReport:
        """One report. Raises `NotFound`."""
        found = await self._keeper.registry.get(REPORT, f"{app}/{id}", DriftReport)
        if found is None:
            raise NotFound(f"No drift report {id!r} of {app!r}.", code="report_not_found")
        return found[0]

    async def _of(self, app: str) -> list[DriftReport]:
        found = await self._keeper.records.scan(self._keeper.tenant, REPORT, after=f"{app}/", limit=KEPT + 10)
        return [msgspec.msgpack.decode(r.value, type=DriftReport) for r in found if r.id.startswith(f"{app}/")]

    async def samples(self, app: str, since_ns: int, until_ns: int, limit: int) -> tuple[list[Sample], int]:
        """The newest exchanges of an app in [since, until), at most `limit`, and how many there are. Those that asked for a
        release by name (evaluations) are left out.
        """
        clauses = [
            Clause("app", "=", app), Clause("kind", "=", "chat"), Clause("time", ">=", str(since_ns)),
            Clause("time", "<", str(until_ns)), Clause("tag", "!=", "=".join(PINNED)),
        ]  # fmt: skip
        named, total = await self._keeper.rows(TraceQuery(tuple(clauses), limit=min(limit, MOST)))
        labels = await _labels(self._keeper.feedback, self._keeper.tenant, app, since_ns)
        return [_sample(r, labels) for r in await self._keeper.recorded(named)], total

    # -- what is done -------------------------------------------------------------------------------

    async def start(self, app: str, windows: Windows | None = None, *, sample: int = 1000) -> str:
        """Start a comparison; the job's id. The windows are those of the app's settings, up to now, where none are given.

        Raises `Conflict` where one is under way.
        """
        if self.jobs is None:
            raise Unavailable("This keeper runs no jobs.", code="no_jobs")
        policy = self.policy(app) or DriftPolicy()
        if app in self._running:
            raise Conflict(f"Drift of {app!r} is being looked at already.", code="drift_running")
        if windows is None:
            now = self._clock.now_ns()
            split = now - int(policy.recent_seconds * 1e9)
            windows = Windows(split - int(policy.reference_seconds * 1e9), split, now)
        if not windows.from_ns < windows.split_ns < windows.until_ns:
            raise RequestError("The windows must follow each other: from < split < until.", code="invalid_value")
        home = self._keeper.home.absolute()
        job = DriftJob(f"drift_{uuid7()}", str(home), app, windows, policy.level, policy.sensitivity, sample)
        folder = home / "drift" / job.id
        await asyncio.to_thread(_prepare, folder, msgspec.json.encode(job))
        self._running[app] = job.id
        try:
            await self.jobs.start(self._keeper.tenant, job.id, [sys.executable, "-m", "noria.app.drift_job", "."], str(folder))
        except NoriaError:
            del self._running[app]
            raise
        return job.id

    async def take(self, report: DriftReport) -> DriftState:
        """Keep a report; the alert that it starts or ends is one commit with it."""
        keeper, app = self._keeper, report.app
        policy = self.policy(app) or DriftPolicy()
        while True:
            found = await keeper.registry.get(STATE, app, DriftState)
            old, version = found or (DriftState(app), 0)
            if old.report == report.id:
                return old
            state, news = after(old, report, policy)
            writes = [put(REPORT, f"{app}/{report.id}", report), put(STATE, app, state, expect=version)]
            if news:
                writes.append(event(keeper.tenant, f"drift.{news}", "drift", app, _evidence(report)))
            try:
                await keeper.records.commit(keeper.tenant, writes, quiet=True)
            except Conflict:
                continue
            break
        self._running.pop(app, None)
        await self._forget(app)
        if news == "detected" and self.opens is not None:
            await self.opens(report)
        return state

    async def _forget(self, app: str) -> None:
        old = (await self._of(app))[:-KEPT]
        if old:
            gone = [put(REPORT, f"{app}/{r.id}", r) for r in old]
            await self._keeper.records.commit(
                self._keeper.tenant, [msgspec.structs.replace(w, value=None) for w in gone], quiet=True
            )

    async def run(self) -> None:
        """Start what is due, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except NoriaError as e:
                log.warning("drift is not watched for a moment: %s", e.text)

    async def look(self) -> list[str]:
        """Start every comparison that is due; their apps."""
        await self._ended()
        snapshot, started = self._keeper.current(), []
        for name, app in snapshot.apps.items() if snapshot else ():
            if app.drift is None or name in self._running or not app.drift.every_seconds:
                continue
            state = await self.state(name)
            if state.checked_ns + app.drift.every_seconds * 1e9 <= self._clock.now_ns():
                await self.start(name)
                started.append(name)
        return started

    async def _ended(self) -> None:
        """Notice jobs that ended without a report; they are tried again when the app is due next."""
        for app, job in list(self._running.items()):
            state = await self.jobs.state(self._keeper.tenant, job) if self.jobs else None
            if state is not None and state.state in ("waiting", "running"):
                continue
            if self._running.pop(app, None) is not None and (state is None or state.state != "done"):
                log.warning("the drift job %s of %s failed: %s", job, app, state.detail if state else "it is not known")
                await self._put_off(app)

    async def _put_off(self, app: str) -> None:
        found = await self._keeper.registry.get(STATE, app, DriftState)
        old, version = found or (DriftState(app), 0)
        later = msgspec.structs.replace(old, checked_ns=self._clock.now_ns())
        await self._keeper.records.commit(self._keeper.tenant, [put(STATE, app, later, expect=version)], quiet=True)

    async def wait(self, app: str, id: str) -> DriftReport | None:
        """The report of a job that has ended well; None while it runs. Raises `Unavailable` where it failed."""
        state = await self.jobs.state(self._keeper.tenant, id) if self.jobs else None
        if state is None:
            raise NotFound(f"No drift job {id!r}.", code="job_not_found")
        if state.state in ("waiting", "running"):
            return None
        if state.state != "done":
            raise Unavailable(f"The drift job {id} ended as {state.state}: {state.detail}", code="drift_failed")
        return await self.report(app, id.removeprefix("drift_"))


def _prepare(folder: Path, job: bytes) -> None:
    folder.mkdir(parents=True, mode=0o700)
    write_whole(folder / "job.json", job)


def _evidence(report: DriftReport) -> dict[str, Any]:
    """What an event keeps of a report: figures and ids, no text but single words."""
    drifted = [msgspec.to_builtins(s) for s in report.signals if s.standing == "drifted"]
    return {
        "report": report.id,
        "says": report.says,
        "windows": msgspec.to_builtins(report.windows),
        "signals": drifted,
        "examples": list(report.examples),
    }


async def _labels(feedback: Feedbacks, tenant: str, app: str, since_ns: int) -> dict[str, str]:
    """Labels that feedback gave, by exchange."""
    told = await feedback.listed(
        tenant,
        lambda s: s.feedback.kind == "label" and s.joined is not None and s.joined.app == app,
        since_ns=since_ns,
        limit=LABELS_AT_ONCE,
    )
    return {t.joined.exchange: t.feedback.text for t in reversed(told) if t.joined is not None}


def _sample(found: WithBodies, labels: dict[str, str]) -> Sample:
    row = found.row
    text = _asked(row, found.request)
    return Sample(
        row.id, row.started_ns, text[:LONGEST], len(text), _answered(row, found.answer)[:LONGEST], row.outcome,
        tuple(sorted({r.verdict.check for r in row.rulings})),
        tuple(sorted({r.verdict.check for r in row.rulings if not r.verdict.passed})),
        labels.get(row.id, ""), row.conversation,
    )  # fmt: skip


def _asked(row: ExchangeRow, request: bytes | None) -> str:
    body = _object(request)
    return text_asked(body, row.dialect if row.native else "openai") if body else ""


def _answered(row: ExchangeRow, answer: bytes | None) -> str:
    dialect: Any = row.dialect if row.native else "openai"
    body = assemble_any(answer, dialect) if answer and row.answer_is_sse else _object(answer)
    if not body or dialect != "openai":
        return text_of_answer(body, dialect) if body else ""
    choices = body.get("choices") or [{}]
    return str((choices[0].get("message") or {}).get("content") or "")


def _object(data: bytes | None) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(data) if data else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return body if isinstance(body, dict) else {}
