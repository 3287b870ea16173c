"""Evaluations in the keeper: what was asked for, by whom, how far it is, what came of it. The work is a job's (`app.evaluate_job`).

`NORIA_HOME/evaluations/<id>/` is the job's folder (`job.json` → `progress.jsonl` → `result.json`), `evaluations/answers/` holds
scored answers by suite and release: an item that was answered is not asked again, by whatever evaluation.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from noria.app.datasets import Datasets
from noria.app.definition import stored_definition
from noria.app.files import Files
from noria.app.registry import Registry, event, put
from noria.contracts.dataset import Version
from noria.contracts.error import ConfigError, Conflict, NotFound, RequestError, StoreError, Unavailable
from noria.contracts.evaluation import Pass, Report, Suite
from noria.contracts.port import JobRunner, Write
from noria.contracts.release import Release, Snapshot
from noria.contracts.stage import Check
from noria.evaluate.suite import Judge, checked, completed
from noria.gateway.ticket import sign_pass
from noria.kit import extension
from noria.kit.atomic import write_whole
from noria.kit.ids import uuid7

EVALUATION = "evaluation"
FOLDER = "evaluations"
PASS_NS = 12 * 3600 * 1_000_000_000
COMPARE_WITHIN = 120.0
"""Seconds."""
MOST_AT_ONCE = 64
State = Literal["running", "done", "failed", "stopped"]


class Evaluation(msgspec.Struct, frozen=True):
    """One evaluation as it is kept. `report` has no items: they lie apart, sealed."""

    id: str
    suite: Suite
    app: str
    release: str
    release_name: str
    made_ns: int
    by: str
    concurrency: int = 4
    state: State = "running"
    attempts: int = 1
    says: str = ""
    report: Report | None = None

    @property
    def job(self) -> str:
        """The id of the job that works on it now."""
        return f"{self.id}.{self.attempts}"


class Plan(msgspec.Struct, frozen=True):
    """What an evaluation is asked to do. `release` is a name or an id; `suite` is resolved already."""

    suite: Suite
    app: str
    release: str
    concurrency: int = 4
    fresh: bool = False
    """Ask everything anew, whatever was answered before."""
    by: str = "cli"
    id: str = ""
    """A UUID: the evaluation's id after `eval_`. The same again means the one that is there."""


class Order(msgspec.Struct, frozen=True):
    """`job.json`."""

    id: str
    home: str
    app: str
    release: str
    release_name: str
    suite: Suite
    concurrency: int
    fresh: bool = False


class Result(msgspec.Struct, frozen=True):
    """`result.json`: a report, or why there is none."""

    report: Report | None = None
    error: str = ""


