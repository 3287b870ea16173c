"""`noria up`: one process that owns the lock and the sockets and keeps keeper, models and workers running."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from noria import __version__
from noria.app.inherit import Inherited
from noria.app.link import APPLIED, DRAINING, OPERATION, SOCKET
from noria.app.model_process import command, status_path
from noria.app.watch import PER_HOUR, Watch
from noria.contracts.error import ConfigError, NoriaError, boundary
from noria.contracts.release import Endpoint
from noria.govern.access import admin_token
from noria.kit.atomic import write_whole
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.redact import scrub_bytes
from noria.kit.service import Watch as Watched
from noria.kit.supervise import Child, Heir, State, Supervisor
from noria.release.catalogue import manifest_of

ANSWER_WITHIN = 3.0
"""Seconds in which a keeper that is well answers a question about itself."""
START_WITHIN = 30.0
"""Seconds in which a new process must serve; else the old one stays."""
MODEL_WITHIN = 300.0
"""The same for a model's server, which may have gigabytes to read."""
LAST_THINGS = 5.0
"""Seconds that a worker has after its drain to settle, give back leases and flush its spool."""
SIDES = ("", *"bcdefgh")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Operate(msgspec.Struct, frozen=True):
    """`operate:` of noria.yaml, in seconds; see `settings.operate`."""

    notice: float = 0.0
    stop: float = 25.0
    drain: float = 600.0
    keeper_silent: float = 60.0


class Plan(msgspec.Struct, frozen=True):
    """What to run. `config` is the file that the keeper applies, or None for the default."""

    home: Path
    config: Path | None
    host: str
    port: int
    workers: int
    models: tuple[Endpoint, ...]
    """Local models to serve."""
    operate: Operate = Operate()
    public_url: str = ""


