"""Keep child processes running: restart with backoff, orderly stop, rolling replacement, logs that rotate.

One asyncio task a child. A child is `starting` until its `ready` says yes, `running` from then on,
`backoff` between a crash and the next start (0.2 s doubling to 10 s, forgotten after 30 s of health),
`stopped` when it was asked to end. Children are tied to this process (`kit.orphan`): they do not outlive it, and
where it is killed they are killed at once, so that whoever starts it again finds ports, locks and sockets free.
Each is a process group of its own: Ctrl-C in a terminal reaches this process alone, which then ends them in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import IO, Literal

import msgspec

from noria.contracts.error import Unavailable
from noria.kit.orphan import tied

State = Literal["starting", "running", "backoff", "stopped"]
OnState = Callable[[str, State, str], None]
"""(child, state, detail): detail says how the last run ended."""
POLL = 0.05
"""Seconds between questions to `ready`."""


class Child(msgspec.Struct, frozen=True):
    """What to run. `ready` is asked until true; without it a child counts as running once it has started."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] | None = None
    """None = this process's environment."""
    pass_fds: tuple[int, ...] = ()
    ready: Callable[[], Awaitable[bool]] | None = None
    grace: float = 5.0
    """Seconds between SIGTERM and SIGKILL."""


class Backoff(msgspec.Struct, frozen=True):
    """Seconds: first wait after a crash, the longest wait, and the health that forgets past crashes."""

    first: float = 0.2
    longest: float = 10.0
    healthy: float = 30.0

    def wait(self, crashes: int) -> float:
        """How long to wait after the `crashes`-th crash in a row (1 = the first)."""
        # capped before the power, which would overflow after a thousand crashes
        return min(self.longest, self.first * 2.0 ** min(crashes - 1, 32))


