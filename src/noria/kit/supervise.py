"""Keep child processes running: restart with backoff, orderly stop, rolling replacement, logs that rotate.

One asyncio task a child. A child is `starting` until its `ready` says yes, `running` from then on,
`backoff` between a crash and the next start (0.2 s doubling to 10 s, forgotten after 30 s of health),
`stopped` when it was asked to end. A replaced child `retires`: it may finish what it has begun while its
successor runs. A supervisor that executes itself anew (`hand_over`, `adopt`) keeps its children. Children are tied to this process (`kit.orphan`): they do not outlive it, and
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
from typing import IO, Literal, Protocol

import msgspec

from noria.contracts.error import Unavailable
from noria.kit.orphan import tied

State = Literal["starting", "running", "backoff", "stopped"]
OnState = Callable[[str, State, str], None]
"""(child, state, detail): detail says how the last run ended."""
POLL = 0.05
"""Seconds between questions to `ready`."""
LONGEST_LINE = 1 << 16
"""Bytes of a log line that is cleaned in one piece."""


class Child(msgspec.Struct, frozen=True):
    """What to run. `ready` is asked until true; without it a child counts as running once it has started."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] | None = None
    """None = this process's environment."""
    pass_fds: tuple[int, ...] = ()
    ready: Callable[[int], Awaitable[bool]] | None = None
    """Asked with the process id."""
    grace: float = 5.0
    """Seconds between SIGTERM and SIGKILL."""
    retire: signal.Signals = signal.SIGTERM
    """What tells it that a successor has taken over."""
    retire_grace: float = 5.0
    """Seconds that it then has before it is ended as by `stop`."""


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


class Process(Protocol):
    """What is needed of a child's process, started here or adopted."""

    @property
    def pid(self) -> int:
        """Its id."""
        ...

    @property
    def returncode(self) -> int | None:
        """How it ended, negative for a signal; None while it lives."""
        ...

    async def wait(self) -> int:
        """Its return code, when it has ended."""
        ...

    def send_signal(self, signal: int) -> None:
        """Raises `ProcessLookupError` where it has ended."""
        ...


