"""Training jobs in the keeper: started by the `JobRunner`, watched by their folders. The keeper computes nothing of them (ADR 23).

A job lives in `NORIA_HOME/training/<tenant>/<id>/`. What runs it is an attempt, `<id>.<n>` of the runner: a job that was
killed or stopped goes on in its folder as the next attempt.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from noria.adapt import job as folder_of_job
from noria.adapt import memory
from noria.app.datasets import Datasets
from noria.contracts.dataset import Row
from noria.contracts.error import Conflict, NotFound, RequestError
from noria.contracts.port import JobRunner
from noria.contracts.training import Checked, Lora, Progress, Schedule, TrainingJob, TrainingResult
from noria.kit.atomic import write_whole
from noria.kit.ids import uuid7
from noria.kit.memory import available
from noria.release import catalogue
from noria.settings.train import TrainSettings

META = "meta.json"
NUMBER = "train_"
"""Begins the id of a job."""
PAGE = 1000
"""Rows read at once."""
MOST_LINES = 2000
"""Lines of progress given out at once; of more, every so many-th step."""
State = Literal["waiting", "running", "done", "failed", "lost", "stopped"]
Note = Callable[[str, str, str, dict[str, Any]], Awaitable[None]]
"""(kind, actor, target, detail): keeps an event."""


class Wish(msgspec.Struct, frozen=True):
    """What a caller says of a job; the rest is worked out."""

    dataset: str
    """Name of a dataset, or id of a version, or its beginning."""
    base: str = "smollm2-135m"
    method: Literal["sft", "tiny"] = "sft"
    system: str = ""
    train: str = "train"
    """Split that is trained on."""
    validation: str = "validation"
    """Split that is held out; left out where the version has none."""
    lora: Lora = Lora()
    schedule: Schedule = Schedule()
    seed: int = 0
    memory: int = 0
    outputs: tuple[Literal["adapter_gguf", "merged_f16", "merged_q8_0", "merged_q4_k_m"], ...] = ("adapter_gguf",)
    id: str = ""
    """A UUID: the job's id after `train_`. The same again means the job that is there."""


class _Meta(msgspec.Struct, frozen=True):
    """`meta.json`: what the folder's contract does not tell."""

    created_ns: int
    actor: str
    attempt: int = 1
    stopped: bool = False
    predicted: int = 0
    """Bytes of memory; 0 = not predicted."""


class Shown(msgspec.Struct, frozen=True):
    """A job as it stands. `progress` are the lines since `after`, `next` the place to go on from."""

    id: str
    state: State
    job: TrainingJob
    created_ns: int
    attempt: int
    predicted_bytes: int
    now: Progress | None
    """The latest line of progress."""
    progress: tuple[Progress, ...] = ()
    next: int = 0
    result: TrainingResult | None = None
    checked: tuple[Checked, ...] = ()
    """Of its files: whether they answer as the trained model does."""
    reason: str = ""
    """Why it failed, and what to do."""
    folder: str = ""


