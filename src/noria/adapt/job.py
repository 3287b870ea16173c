"""A training job as a folder: written, watched while it runs, and read when it has ended. No library of training is needed.

`job.json` and the files of rows go in; `progress.jsonl` grows; `result.json`, written last and whole, means success;
`failure.json` says why a trainer gave up, and `trainer.log` holds everything it printed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from noria.adapt.trainer.workplace import FAILURE, JOB, LOG, PROGRESS, RESULT, Line
from noria.contracts.dataset import Row
from noria.contracts.error import NoriaError, RequestError
from noria.contracts.training import Checked, Failure, Progress, TrainingJob, TrainingResult
from noria.kit.atomic import write_whole

T = TypeVar("T")
TAIL = 4096
"""Bytes of the trainer's log that are looked at for a reason, and of its progress for the last line."""


def write(folder: Path, job: TrainingJob, rows: dict[str, Iterable[tuple[str, Row]]]) -> None:
    """A new job's folder: the rows by file name, each with its id, then `job.json`. Raises `RequestError` without rows."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, some in rows.items():
        lines = [msgspec.json.encode(Line(row_id, row.messages, row.answer or row.label)) for row_id, row in some]
        if name == job.train and not lines:
            raise RequestError(f"The dataset version {job.dataset} has no rows to train on.", code="no_rows", param="dataset")
        write_whole(folder / name, b"".join(line + b"\n" for line in lines))
    write_whole(folder / JOB, msgspec.json.format(msgspec.json.encode(job)))


def argv(job: TrainingJob, folder: Path, python: str, path: Path | None) -> tuple[str, ...]:
    """What runs the job. `path` is a folder that holds a link to this package, for an interpreter that has none of its own."""
    prefix = ("/usr/bin/env", f"PYTHONPATH={path}") if path is not None else ()
    return (*prefix, python, "-m", f"noria.adapt.trainer.{job.method}", str(folder))


def linked(root: Path) -> Path:
    """A folder `root` with nothing but a link to the package that runs here: another interpreter gets Noria's trainers by
    it, and none of the libraries beside them.
    """
    import noria

    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    here, link = Path(noria.__file__).parent, root / "noria"
    if not link.is_symlink() or link.readlink() != here:
        aside = root / f".noria-{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(here)
        aside.replace(link)
    return root


def job_of(folder: Path) -> TrainingJob | None:
    """The job of a folder; None where there is none."""
    return _load(folder / JOB, TrainingJob)


def result_of(folder: Path) -> TrainingResult | None:
    """What came of it; None as long as nothing has."""
    return _load(folder / RESULT, TrainingResult)


def checked_of(folder: Path) -> tuple[Checked, ...]:
    """What came of comparing its files with the trained model (`adapt.equivalence`), by file."""
    found = [_load(path, Checked) for path in sorted(folder.glob("checked-*.json"))]
    return tuple(c for c in found if c is not None)


def progress_of(folder: Path, start: int = 0) -> tuple[list[Progress], int]:
    """(lines of progress from byte `start` on, where to go on reading). A line still being written is left for later.

    Where the file is shorter than `start` (a resumed trainer removed half a line), reading goes on at its end.
    """
    try:
        with (folder / PROGRESS).open("rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return [], start
    whole = data.rfind(b"\n") + 1
    decoder = msgspec.json.Decoder(Progress)
    size = (folder / PROGRESS).stat().st_size
    return [decoder.decode(line) for line in data[:whole].splitlines()], min(start + whole, size)


def latest_of(folder: Path) -> Progress | None:
    """The last whole line of progress, without reading those before it; None as long as there is none."""
    try:
        with (folder / PROGRESS).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            data = file.read()
    except FileNotFoundError:
        return None
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return msgspec.json.decode(lines[-1], type=Progress) if lines else None


def reason_of(folder: Path) -> Failure:
    """Why a job that ended without a result did: in the trainer's own words, else by the last thing in its log."""
    said = _load(folder / FAILURE, Failure)
    if said is not None:
        return said
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    last = lines[-1].strip() if lines else "It left no word; it was killed, or the machine ran out of memory."
    return Failure(
        last, hint=f"See {folder / LOG}; started again, the job goes on from its last checkpoint.", code="trainer_died"
    )


def _load(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as e:
        raise NoriaError(f"{path} cannot be read: {e}.", code="job_damaged") from e