class Evaluations:
    """What `/api/evaluations` is served from."""

    def __init__(
        self, home: Path, registry: Registry, *, datasets: Datasets, jobs: JobRunner, files: Callable[[], Files],
        current: Callable[[], Snapshot | None], secret: Callable[[], Awaitable[bytes]],
    ) -> None:  # fmt: skip
        self._home = home
        self._registry = registry
        self._datasets = datasets
        self._jobs = jobs
        self._files = files
        self._current = current
        self._secret = secret
        self._settling = asyncio.Lock()

    async def suites(self) -> dict[str, Suite]:
        """Those that noria.yaml declares, by name."""
        stored = await stored_definition(self._registry.records, self._registry.tenant)
        return stored.suites if stored else {}

    # -- what is asked ------------------------------------------------------------------------------

    async def resolved(self, suite: Suite) -> Suite:
        """`suite` with its dataset (`name`, `name@d1:…`, `d1:…`) as a version id, checked as far as it can be without its rows.

        Raises `NotFound`, `RequestError`.
        """
        version = await self.version(suite.dataset)
        if suite.split not in version.splits:
            raise NotFound.nearest("split", suite.split, sorted(version.splits), code="split_not_found")
        if suite.limit < 0:
            raise RequestError("`limit` is 0 or more.", code="invalid_value", param="limit")
        try:
            made = replace(suite, dataset=version.id, params=checked(suite.params))
            Judge(completed(made, ["a"]), load)
        except ConfigError as e:  # whoever sent it is told, it is not our configuration
            raise RequestError(e.message, code="invalid_suite", hint=e.hint) from e
        return made

    async def version(self, named: str) -> Version:
        """The dataset version that `name`, `name@d1:…` or `d1:…` means. Raises `NotFound`."""
        name, _, version = ("", "", named) if named.startswith("d1:") else named.partition("@")
        return await self._datasets.find(self._registry.tenant, name, version)

    async def start(self, plan: Plan) -> Evaluation:
        """Begin. Raises `NotFound` for an app or release that is not served, `Unavailable` where there is no gateway to ask."""
        if plan.id and (known := await self._registry.get(EVALUATION, f"eval_{plan.id}", Evaluation)):
            return await self._settled(known[0])
        release = self._release(plan.app, plan.release)
        self._reachable()
        suite = await self.resolved(plan.suite)
        e = Evaluation(
            "eval_" + (plan.id or uuid7()), suite, plan.app, release.id, release.name, time.time_ns(), plan.by,
            min(max(1, plan.concurrency), MOST_AT_ONCE),
        )  # fmt: skip
        note = {"suite": suite.name, "dataset": suite.dataset, "release": release.id}
        try:
            await self._commit(put(EVALUATION, e.id, e, expect=0), "evaluation.begun", plan.by, note)
        except Conflict:  # two calls with one id: the other one was faster
            return (await self._find(e.id))[0]
        await self._run(e, fresh=plan.fresh)
        return e

    async def resume(self, id: str, by: str) -> Evaluation:
        """Go on with one that failed, was stopped, or met failures: what was answered is not asked again."""
        e, version = await self._find(id)
        if e.state == "running":
            raise Conflict(f"The evaluation {id} is running.", code="still_running")
        if e.state == "done" and e.report is not None and not e.report.estimates["errors"].value:
            raise Conflict(f"The evaluation {id} is complete.", code="complete", hint="Start another with `fresh`.")
        self._release(e.app, e.release)
        self._reachable()
        e = replace(e, state="running", attempts=e.attempts + 1, says="", report=None)
        await self._commit(put(EVALUATION, id, e, expect=version), "evaluation.resumed", by, {})
        await self._run(e)
        return e

    async def stop(self, id: str, by: str) -> Evaluation:
        """End one that runs; what was answered stays known."""
        e, version = await self._find(id)
        if e.state != "running":
            return e
        ended = replace(e, state="stopped", says=f"Stopped by {by}.")  # first, so that nobody takes the job's end for a failure
        await self._commit(put(EVALUATION, id, ended, expect=version), "evaluation.stopped", by, {})
        await self._jobs.stop(self._registry.tenant, e.job)
        return ended

    async def remove(self, id: str, by: str) -> None:
        """Forget an evaluation. Answers that others share stay."""
        e, version = await self._find(id)
        if e.state == "running":
            raise Conflict(f"The evaluation {id} is running.", code="still_running", hint="Stop it first.")
        await self._commit(Write(EVALUATION, id, None, expect=version), "evaluation.removed", by, {})
        await self._files().drop(self._registry.tenant, _place(id))

    async def all(self, *, app: str = "", suite: str = "") -> list[Evaluation]:
        """Evaluations, newest first, as they stand."""
        known = [e for e, _ in (await self._registry.all(EVALUATION, Evaluation)).values()]
        wanted = [e for e in known if app in ("", e.app) and suite in ("", e.suite.name)]
        return [await self._settled(e) for e in sorted(wanted, key=lambda e: e.id, reverse=True)]

    async def get(self, id: str) -> Evaluation:
        """One, as it stands; without the items of its report. Raises `NotFound`."""
        return (await self._find(id))[0]

    async def whole(self, id: str) -> Report:
        """The report of a finished evaluation, with its items. Raises `NotFound`, `Conflict` where there is none yet."""
        e = await self.get(id)
        if e.report is None:
            raise Conflict(f"The evaluation {id} has no report: it is {e.state}. {e.says}".strip(), code="no_report")
        data = await self._files().take(self._registry.tenant, _place(id))
        if data is None:
            raise NotFound(f"The items of {id} are gone.", code="items_gone", hint="Run the suite again.")
        return await asyncio.to_thread(msgspec.msgpack.decode, data, type=Report)

    async def alike(self, report: Report) -> list[Evaluation]:
        """Finished evaluations of the same app and suite, of other releases: the latest of each, at most six."""
        found: dict[str, Evaluation] = {}
        for e in await self.all(app=report.app):
            same = e.report is not None and e.report.hash == report.hash and e.report.suite.dataset == report.suite.dataset
            if same and e.release != report.release and e.suite.split == report.suite.split:
                found.setdefault(e.release, e)
        return list(found.values())[:6]

    def progress(self, e: Evaluation) -> dict[str, Any]:
        """How far the job is, in its own words."""
        with suppress(OSError, msgspec.DecodeError):
            for line in reversed(self._folder(e.id).joinpath("progress.jsonl").read_bytes().splitlines()):
                if line.endswith(b"}"):
                    found: dict[str, Any] = msgspec.json.decode(line)
                    return found
        return {}

    async def passed(self, id: str) -> str:
        """What the job of an evaluation asks the gateway with."""
        e = await self.get(id)
        return sign_pass(Pass(id, e.app, e.release, time.time_ns() + PASS_NS), await self._secret())

    async def _commit(self, write: Write, kind: str, by: str, detail: Mapping[str, Any]) -> None:
        """One write with its event; nobody's configuration changes by it."""
        tenant = self._registry.tenant
        await self._registry.records.commit(tenant, [write, event(tenant, kind, by, write.id, dict(detail))], quiet=True)

    # -- the job ------------------------------------------------------------------------------------

    async def _run(self, e: Evaluation, *, fresh: bool = False) -> None:
        folder = self._folder(e.id)
        order = Order(e.id, str(self._home.absolute()), e.app, e.release, e.release_name, e.suite, e.concurrency, fresh)

        def lay_out() -> None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / "result.json").unlink(missing_ok=True)
            write_whole(folder / "job.json", msgspec.json.encode(order))

        await asyncio.to_thread(lay_out)
        argv = [sys.executable, "-P", "-m", "noria.app.evaluate_job", str(folder)]
        await self._jobs.start(self._registry.tenant, e.job, argv, str(folder))

    async def _find(self, id: str) -> tuple[Evaluation, int]:
        found = await self._registry.get(EVALUATION, id, Evaluation)
        if found is None:
            raise NotFound(f"There is no evaluation {id!r}.", code="evaluation_not_found", hint="See `noria eval list`.")
        if found[0].state != "running":
            return found
        await self._settled(found[0])
        again = await self._registry.get(EVALUATION, id, Evaluation)
        assert again is not None, "nobody removes one that runs"
        return again

    async def _settled(self, e: Evaluation) -> Evaluation:
        """`e`, with what its job has left in the meantime taken in."""
        if e.state != "running":
            return e
        async with self._settling:
            now = await self._jobs.state(self._registry.tenant, e.job)
            if now is None or now.state in ("waiting", "running"):
                return (
                    e
                    if now is not None or time.time_ns() - e.made_ns < 10**10
                    else await self._ended(e, "failed", "It was never begun.")
                )
            result = await asyncio.to_thread(_result, self._folder(e.id) / "result.json")
            if result is None or result.report is None:
                why = result.error if result is not None else now.detail or f"The job ended with {now.exit_code}."
                return await self._ended(e, "failed", why)
            await self._files().put(self._registry.tenant, _place(e.id), msgspec.msgpack.encode(result.report))
            return await self._ended(replace(e, report=replace(result.report, items=())), "done", "")

    async def _ended(self, e: Evaluation, state: State, says: str) -> Evaluation:
        e = replace(e, state=state, says=says)
        detail = {"state": state, "release": e.release, "suite": e.suite.name}
        before = await self._registry.get(EVALUATION, e.id, Evaluation)
        if before is not None and before[0].state == "running":
            await self._commit(put(EVALUATION, e.id, e, expect=before[1]), "evaluation.ended", "job", detail)
            if state == "done":
                await asyncio.to_thread(shutil.rmtree, self._folder(e.id), ignore_errors=True)
        return e

    def _folder(self, id: str) -> Path:
        return self._home / FOLDER / id

    def _release(self, app: str, wanted: str) -> Release:
        snapshot = self._current()
        apps = snapshot.apps if snapshot else {}
        if app not in apps:
            raise NotFound.nearest("app", app, sorted(apps), code="app_not_found")
        releases = apps[app].releases
        if not wanted and len(releases) == 1:
            return next(iter(releases.values()))
        found = releases.get(wanted) or next((r for r in releases.values() if wanted and r.id == wanted), None)
        if found is None:
            raise NotFound.nearest("release", wanted, sorted(releases), code="release_not_found")
        return found

    def _reachable(self) -> None:
        if not (self._home / "run" / "address.json").exists():
            raise Unavailable(
                "Noria is not running: an evaluation asks its gateway.", code="not_running", hint="Start `noria up`."
            )


def load(id: str) -> type[Check]:
    """The class of a metric."""
    return extension.load("checks", id, Check)


def metrics_of(suite: Suite) -> Mapping[str, Check]:
    """The metrics of a suite that was run, made anew."""
    return Judge(suite, load).checks


def _place(id: str) -> str:
    return f"evaluations/{id}"


def _result(path: Path) -> Result | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.MsgspecError):
        return None


async def compared(asked: bytes) -> bytes:
    """The comparison, by a process of its own: the keeper answers others meanwhile (ADR 23)."""
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "noria.app.evaluate_compare",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(COMPARE_WITHIN):
            told, wrong = await program.communicate(asked)
    finally:
        if program.returncode is None:
            program.kill()
    if program.returncode == 2:
        error = msgspec.json.decode(told)
        raise RequestError(error["message"], code=error["code"], hint=error["hint"])
    if program.returncode != 0:
        raise StoreError(f"The comparison failed: {wrong[-400:].decode(errors='replace')}")
    return told