class Trainings:
    """Jobs of a tenant. Raises `NotFound` for jobs, datasets and models that are not there."""

    def __init__(self, home: Path, tenant: str, runner: JobRunner, datasets: Datasets, note: Note) -> None:
        self._home = home.absolute()
        self._tenant = tenant
        self._runner = runner
        self._datasets = datasets
        self._note = note
        self.settings = TrainSettings()

    async def start(self, wish: Wish, actor: str) -> Shown:
        """Begin a job. Raises `RequestError` where it cannot be (no rows, too little memory), before anything is written."""
        if wish.id and (self._folder(NUMBER + wish.id) / META).exists():
            return await self.show(NUMBER + wish.id)
        name, _, version_id = wish.dataset.partition("@")
        by_id = wish.dataset.startswith("d1:")
        version = await self._datasets.find(self._tenant, "" if by_id else name, wish.dataset if by_id else version_id)
        rows = await self._rows(version.id, wish.train)
        held_out = await self._rows(version.id, wish.validation) if wish.validation in version.splits else []
        if not rows:
            known = ", ".join(f"{s} ({n})" for s, n in version.splits.items())
            raise RequestError(
                f"{wish.dataset} has no rows in the split {wish.train!r}.",
                code="no_rows",
                param="train",
                hint=f"It has: {known}.",
            )
        job = await asyncio.to_thread(self._job, wish, version.id, held_out=bool(held_out))
        predicted = await asyncio.to_thread(self._fits, job, rows) if job.method != "tiny" else 0
        folder = self._folder(job.id)
        meta = _Meta(time.time_ns(), actor, predicted=predicted)
        files: dict[str, Iterable[tuple[str, Row]]] = {job.train: rows}
        if held_out:
            files[job.validation] = held_out
        try:
            await asyncio.to_thread(folder_of_job.write, folder, job, files)
            await asyncio.to_thread(_write_meta, folder, meta)
            await self._run(job, meta)
        except Conflict:
            return await self.show(job.id)  # two calls with one id: the other one was faster, with the same files
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        await self._note("training.started", actor, job.id, {"dataset": version.id, "base": job.base, "method": job.method})
        return await self.show(job.id)

    async def resume(self, id: str, actor: str) -> Shown:
        """Have a job that was killed, stopped or has failed go on from its last checkpoint."""
        shown = await self.show(id)
        if shown.state in ("waiting", "running", "done"):
            raise RequestError(f"The job {id} is {shown.state}; there is nothing to resume.", code="not_resumable", status=409)
        old = await asyncio.to_thread(_meta_of, self._folder(id))
        meta = msgspec.structs.replace(old, attempt=old.attempt + 1, stopped=False)
        await asyncio.to_thread(_write_meta, self._folder(id), meta)
        await self._run(shown.job, meta)
        await self._note("training.resumed", actor, id, {"attempt": meta.attempt})
        return await self.show(id)

    async def stop(self, id: str, actor: str) -> Shown:
        """End a job; what it has is kept, so that it can be resumed. Idempotent."""
        shown = await self.show(id)
        if shown.state in ("waiting", "running"):
            folder = self._folder(id)
            meta = await asyncio.to_thread(_meta_of, folder)
            await asyncio.to_thread(_write_meta, folder, msgspec.structs.replace(meta, stopped=True))
            await self._runner.stop(self._tenant, f"{id}.{meta.attempt}")
            await self._note("training.stopped", actor, id, {})
        return await self.show(id)

    async def show(self, id: str, after: int = 0) -> Shown:
        """A job with its progress from byte `after` of its file on."""
        return await self._look(id, after)

    async def _look(self, id: str, after: int | None) -> Shown:
        folder = self._folder(id)
        job = await asyncio.to_thread(folder_of_job.job_of, folder)
        if job is None:
            raise NotFound.nearest("training job", id, [p.name for p in self._root.glob(f"{NUMBER}*")], code="job_not_found")
        meta = await asyncio.to_thread(_meta_of, folder)
        run = await self._runner.state(self._tenant, f"{id}.{meta.attempt}")
        return await asyncio.to_thread(_shown, folder, job, meta, run.state if run else "lost", after)

    async def several(self) -> list[Shown]:
        """Every job, newest first, without the lines of progress; of the losses the first and the last."""
        names = sorted((p.parent.name for p in self._root.glob(f"{NUMBER}*/{META}")), reverse=True)
        return [_brief(await self._look(name, None)) for name in names]

    @property
    def _root(self) -> Path:
        return self._home / "training" / self._tenant

    def _folder(self, id: str) -> Path:
        if not id.startswith(NUMBER) or not id.removeprefix(NUMBER).replace("-", "").isalnum():
            raise NotFound(f"There is no training job {id[:80]!r}.", code="job_not_found")
        return self._root / id

    async def _rows(self, version: str, split: str) -> list[tuple[str, Row]]:
        """Rows of a split by row id; those that were erased are gone. Raises `RequestError` for a damaged one."""
        found: list[tuple[str, Row]] = []
        after = ""
        while page := await self._datasets.page(self._tenant, version, after=after, limit=PAGE, split=split):
            after = page[-1].id
            for shown in page:
                if shown.state in ("damaged", "missing"):
                    raise RequestError(
                        f"The row {shown.id} is {shown.state}. {shown.detail}", code="row_damaged", param="dataset"
                    )
                if shown.row is not None:
                    found.append((shown.id, shown.row))
        return found

    def _job(self, wish: Wish, version: str, *, held_out: bool) -> TrainingJob:
        weights, sha256 = Path(), ""
        if wish.method != "tiny":
            manifest = catalogue.verify(self._home, wish.base)
            weights, sha256 = catalogue.weights(self._home, wish.base), manifest.files[0].sha256
        return TrainingJob(
            id=NUMBER + (wish.id or uuid7()), method=wish.method, base=wish.base if wish.method != "tiny" else "", weights=str(weights),
            weights_sha256=sha256, dataset=version, train="train.jsonl", validation="validation.jsonl" if held_out else "",
            system=wish.system, lora=wish.lora, schedule=wish.schedule, seed=wish.seed, threads=self.settings.threads,
            memory_limit=wish.memory or self.settings.memory, outputs=wish.outputs, cache=str(self._home / "cache"),
        )  # fmt: skip

    def _fits(self, job: TrainingJob, rows: list[tuple[str, Row]]) -> int:
        """Predicted bytes. Raises `RequestError` where they are not to be had."""
        prediction = memory.predict(memory.shape_of(Path(job.weights)), job, _longest(job, rows), _longest_answer(rows))
        memory.demand(prediction, job.memory_limit, available())
        return prediction.peak

    async def _run(self, job: TrainingJob, meta: _Meta) -> None:
        python = self.settings.python or sys.executable
        path = None
        if python != sys.executable:
            path = await asyncio.to_thread(folder_of_job.linked, self._home / "cache" / "trainer")
        folder = self._folder(job.id)
        argv = folder_of_job.argv(job, folder, python, path)
        await self._runner.start(self._tenant, f"{job.id}.{meta.attempt}", argv, str(folder))


