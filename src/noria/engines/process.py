"""Jobs as processes of this machine that outlive their caller. URL `process:///absolute/folder` or `process://relative/folder`.

`<folder>/<tenant>/<id>/` holds `start.json` (what to run), `lock`, `running.json`, `output` (stdout and stderr) and, at
the end, `exit.json`. Beside each job a keeper process (`python -m noria.engines.process <that folder>`) starts it in a
process group of its own, waits for it and writes the exit code whole, whoever else has died meanwhile. The keeper
holds an `flock` for as long as it lives: no lock and no `exit.json` means that the job is `lost`. A job dies with its keeper, so
that one which is begun again in the same folder is alone there.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar
from urllib.parse import quote

import msgspec

from noria.contracts.error import ConfigError, Conflict, StoreError
from noria.contracts.port import Engine, JobRunner, JobState
from noria.kit.atomic import write_whole
from noria.kit.orphan import PR_SET_PDEATHSIG

GRACE_S = 5.0
"""From SIGTERM to SIGKILL."""
_LOCK_FD = 3
T = TypeVar("T")


class Start(msgspec.Struct, frozen=True):
    """`start.json`."""

    id: str
    argv: tuple[str, ...]
    folder: str


class Running(msgspec.Struct, frozen=True):
    """`running.json`: the keeper, and the leader of the job's process group."""

    keeper: int
    group: int


class Exit(msgspec.Struct, frozen=True):
    """`exit.json`; `code` is negative for a signal, 127 where the program could not be started."""

    code: int
    detail: str = ""


def path_of(url: str) -> Path:
    """The folder that a URL names; raises `ConfigError` where it names none."""
    scheme, separator, path = url.partition("://")
    if scheme != "process" or not separator or path.strip("/") == "":
        raise ConfigError(f"{url!r} names no folder.", hint="Write process:///absolute/folder or process://relative/folder.")
    return Path(path).absolute()


class ProcessJobs:
    """`JobRunner` by processes."""

    def __init__(self, url: str) -> None:
        self._place = path_of(url)
        self._children: set[int] = set()

    async def start(self, tenant: str, id: str, argv: Sequence[str], folder: str) -> None:
        """As `JobRunner.start`."""
        await asyncio.to_thread(self._start, self._job(tenant, id), Start(id, tuple(argv), folder))

    async def state(self, tenant: str, id: str) -> JobState | None:
        """As `JobRunner.state`; `detail` says why a job failed."""
        self._reap()
        return await asyncio.to_thread(_state, self._job(tenant, id), id)

    async def stop(self, tenant: str, id: str) -> None:
        """As `JobRunner.stop`. Returns when it has ended."""
        job = self._job(tenant, id)
        deadline = time.monotonic() + GRACE_S + 5
        told = False
        while (now := await asyncio.to_thread(_state, job, id)) and now.state in {"waiting", "running"}:
            running = _load(job / "running.json", Running)
            if running and not told:
                _signal(running.keeper, signal.SIGTERM)
                told = True
            if running and time.monotonic() > deadline:
                _signal(-running.group, signal.SIGKILL)
                _signal(running.keeper, signal.SIGKILL)
            await asyncio.sleep(0.02)
        self._reap()

    def _job(self, tenant: str, id: str) -> Path:
        if not tenant or not id:
            raise StoreError("process: a job needs a tenant and an id.")
        return self._place / _part(tenant) / _part(id)

    def _start(self, job: Path, start: Start) -> None:
        with _typed("start"):
            job.parent.mkdir(parents=True, exist_ok=True)
            try:
                job.mkdir(mode=0o700)
            except FileExistsError as e:
                raise Conflict(f"process: the job {start.id!r} was started before.") from e
            absolute = msgspec.structs.replace(start, folder=str(Path(start.folder).absolute()))
            write_whole(job / "start.json", msgspec.json.encode(absolute))
            lock = os.open(job / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                # Taken before the keeper exists and passed on to it: the job is never seen without its lock.
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._children.add(_spawn_keeper(job, lock))
            finally:
                os.close(lock)

    def _reap(self) -> None:
        """Let go of ended keepers that this process started."""
        for pid in tuple(self._children):
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._children.discard(pid)


def _spawn_keeper(job: Path, lock: int) -> int:
    argv = [sys.executable, "-P", "-m", "noria.engines.process", str(job)]
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_DUP2, lock, _LOCK_FD),
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(job / "output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions, setsid=True)


def _state(job: Path, id: str) -> JobState | None:
    if not job.is_dir():
        return None
    # The lock is looked at first: once it is free, `exit.json` is there or never will be.
    held = _held(job / "lock")
    ended = _load(job / "exit.json", Exit)
    if ended is not None:
        return JobState(id, "done" if ended.code == 0 else "failed", ended.code, ended.detail)
    begun = (job / "running.json").exists()
    if held:
        return JobState(id, "running" if begun else "waiting")
    if not begun and time.time() - job.stat().st_mtime < GRACE_S:
        return JobState(id, "waiting")  # its starter is between making the folder and taking the lock
    return JobState(id, "lost", detail="Its keeper process was killed, or the machine went down.")


def _held(path: Path) -> bool:
    """Whether somebody holds the lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _load(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _part(text: str) -> str:
    return quote(text, safe="").replace(".", "%2E")


@contextmanager
def _typed(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise StoreError(f"process: {what}: {e.strerror or e}") from e


class _Stopped(Exception):
    """SIGTERM has come."""


def keep(job: Path) -> None:
    """Run the job of a folder and record how it ended. The keeper's whole life."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Stopped

    os.set_inheritable(_LOCK_FD, False)
    start = msgspec.json.decode((job / "start.json").read_bytes(), type=Start)
    try:
        process = subprocess.Popen(
            start.argv, cwd=start.folder, stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=partial(_die_with, os.getpid()),  # noqa: PLW1509  there are no threads in this process
        )  # fmt: skip
    except (OSError, ValueError) as e:
        write_whole(job / "exit.json", msgspec.json.encode(Exit(127, f"It could not be started: {e}")))
        return
    try:
        signal.signal(signal.SIGTERM, stop)
        write_whole(job / "running.json", msgspec.json.encode(Running(os.getpid(), process.pid)))
        code, detail = process.wait(), ""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except _Stopped:
        code, detail = _end(process), "It was stopped."
    if code and not detail:
        detail = f"It ended by signal {-code}." if code < 0 else f"It ended with exit code {code}; see {job / 'output'}."
    write_whole(job / "exit.json", msgspec.json.encode(Exit(code, detail)))


def _die_with(parent: int) -> None:
    """SIGKILL for this process where its parent dies (prctl(2); it survives execve)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(125)


def _end(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM to the job's whole group, SIGKILL after the grace; what the leader ended with."""
    _signal(-process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    _signal(-process.pid, signal.SIGKILL)
    return process.wait()


ENGINE = Engine(serves={JobRunner: ProcessJobs})

if __name__ == "__main__":
    keep(Path(sys.argv[1]))