class RotatingLog:
    """Appends lines of bytes to `path`; at `limit` bytes the file becomes `path.1`, `.1` becomes `.2`, … up to `keep`.

    What the disk refuses is dropped and counted in `lost`: a child must never wait for its log.
    """

    def __init__(self, path: Path, *, limit: int = 4 << 20, keep: int = 3) -> None:
        self.path, self.limit, self.keep = path, limit, keep
        self.lost = 0
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        """Append; rotates before a write that would pass the limit. Never raises for the disk's sake."""
        try:
            file = self._file or self._open()
            if file.tell() and file.tell() + len(data) > self.limit:
                file = self._rotate()
            self.lost += len(data) - (file.write(data) or 0)
        except OSError:
            self.lost += len(data)

    def close(self) -> None:
        """Close the file. Idempotent; a later write opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _open(self) -> IO[bytes]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "ab", buffering=0)
        return self._file

    def _rotate(self) -> IO[bytes]:
        self.close()
        for n in range(self.keep, 0, -1):
            older = self.path if n == 1 else self._numbered(n - 1)
            with contextlib.suppress(FileNotFoundError):
                older.replace(self._numbered(n))
        return self._open()

    def _numbered(self, n: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{n}")


class _Run:
    """One child under care: its task, its process now, and the wish to end."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.state: State = "starting"
        self.detail = ""
        self.process: asyncio.subprocess.Process | None = None
        self.stopping = asyncio.Event()
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps children running until `close`. All methods belong to one event loop."""

    def __init__(
        self, logs: Path, *, on_state: OnState | None = None, backoff: Backoff | None = None, log_limit: int = 4 << 20
    ) -> None:
        self._logs = logs
        self._on_state = on_state
        self._backoff = backoff or Backoff()
        self._log_limit = log_limit
        self._runs: dict[str, _Run] = {}

    def start(self, child: Child) -> None:
        """Begin to keep `child` running. Raises `ValueError` where the name is taken."""
        if child.name in self._runs:
            raise ValueError(f"a child named {child.name!r} is running already")
        self._runs[child.name] = self._begin(child)

    def state(self, name: str) -> tuple[State, str]:
        """(state, detail) of a child; `stopped` for one never started."""
        run = self._runs.get(name)
        return (run.state, run.detail) if run else ("stopped", "")

    def pid(self, name: str) -> int | None:
        """Its process now, or None between two."""
        run = self._runs.get(name)
        return run.process.pid if run and run.process and run.process.returncode is None else None

    async def running(self, name: str, within: float) -> bool:
        """Wait until the child is `running`, at most `within` seconds; whether it is."""
        run = self._runs.get(name)
        return run is not None and await _reaches(run, within)

    async def replace(self, child: Child, within: float) -> bool:
        """Start a new `child`, and when it is running end the old one of that name; whether that came about.

        Where the new one is not running after `within` seconds it is ended and the old one stays.
        """
        old = self._runs.get(child.name)
        new = self._begin(child)
        if not await _reaches(new, within):
            await self._end(new)
            return False
        self._runs[child.name] = new
        if old:
            await self._end(old)
        return True

    async def stop(self, name: str) -> None:
        """End a child: SIGTERM, then SIGKILL after its grace. Returns when it is gone. Idempotent."""
        run = self._runs.pop(name, None)
        if run:
            await self._end(run)

    async def close(self) -> None:
        """End all children at once."""
        await asyncio.gather(*(self.stop(name) for name in list(self._runs)))

    def _begin(self, child: Child) -> _Run:
        run = _Run(child)
        run.task = asyncio.create_task(self._keep(run), name=f"supervise {child.name}")
        return run

    async def _end(self, run: _Run) -> None:
        run.stopping.set()
        if run.task:
            await run.task

    def _tell(self, run: _Run, state: State, detail: str = "") -> None:
        run.state, run.detail = state, detail
        run.changed.set()
        run.changed = asyncio.Event()
        if self._on_state:
            self._on_state(run.child.name, state, detail)

    async def _keep(self, run: _Run) -> None:
        """Start, watch, wait, start again, until asked to end."""
        log = RotatingLog(self._logs / f"{run.child.name}.log", limit=self._log_limit)
        crashes, ended = 0, ""
        try:
            while not run.stopping.is_set():
                self._tell(run, "starting", ended)
                began = monotonic()
                ended = await self._once(run, log)
                if run.stopping.is_set():
                    break
                crashes = 1 if monotonic() - began >= self._backoff.healthy else crashes + 1
                pause = self._backoff.wait(crashes)
                log.write(f"[supervisor] {run.child.name}: {ended}; next start in {pause:.1f} s\n".encode())
                self._tell(run, "backoff", ended)
                await _within(run.stopping.wait(), pause)
        finally:
            log.close()
            self._tell(run, "stopped", ended)

    async def _once(self, run: _Run, log: RotatingLog) -> str:
        """One life of the child, to its end; how it ended, in words."""
        child = run.child
        try:
            process = await asyncio.create_subprocess_exec(
                *tied(child.argv, signal_at_death=signal.SIGKILL),
                env=None if child.env is None else dict(child.env),
                pass_fds=child.pass_fds,
                process_group=0,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as e:
            return f"could not start: {e}"
        run.process = process
        side = [asyncio.create_task(_copy(process, log)), asyncio.create_task(self._await_ready(run, process))]
        try:
            await _first(process.wait(), run.stopping.wait())
        finally:
            await _terminate(process, child.grace)
            side[1].cancel()
            # a grandchild may hold the pipe open: what was said by now is enough
            await _within(side[0], 0.5)
            await asyncio.gather(*side, return_exceptions=True)
        return _ending(process.returncode)

    async def _await_ready(self, run: _Run, process: asyncio.subprocess.Process) -> None:
        while process.returncode is None:
            if run.child.ready is None or await run.child.ready():
                self._tell(run, "running")
                return
            await asyncio.sleep(POLL)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `path` alone (flock); it holds this process's pid meanwhile. The kernel lets go when a holder dies.

    Raises `Unavailable` that names the holder.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise _held(path, os.pread(descriptor, 32, 0)) from e
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk: held all the same, only without its holder's name
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _held(path: Path, content: bytes) -> Unavailable:
    pid = content.strip().decode("ascii", "replace")
    who = f"process {pid}" if pid else "another process"
    command = ""
    if pid.isdigit():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:120]
    shown = f"{who} ({command})" if command else who
    return Unavailable(
        f"{path.parent} is in use by {shown}.", code="locked", hint=f"Stop it, or use another folder than {path.parent}."
    )


async def _reaches(run: _Run, within: float) -> bool:
    end = monotonic() + within
    while run.state != "running" and (left := end - monotonic()) > 0:
        await _within(run.changed.wait(), left)
    return run.state == "running"


async def _within(what: Awaitable[object], seconds: float) -> None:
    """Wait for `what`, at most so long; it is cancelled then."""
    task = asyncio.ensure_future(what)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _first(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(w) for w in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _terminate(process: asyncio.subprocess.Process, grace: float) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), grace)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _copy(process: asyncio.subprocess.Process, log: RotatingLog) -> None:
    stream = process.stdout
    while stream and (data := await stream.read(1 << 16)):
        log.write(data)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}"