def _longest(job: TrainingJob, rows: list[tuple[str, Row]]) -> int:
    """An upper bound of the tokens of the longest row that is trained on: a byte-level tokenizer never makes more of them than
    there are bytes, and a template adds a few a message.
    """
    system = len(job.system.encode()) + 16

    def size(row: Row) -> int:
        said = sum(len(str(m.get("content") or "").encode()) + 16 for m in row.messages)
        return system + said + len((row.answer or row.label).encode())

    return min(max(size(row) for _, row in rows), job.schedule.max_length)


def _longest_answer(rows: list[tuple[str, Row]]) -> int:
    """The same of the longest answer."""
    return max(len((row.answer or row.label).encode()) + 4 for _, row in rows)


def _brief(shown: Shown) -> Shown:
    if shown.result is None or len(shown.result.loss) < 2:
        return shown
    ends = (shown.result.loss[0], shown.result.loss[-1])
    return msgspec.structs.replace(shown, result=msgspec.structs.replace(shown.result, loss=ends))


def _thinned(lines: list[Progress]) -> tuple[Progress, ...]:
    """At most about `MOST_LINES`: every line that begins a phase, the last one, and every so many-th of the others."""
    every = -(-len(lines) // MOST_LINES)
    if every <= 1:
        return tuple(lines)
    last = len(lines) - 1
    return tuple(p for i, p in enumerate(lines) if i in (0, last) or i % every == 0 or p.phase != lines[i - 1].phase)


def _shown(folder: Path, job: TrainingJob, meta: _Meta, run: str, after: int | None) -> Shown:
    lines, place = ([], 0) if after is None else folder_of_job.progress_of(folder, after)
    latest = lines[-1] if lines else folder_of_job.latest_of(folder)
    shown = partial(
        Shown, id=job.id, job=job, created_ns=meta.created_ns, attempt=meta.attempt, predicted_bytes=meta.predicted,
        now=latest, progress=_thinned(lines), next=place, folder=str(folder),
    )  # fmt: skip
    result = folder_of_job.result_of(folder)
    if result is not None:
        return shown(state="done", result=result, checked=folder_of_job.checked_of(folder))
    if run in ("waiting", "running"):
        return shown(state="running" if run == "running" else "waiting")
    if meta.stopped:
        return shown(state="stopped")
    failure = folder_of_job.reason_of(folder)
    return shown(state="lost" if run == "lost" else "failed", reason=f"{failure.message} {failure.hint}".strip())


def _write_meta(folder: Path, meta: _Meta) -> None:
    write_whole(folder / META, msgspec.json.encode(meta))


def _meta_of(folder: Path) -> _Meta:
    return msgspec.json.decode((folder / META).read_bytes(), type=_Meta)
