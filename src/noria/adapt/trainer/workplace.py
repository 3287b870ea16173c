"""What every trainer does with its folder: read the job, keep others out, tell its progress, end whole or say why not."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import msgspec

from noria.contracts.error import NoriaError
from noria.contracts.training import Failure, Made, Progress, TrainingJob, TrainingResult
from noria.kit.atomic import write_whole

JOB, PROGRESS, RESULT, FAILURE, LOG = "job.json", "progress.jsonl", "result.json", "failure.json", "trainer.log"


class TrainingFailed(NoriaError):
    """A trainer gives up; the message is for the one who started it."""


class Line(msgspec.Struct, frozen=True):
    """One row of the train or validation file."""

    id: str
    messages: tuple[dict[str, Any], ...]
    answer: str


class Workplace:
    """A job's folder while its trainer runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = msgspec.json.decode((folder / JOB).read_bytes(), type=TrainingJob)
        self.began = time.monotonic()
        self._lock = (folder / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingFailed("Another trainer works in this folder.", code="already_running") from None
        self._progress = _appendable(folder / PROGRESS)

    def tell(self, phase: Any, *, step: int = 0, steps: int = 0, note: str = "", **figures: float | None) -> None:
        """One line of progress; it is there for readers at once."""
        line = Progress(time.time_ns(), phase, step=step, steps=steps, note=note, **figures)
        self._progress.write(msgspec.json.encode(line) + b"\n")
        self._progress.flush()

    def rows(self, name: str) -> list[Line]:
        """The rows of a file in the folder, in its order. Raises `TrainingFailed` with the line that is wrong."""
        decoder = msgspec.json.Decoder(Line)
        found: list[Line] = []
        try:
            with (self.folder / name).open("rb") as file:
                for line in file:
                    found.append(decoder.decode(line))  # noqa: PERF401  the error names the line by how many were read
        except FileNotFoundError:
            raise TrainingFailed(f"The file {name} is not in {self.folder}.", code="rows_missing") from None
        except msgspec.MsgspecError as e:
            raise TrainingFailed(f"{name}:{len(found) + 1}: {e}", code="rows_invalid") from e
        return found

    def made(self, name: str, role: str) -> Made:
        """A file of the folder as the result tells of it."""
        path = self.folder / name
        return Made(name, role, sha256_of(path), path.stat().st_size)

    def finish(self, result: TrainingResult) -> None:
        """The last file that a job writes."""
        (self.folder / FAILURE).unlink(missing_ok=True)
        write_whole(self.folder / RESULT, msgspec.json.format(msgspec.json.encode(result)))
        self.tell("done", step=result.steps, steps=result.steps)

    def spent(self) -> dict[str, Any]:
        """Seconds, CPU seconds and peak resident bytes of this process so far."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "seconds": round(time.monotonic() - self.began, 3),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 3),
            "peak_bytes": used.ru_maxrss * 1024,
        }


def run(argv: Sequence[str], train: Callable[[Workplace], TrainingResult]) -> int:
    """A trainer's whole life: exit code 0 with `result.json`, or 1 with `failure.json`. Its output goes to `trainer.log`."""
    folder = Path(argv[-1]).absolute()
    _log_into(folder / LOG)
    try:
        place = Workplace(folder)
        if not (folder / RESULT).exists():
            place.finish(train(place))
    except NoriaError as e:
        print(e.text, file=sys.stderr, flush=True)  # noqa: T201  stderr is the trainer's log
        if e.code != "already_running":
            failure = Failure(e.message, e.hint or "", e.code or "training_failed")
            write_whole(folder / FAILURE, msgspec.json.encode(failure))
        return 1
    return 0


def environment(*packages: str) -> dict[str, str]:
    """Versions of packages that are there, the interpreter and the processor."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"python": platform.python_version(), "machine": platform.machine(), "processor": _processor()}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _appendable(path: Path) -> IO[bytes]:
    """The file, open at its end, without the half line that a killed predecessor may have left."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)
    return path.open("ab")


def _log_into(path: Path) -> None:
    """Everything that this process prints from now on goes into `path`, native libraries included."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
