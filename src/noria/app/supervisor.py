"""`noria up`: one process that owns the lock and the sockets and keeps keeper, models and workers running."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from noria.app.link import SOCKET
from noria.app.model_process import command
from noria.contracts.error import ConfigError, boundary
from noria.contracts.release import Endpoint
from noria.govern.access import admin_token
from noria.kit.atomic import write_whole
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.supervise import Child, State, Supervisor
from noria.release.catalogue import manifest_of

ANSWER_WITHIN = 3.0
"""Seconds in which a keeper that is well answers a question about itself."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Plan(msgspec.Struct, frozen=True):
    """What to run. `config` is the file that the keeper applies, or None for the default."""

    home: Path
    config: Path | None
    host: str
    port: int
    workers: int
    models: tuple[Endpoint, ...]
    """Local models to serve."""


class House:
    """The running service, from the outside: start, watch, stop."""

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self.plan = plan
        self._tell = tell
        self._sockets: list[socket.socket] = []
        self._children = Supervisor(plan.home / "logs", on_state=self._state)
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Bind, then start everything; returns when the keeper answers and the workers serve."""
        plan = self.plan
        with boundary(ConfigError, f"preparing {plan.home}"):
            admin_token(plan.home)
            self._prepare()
        self._sockets = [listen(plan.host, plan.port)]
        port = self.port  # where 0 was asked for, the first socket chooses for all
        self._sockets += [listen(plan.host, port) for _ in range(plan.workers - 1)]
        address = {"host": plan.host, "port": port, "workers": plan.workers, "pid": os.getpid()}
        with boundary(ConfigError, f"preparing {plan.home}"):
            write_whole(plan.home / "run" / "address.json", msgspec.json.encode(address), mode=0o600, durable=False)
        self._children.start(self._keeper())
        for endpoint in plan.models:
            self._children.start(self._model(endpoint))
        for slot in range(plan.workers):
            self._children.start(self._worker(slot))
        await self._serving("keeper", 30.0)
        for slot in range(plan.workers):
            await self._serving(f"worker-{slot}", 30.0)

    async def wait(self) -> None:
        """Until SIGTERM, SIGINT, or the terminal is closed (unless started under nohup)."""
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(sig) is not signal.SIG_IGN:
                loop.add_signal_handler(sig, self._stopping.set)
        await self._stopping.wait()

    async def stop(self) -> None:
        """Workers drain first, so that what they still record finds the keeper; the keeper last."""
        await asyncio.gather(*(self._children.stop(f"worker-{slot}") for slot in range(self.plan.workers)))
        await asyncio.gather(*(self._children.stop(f"model-{e.name}") for e in self.plan.models))
        await self._children.stop("keeper")
        await self._children.close()
        for s in self._sockets:
            s.close()
        (self.plan.home / "run" / "address.json").unlink(missing_ok=True)

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

    def _prepare(self) -> None:
        home = self.plan.home
        for folder in ("run", "run/models", "logs", "spool", "metrics"):
            (home / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in (home / "metrics").glob("*.db"):
            old.unlink()

    def _state(self, name: str, state: State, detail: str) -> None:
        if state == "backoff":
            self._tell(f"{name} stopped ({detail}); starting it again")

    async def _serving(self, name: str, within: float) -> None:
        waiting = asyncio.ensure_future(self._children.running(name, within))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not self._stopping.is_set() and not await waiting:
            state, detail = self._children.state(name)
            raise ConfigError(
                f"{name} did not start ({state}: {detail}).", hint=f"See {self.plan.home / 'logs' / (name + '.log')}."
            )

    def _keeper(self) -> Child:
        config = ("--config", str(self.plan.config)) if self.plan.config else ()
        argv = (sys.executable, "-m", "noria", "process", "keeper", *config)
        return Child("keeper", argv, self._env(), ready=self._keeper_ready, grace=10.0)

    async def _keeper_ready(self) -> bool:
        try:
            status, _, _ = await ask(self.plan.home, "GET", "/api/status", within=ANSWER_WITHIN)
        except HttpCallError:
            return False
        return status == 200

    def _model(self, endpoint: Endpoint) -> Child:
        argv = command(self.plan.home, manifest_of(self.plan.home, endpoint.model))
        return Child(f"model-{endpoint.name}", argv, self._env())

    def _worker(self, slot: int) -> Child:
        fd = self._sockets[slot].fileno()
        argv = (
            sys.executable, "-m", "noria", "process", "worker", "--slot", str(slot), "--fd", str(fd),
            "--workers", str(self.plan.workers), "--host", self.plan.host,
        )  # fmt: skip
        name = f"worker-{slot}"
        return Child(name, argv, self._env(), ready=partial(self._worker_ready, name), pass_fds=(fd,), grace=30.0)

    async def _worker_ready(self, name: str) -> bool:
        """Its heartbeat has reached the keeper: it serves, and both ways are open."""
        try:
            return self._children.pid(name) in [w["pid"] for w in (await self.status()).get("workers", ())]
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