class House:
    """The running service, from the outside: start, watch, replace, stop.

    A worker's slot is a listening socket; which process serves it may change. While an old and a new worker of a slot
    overlap, their `side` tells them apart (spool, metrics): "" and b, c, d in turn.
    """

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self.plan = plan
        self.tell = tell
        self.children = Supervisor(plan.home / "logs", on_state=self._state, clean=scrub_bytes)
        self.stopping = asyncio.Event()
        self._sockets: list[socket.socket] = []
        self._sides: list[str] = []
        self._watching: asyncio.Task[None] | None = None
        self._configuration = ""
        self._generations: set[asyncio.Task[None]] = set()
        self._one_generation = asyncio.Lock()

    async def start(self, inherited: Inherited | None = None) -> None:
        """Bind, then start everything; returns when the keeper answers and the workers serve."""
        plan = self.plan
        with boundary(ConfigError, f"preparing {plan.home}"):
            admin_token(plan.home)
            self._prepare(fresh=inherited is None)
        self._bind([] if inherited is None else [socket.socket(fileno=fd) for fd in inherited.sockets])
        self._sides = list(inherited.sides if inherited else ())[: len(self._sockets)]
        self._sides += [""] * (len(self._sockets) - len(self._sides))
        address = {"host": plan.host, "port": self.port, "workers": self.slots, "pid": os.getpid()}
        with boundary(ConfigError, f"preparing {plan.home}"):
            write_whole(plan.home / "run" / "address.json", msgspec.json.encode(address), mode=0o600, durable=False)
        wanted = [self.keeper(), *map(self.model, plan.models), *map(self.worker, range(self.slots))]
        await self._begin(wanted, inherited.children if inherited else ())
        await self._serving("keeper", 30.0)
        for slot in range(self.slots):
            await self._serving(f"worker-{slot}", 30.0)
        self.watch()

    def watch(self) -> None:
        """Look after the keeper and the models from now on."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Workers drain first, so that what they still record finds the keeper; the keeper last."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for task in [*self._generations]:
            task.cancel()
        await asyncio.gather(*self._generations, return_exceptions=True)
        names = self.children.names()
        await asyncio.gather(*(self.children.stop(n) for n in names if n.startswith("worker-")))
        await asyncio.gather(*(self.children.stop(n) for n in names if n.startswith("model-")))
        await self.children.stop("keeper")
        await self.children.close()
        for s in self._sockets:
            s.close()
        (self.plan.home / "run" / "address.json").unlink(missing_ok=True)

    def leave(self, lock: int) -> Inherited:
        """What the program that replaces this one needs. Nothing may be started after this."""
        sockets = tuple(s.fileno() for s in self._sockets)
        return Inherited(lock, sockets, tuple(self._sides), tuple(self.children.hand_over()), __version__)

    async def login_code(self) -> str:
        """A one-time code that opens the console."""
        status, _, body = await ask(self.plan.home, "POST", "/internal/login-code")
        return str(msgspec.json.decode(body)["code"]) if status == 200 else ""

    async def status(self) -> dict[str, Any]:
        """What the keeper says of the service."""
        _, _, body = await ask(self.plan.home, "GET", "/api/status", within=ANSWER_WITHIN)
        told: dict[str, Any] = msgspec.json.decode(body)
        return told

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self._sockets[0].getsockname()[1])

    @property
    def slots(self) -> int:
        """How many workers there are."""
        return len(self._sockets)

    async def roll(self, slot: int) -> bool:
        """Put a new worker into a slot without losing a request; whether it serves. The old one drains on."""
        name = f"worker-{slot}"
        busy = {c.argv[c.argv.index("--side") + 1] for c in self.children.retired(name)} | {self._sides[slot]}
        free = next((side for side in SIDES if side not in busy), None)
        if free is None:
            self.tell(f"{name}: {len(SIDES) - 1} earlier workers still drain; not replaced")
            return False
        before, self._sides[slot] = self._sides[slot], free
        if not await self.children.replace(self.worker(slot), START_WITHIN, wait=False):
            self._sides[slot] = before
            return False
        return True

    def _bind(self, sockets: list[socket.socket]) -> None:
        """One socket a slot; those that are there already stay, whatever the plan says now."""
        plan = self.plan
        self._sockets = sockets or [listen(plan.host, plan.port)]
        for s in sockets:
            s.setblocking(False)
        port = self.port  # where 0 was asked for, the first socket chooses for all
        self._sockets += [listen(plan.host, port) for _ in range(plan.workers - len(self._sockets))]

    async def _begin(self, wanted: list[Child], there: tuple[Heir, ...]) -> None:
        """Adopt what lives, end what nobody wants any more, start what is missing."""
        known = {c.name: c for c in wanted}
        for heir in there:
            self.children.adopt(known.get(heir.name) or Child(heir.name, ("false",), grace=10.0), heir)
        for name in set(self.children.names()) - set(known):
            await self.children.stop(name)
        for child in wanted:
            if child.name not in self.children.names():
                self.children.start(child)

    def _prepare(self, *, fresh: bool) -> None:
        home = self.plan.home
        for folder in ("run", "run/models", "logs", "spool", "metrics"):
            (home / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        if fresh:
            for mark in (DRAINING, APPLIED, OPERATION):
                (home / "run" / mark).unlink(missing_ok=True)
            for old in (home / "metrics").iterdir():
                old.unlink()

    def _state(self, name: str, state: State, detail: str) -> None:
        if state == "backoff":
            self.tell(f"{name} stopped ({detail}); starting it again")

    async def _serving(self, name: str, within: float) -> None:
        waiting = asyncio.ensure_future(self.children.running(name, within))
        stopping = asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not self.stopping.is_set() and not await waiting:
            state, detail = self.children.state(name)
            raise ConfigError(
                f"{name} did not start ({state}: {detail}).", hint=f"See {self.plan.home / 'logs' / (name + '.log')}."
            )

    async def _watch(self) -> None:
        """Follow the keeper: kill it where it hangs, start the local models that a new configuration names."""
        silent = self.plan.operate.keeper_silent
        watch = Watch(silent)
        while True:
            await asyncio.sleep(min(2.0, silent / 4))
            pid = self.children.pid("keeper")
            try:
                status = await self._news()
            except (HttpCallError, msgspec.MsgspecError, KeyError):
                if pid is None or self.children.state("keeper")[0] != "running":
                    watch.answered()  # it is starting, or started again already: that has its own clock
                elif why := watch.verdict(pid):
                    self.tell(f"keeper: {why}; it is killed and started again")
                    self.children.kill("keeper")
                elif watch.exhausted and not watch.told:
                    watch.told = True
                    self.tell(f"keeper: killed {PER_HOUR} times within an hour for not answering; left alone now")
                continue
            watch.answered()
            if status:
                await self._models_of(status)

    async def _news(self) -> dict[str, Any]:
        """What the keeper says of the service where its configuration is another than last time; else nothing."""
        _, headers, _ = await ask(self.plan.home, "GET", "/internal/alive", within=ANSWER_WITHIN)
        return {} if ("x-noria-config", self._configuration) in headers else await self.status()

    async def _models_of(self, status: dict[str, Any]) -> None:
        """Start and stop local models after the configuration has changed."""
        config = str(status.get("config"))
        if config == self._configuration:
            return
        first, self._configuration = not self._configuration, config
        local = [m for m in status["models"] if m["provider"] == "local"]
        used = {m["model"]: m["name"] for m in reversed(local)}
        adapters: dict[str, set[str]] = {m["model"]: set() for m in local}
        for m in local:
            adapters[m["model"]] |= {m["adapter"]} if m.get("adapter") else set()
        running = self._served()
        for model, name in used.items():
            argv = self._model_argv(model, sorted(adapters[model]))
            if not argv:
                continue
            if model not in running and f"model-{name}" not in self.children.names():
                self.tell(f"model-{name}: the configuration names it; starting")
                self.children.start(self._model_child(name, argv))
            elif model in running and argv != self._argv_of(running[model]):
                self._begin_generation(self._model_child(running[model].removeprefix("model-"), argv))
        if first:
            return
        for model, child in running.items():
            if model not in used:
                self.tell(f"{child}: no app uses it any more; stopping")
                await self.children.stop(child)

    def _served(self) -> dict[str, str]:
        """Local models that have a server: model → child."""
        names = [n for n in self.children.names() if n.startswith("model-")]
        found = {}
        for name in names:
            argv = self._argv_of(name)
            if "--model-id" in argv:
                found[argv[argv.index("--model-id") + 1]] = name
        return found

    def _argv_of(self, name: str) -> tuple[str, ...]:
        child = self.children.child(name)
        return child.argv if child else ()

    def _begin_generation(self, child: Child) -> None:
        """Have another generation of a model's server take over: it starts beside the present one, which ends when it has
        answered everybody, and stays where the new one does not come up (its status says why).
        """
        task = asyncio.create_task(self._generation(child))
        self._generations.add(task)
        task.add_done_callback(self._generations.discard)

    async def _generation(self, child: Child) -> None:
        async with self._one_generation:
            if self._argv_of(child.name) == child.argv:
                return
            self.tell(f"{child.name}: another set of adapters; starting a second generation")
            if not await self.children.replace(child, MODEL_WITHIN, wait=False, once=True):
                self.tell(f"{child.name}: the new generation did not come up, the old one stays; see logs/{child.name}.log")

    def keeper(self) -> Child:
        """The keeper as a child."""
        config = ("--config", str(self.plan.config)) if self.plan.config else ()
        argv = (sys.executable, "-m", "noria", "process", "keeper", *config)
        return Child("keeper", argv, self._env(), ready=self._keeper_ready, grace=10.0)

    async def _keeper_ready(self, pid: int) -> bool:
        try:
            status, headers, _ = await ask(self.plan.home, "GET", "/internal/alive", within=ANSWER_WITHIN)
        except HttpCallError:
            return False
        return status == 204 and ("x-noria-pid", str(pid)) in headers

    def model(self, endpoint: Endpoint) -> Child:
        """A local model's server as a child."""
        argv = command(self.plan.home, manifest_of(self.plan.home, endpoint.model))
        return self._model_child(endpoint.name, argv)

    def _model_argv(self, model: str, adapters: Sequence[str] = ()) -> tuple[str, ...]:
        try:
            return command(self.plan.home, manifest_of(self.plan.home, model), adapters=adapters)
        except NoriaError:
            return ()  # not installed: the apps that need it say so

    def _model_child(self, name: str, argv: tuple[str, ...]) -> Child:
        limit = self.plan.operate.drain
        ready = partial(self._model_ready, argv[argv.index("--model-id") + 1])
        return Child(f"model-{name}", argv, self._env(), ready=ready, grace=5.0, retire_grace=limit)

    async def _model_ready(self, model: str, pid: int) -> bool:
        found = Watched(status_path(self.plan.home, model)).read()
        return found is not None and found.pid == pid and found.state == "ready"

    def worker(self, slot: int) -> Child:
        """The worker of a slot as a child, on the slot's present side."""
        fd, operate = self._sockets[slot].fileno(), self.plan.operate
        argv = (
            sys.executable, "-m", "noria", "process", "worker", "--slot", str(slot), "--side", self._sides[slot],
            "--fd", str(fd), "--workers", str(self.slots), "--host", self.plan.host, "--notice", str(operate.notice),
            "--stop", str(operate.stop), "--drain", str(operate.drain),
        )  # fmt: skip
        return Child(
            f"worker-{slot}",
            argv,
            self._env(),
            ready=self._worker_ready,
            pass_fds=(fd,),
            grace=operate.notice + operate.stop + LAST_THINGS,
            retire=signal.SIGHUP,
            retire_grace=operate.drain + LAST_THINGS,
        )

    async def _worker_ready(self, pid: int) -> bool:
        """Its heartbeat has reached the keeper: it serves, and both ways are open."""
        try:
            return pid in [w["pid"] for w in (await self.status()).get("workers", ())]
        except HttpCallError:
            return False

    def _env(self) -> dict[str, str]:
        return {**os.environ, "NORIA_HOME": str(self.plan.home), "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def listen(host: str, port: int) -> socket.socket:
    """One worker's own accept queue on a shared port (SO_REUSEPORT); never closed while Noria runs (DESIGN §3a.10)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    with boundary(ConfigError, f"cannot listen on {host}:{port}"):
        s.bind((host, port))
        s.listen(1024)
    s.setblocking(False)
    return s


def port_is_taken(host: str, port: int) -> bool:
    """Whether somebody else listens there: SO_REUSEPORT would let us share it unawares."""
    if port == 0:
        return False
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return True
    return False


async def ask(
    home: Path, method: str, path: str, body: bytes = b"", *, within: float = 60.0
) -> tuple[int, list[tuple[str, str]], bytes]:
    """One call to the keeper of `home` over its socket. Raises `HttpCallError` where it does not answer in time (s)."""
    client = HttpClient(
        "http://keeper",
        uds=str(home / "run" / SOCKET),
        connect_timeout=1.0,
        first_timeout=within,
        idle_timeout=60.0,
        total_timeout=600.0,
    )
    try:
        return await client.send(method, path, [("content-type", "application/json")], body)
    finally:
        await client.close()