class Adopted:
    """`Process` of a child that was started before this program replaced the one that started it (execve keeps children)."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._fd = -1
        try:
            self._fd = os.pidfd_open(pid)
        except OSError:
            self._reap()  # ended, and not waited for yet
        else:
            asyncio.get_running_loop().add_reader(self._fd, self._reap)

    async def wait(self) -> int:
        """See `Process`."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signal: int) -> None:
        """See `Process`."""
        if self.returncode is not None:
            raise ProcessLookupError(self.pid)
        os.kill(self.pid, signal)  # it is our child and not waited for: the id cannot be another's

    def _reap(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        try:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            self.returncode = 0
        self._ended.set()


class Heir(msgspec.Struct, frozen=True):
    """One child as it is handed over: its process, and the pipe that its log comes from."""

    name: str
    pid: int
    log: int
    running: bool
    retiring: bool


class _Run:
    """One child under care: its task, its process now, and the wish to end."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.state: State = "starting"
        self.detail = ""
        self.process: Process | None = None
        self.log = -1
        """The pipe that the process writes its log to, our end."""
        self.stopping = asyncio.Event()
        self.retiring = asyncio.Event()
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps children running until `close`. All methods belong to one event loop. `clean` passes over every log line."""

    def __init__(
        self,
        logs: Path,
        *,
        on_state: OnState | None = None,
        backoff: Backoff | None = None,
        log_limit: int = 4 << 20,
        clean: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._logs = logs
        self._on_state = on_state
        self._backoff = backoff or Backoff()
        self._log_limit = log_limit
        self._clean = clean
        self._files: dict[str, RotatingLog] = {}
        self._runs: dict[str, _Run] = {}
        self._retired: list[_Run] = []

    def start(self, child: Child) -> None:
        """Begin to keep `child` running. Raises `ValueError` where the name is taken."""
        if child.name in self._runs:
            raise ValueError(f"a child named {child.name!r} is running already")
        self._runs[child.name] = self._begin(_Run(child))

    def adopt(self, child: Child, heir: Heir) -> None:
        """Take over a living process that the program before this one started; `child` is what follows it if it ends."""
        run = _Run(child)
        run.log, run.process = heir.log, Adopted(heir.pid)
        if heir.running:
            run.state = "running"
        if heir.retiring:
            run.retiring.set()
            self._retired.append(run)
        else:
            self._runs[child.name] = run
        self._begin(run, run.process)

    def hand_over(self) -> list[Heir]:
        """Every child that lives, its log's pipe made to survive execve(2). Start nothing after this."""
        heirs = []
        for run in (*self._runs.values(), *self._retired):
            if run.process is not None and run.process.returncode is None:
                os.set_inheritable(run.log, True)
                name, pid, running = run.child.name, run.process.pid, run.state == "running"
                heirs.append(Heir(name, pid, run.log, running, run.retiring.is_set()))
        return heirs

    def names(self) -> list[str]:
        """The children under care, without the retired."""
        return list(self._runs)

    def state(self, name: str) -> tuple[State, str]:
        """(state, detail) of a child; `stopped` for one never started."""
        run = self._runs.get(name)
        return (run.state, run.detail) if run else ("stopped", "")

    def child(self, name: str) -> Child | None:
        """What is being kept running under `name`."""
        run = self._runs.get(name)
        return run.child if run else None

    def pid(self, name: str) -> int | None:
        """Its process now, or None between two."""
        run = self._runs.get(name)
        return run.process.pid if run and run.process and run.process.returncode is None else None

    def retired(self, name: str) -> list[Child]:
        """Predecessors of `name` that still finish what they have begun."""
        return [r.child for r in self._retired if r.child.name == name]

    def kill(self, name: str) -> None:
        """End the process of a child at once (SIGKILL); it is started again like after any crash."""
        run = self._runs.get(name)
        if run and run.process:
            with contextlib.suppress(ProcessLookupError):
                run.process.send_signal(signal.SIGKILL)

    async def running(self, name: str, within: float) -> bool:
        """Wait until the child is `running`, at most `within` seconds; whether it is."""
        run = self._runs.get(name)
        return run is not None and await _reaches(run, within)

    async def replace(self, child: Child, within: float, *, wait: bool = True, once: bool = False) -> bool:
        """Start a new `child`, and when it is running retire the old one of that name; whether that came about.

        Where the new one is not running after `within` seconds it is ended and the old one stays. Returns when the
        old one is gone, or, with `wait` False, when it has been told. With `once` the new one is not started a second time.
        """
        old = self._runs.get(child.name)
        new = self._begin(_Run(child))
        if not await _reaches(new, within, once=once):
            await self._end(new)
            return False
        self._runs[child.name] = new
        if old:
            self._retired.append(old)
            old.retiring.set()
            if wait and old.task:
                await old.task
        return True

    async def restart(self, child: Child, within: float) -> bool:
        """End the child of that name, then start `child`, where two cannot live at once; whether it is running in time."""
        await self.stop(child.name)
        self.start(child)
        return await self.running(child.name, within)

    async def stop(self, name: str) -> None:
        """End a child and its retired predecessors: SIGTERM, then SIGKILL after its grace. Returns when all are gone."""
        run = self._runs.pop(name, None)
        ending = [r for r in self._retired if r.child.name == name] + ([run] if run else [])
        await asyncio.gather(*map(self._end, ending))

    async def close(self) -> None:
        """End all children at once."""
        names = {*self._runs, *(r.child.name for r in self._retired)}
        await asyncio.gather(*(self.stop(name) for name in names))
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _begin(self, run: _Run, process: Process | None = None) -> _Run:
        run.task = asyncio.create_task(self._keep(run, process), name=f"supervise {run.child.name}")
        return run

    async def _end(self, run: _Run) -> None:
        run.stopping.set()
        if run.task:
            await run.task

    def _tell(self, run: _Run, state: State, detail: str = "") -> None:
        run.state, run.detail = state, detail
        run.changed.set()
        run.changed = asyncio.Event()
        if self._on_state and not run.retiring.is_set():
            self._on_state(run.child.name, state, detail)

    async def _keep(self, run: _Run, process: Process | None) -> None:
        """Start, watch, wait, start again, until asked to end; a retired one is not started again."""
        name = run.child.name
        log = self._files.get(name)
        if log is None:
            log = self._files[name] = RotatingLog(self._logs / f"{name}.log", limit=self._log_limit)
        crashes, ended = 0, ""
        try:
            while not (run.stopping.is_set() or run.retiring.is_set()) or process is not None:
                if process is None or run.state != "running":
                    self._tell(run, "starting", ended)
                began = monotonic()
                ended = await self._once(run, log, process)
                process = None
                if run.stopping.is_set() or run.retiring.is_set():
                    break
                crashes = 1 if monotonic() - began >= self._backoff.healthy else crashes + 1
                pause = self._backoff.wait(crashes)
                log.write(f"[supervisor] {name}: {ended}; next start in {pause:.1f} s\n".encode())
                self._tell(run, "backoff", ended)
                await _first(run.stopping.wait(), run.retiring.wait(), within=pause)
        finally:
            if run in self._retired:
                self._retired.remove(run)
            self._tell(run, "stopped", ended)

    async def _once(self, run: _Run, log: RotatingLog, process: Process | None) -> str:
        """One life of the child, to its end; how it ended, in words."""
        child = run.child
        if process is None:
            try:
                process, run.log = await _start(child)
            except OSError as e:
                return f"could not start: {e}"
        run.process = process
        side = [asyncio.create_task(_copy(run.log, log, self._clean)), asyncio.create_task(self._await_ready(run, process))]
        try:
            await _first(process.wait(), run.stopping.wait(), run.retiring.wait())
            if run.retiring.is_set() and not run.stopping.is_set():
                _signal(process, child.retire)
                await _first(process.wait(), run.stopping.wait(), within=child.retire_grace)
        finally:
            await _terminate(process, child.grace)
            side[1].cancel()
            # a grandchild may hold the pipe open: what was said by now is enough
            await _within(side[0], 0.5)
            await asyncio.gather(*side, return_exceptions=True)
        return _ending(process.returncode)

    async def _await_ready(self, run: _Run, process: Process) -> None:
        while process.returncode is None and run.state != "running":
            if run.child.ready is None or await run.child.ready(process.pid):
                self._tell(run, "running")
                return
            await asyncio.sleep(POLL)


async def _start(child: Child) -> tuple[Process, int]:
    """The process, and our end of the pipe that its output goes to: one of our own, so that it can be handed over."""
    ours, theirs = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *tied(child.argv, signal_at_death=signal.SIGKILL),
            env=None if child.env is None else dict(child.env),
            pass_fds=child.pass_fds,
            process_group=0,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=theirs,
            stderr=asyncio.subprocess.STDOUT,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return process, ours


@contextlib.contextmanager
def lock(path: Path, inherited: int = -1) -> Iterator[int]:
    """Hold `path` alone (flock); it holds this process's pid meanwhile. The kernel lets go when a holder dies.

    Gives the descriptor: made inheritable, it carries the lock through execve(2), and `inherited` takes it up again.
    Raises `Unavailable` that names the holder.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = inherited if inherited >= 0 else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.set_inheritable(descriptor, False)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise _held(path, os.pread(descriptor, 32, 0)) from e
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk: held all the same, only without its holder's name
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
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


async def _reaches(run: _Run, within: float, *, once: bool = False) -> bool:
    end = monotonic() + within
    while run.state != "running" and (left := end - monotonic()) > 0:
        if once and run.state == "backoff":
            return False
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


async def _first(*waits: Awaitable[object], within: float | None = None) -> None:
    tasks = [asyncio.ensure_future(w) for w in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=within)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _signal(process: Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


async def _terminate(process: Process, grace: float) -> None:
    if process.returncode is not None:
        return
    _signal(process, signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), grace)
    except TimeoutError:
        _signal(process, signal.SIGKILL)
        await process.wait()


async def _copy(descriptor: int, log: RotatingLog, clean: Callable[[bytes], bytes] | None) -> None:
    """What a child says into its log, line by line, until it ends; the descriptor is closed then."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LONGEST_LINE)
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    rest = b""
    try:
        while data := await reader.read(LONGEST_LINE):
            lines, mark, rest = (rest + data).rpartition(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, mark, rest = lines + mark + rest, b"", b""
            if lines:
                log.write((clean(lines) if clean else lines) + mark)
    finally:
        if rest:
            log.write(clean(rest) if clean else rest)
        transport.close()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}"
