"""A Noria of the demo's own: `noria up` as a child in a home of its own, and how the demo speaks to it, over HTTP like anybody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from noria.app.supervisor import ask
from noria.contracts.error import NoriaError, Unavailable
from noria.contracts.port import JobRunner
from noria.dialects.openai_error import error_said
from noria.govern.access import admin_token
from noria.kit import extension
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.orphan import tied

START_WITHIN_S = 120.0
STOP_WITHIN_S = 40.0
LOOK_S = 0.1


class Refused(NoriaError):
    """What the service answered, in its own words."""


class Service:
    """The running service. `call` is the management API over HTTP, `client` speaks to `/v1`."""

    def __init__(self, home: Path, url: str, process: subprocess.Popen[bytes]) -> None:
        self.home = home
        self.url = url
        self.process = process
        self.client = HttpClient(url, first_timeout=120.0, idle_timeout=60.0, total_timeout=300.0)
        self._token = admin_token(home)
        self._loop = asyncio.get_running_loop()

    def ask(self, method: str, path: str, body: bytes) -> bytes:
        """For `DatasetClient`, from a thread of its own: the raw answer. Raises as `call`."""
        status, answer = asyncio.run_coroutine_threadsafe(self._send(method, path, body), self._loop).result()
        if status >= 400:
            decoded(status, answer, f"{method} {path}")
        return answer

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded answer. Raises `Refused` with the service's own words, `Unavailable` where it does not answer."""
        data = b"" if body is None else msgspec.json.encode(body)
        status, answer = await self._send(method, path, data)
        return decoded(status, answer, f"{method} {path}")

    async def _send(self, method: str, path: str, data: bytes) -> tuple[int, bytes]:
        headers = [("content-type", "application/json"), ("authorization", f"Bearer {self._token}")]
        try:
            status, _, answer = await self.client.send(method, path, headers, data)
        except HttpCallError as e:
            raise Unavailable(f"The service does not answer {method} {path}: {e}", hint=self.logs) from e
        return status, answer

    async def local(self, method: str, path: str, body: Any) -> Any:
        """As `call`, by the keeper's socket: what names a file of this machine is taken from its own command line alone."""
        status, _, answer = await ask(self.home, method, path, msgspec.json.encode(body))
        return decoded(status, answer, f"{method} {path}")

    async def login(self) -> str:
        """A link that opens the console, once."""
        made = await self.local("POST", "/internal/login-code", {})
        return f"{self.url}/login?code={made['code']}"

    @property
    def logs(self) -> str:
        """Where to look."""
        return f"See {self.home / 'logs'}."


def decoded(status: int, answer: bytes, what: str) -> Any:
    """The value of an answer. Raises `Refused` for 4xx and 5xx."""
    if status < 400:
        return msgspec.json.decode(answer) if answer else None
    error = error_said(answer) or {}
    if "message" not in error:
        raise Refused(f"{what}: {status} {answer[:300].decode(errors='replace')}")
    raise Refused(str(error["message"]), code=error.get("code"))


@contextlib.asynccontextmanager
async def running(home: Path, config: Path) -> AsyncIterator[Service]:
    """The service of `config`, serving; stopped in the end, whatever happens. It dies with this process, too.

    Raises `Unavailable` where it does not come up.
    """
    process = _start(home, config)
    try:
        service = Service(home, await _address(home, process), process)
        try:
            await _serving(service)
            yield service
        finally:
            await service.client.close()
    finally:
        await asyncio.to_thread(_stop, process)
        await _end_jobs(home)


def _start(home: Path, config: Path) -> subprocess.Popen[bytes]:
    (home / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
    (home / "run" / "address.json").unlink(missing_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("NORIA_") and k != "PYTHONDONTWRITEBYTECODE"}
    argv = [sys.executable, "-m", "noria", "up", "--config", str(config), "--port", "0"]
    with (home / "up.log").open("ab") as log:
        # a session of its own: Ctrl-C reaches the demo, which then stops the service in order
        return subprocess.Popen(
            tied(argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env | {"NORIA_HOME": str(home)},
            start_new_session=True,
        )  # fmt: skip


async def _address(home: Path, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + START_WITHIN_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Unavailable(f"The service ended at once: {_last_words(home)}", hint=f"See {home / 'up.log'}.")
        if port := _port(home):
            return f"http://127.0.0.1:{port}"
        await asyncio.sleep(LOOK_S)
    raise Unavailable(f"The service did not start within {START_WITHIN_S:.0f} s.", hint=f"See {home / 'up.log'}.")


def _port(home: Path) -> int:
    """Where it listens; 0 as long as nobody knows."""
    try:
        return int(msgspec.json.decode((home / "run" / "address.json").read_bytes())["port"])
    except (OSError, msgspec.DecodeError):
        return 0


async def _serving(service: Service) -> None:
    """Until the gateway says that it is ready and every local model answers."""
    end = time.monotonic() + START_WITHIN_S
    trouble: NoriaError | None = None
    while time.monotonic() < end:
        if service.process.poll() is not None:
            raise Unavailable(f"The service ended: {_last_words(service.home)}", hint=f"See {service.home / 'up.log'}.")
        try:
            if (await service.client.send("GET", "/readyz", [], b""))[0] == 200:
                status = await service.call("GET", "/api/status")
                if all(m["state"] == "ready" for m in status["models"] if m["provider"] == "local"):
                    return
        except HttpCallError as e:
            trouble = Unavailable(str(e))
        except NoriaError as e:  # the keeper is not there yet
            trouble = e
        await asyncio.sleep(LOOK_S)
    said = f" {trouble.text}" if trouble else ""
    raise Unavailable(f"The service was not ready within {START_WITHIN_S:.0f} s.{said}", hint=service.logs)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """In order; a service that does not end is ended with all of its children: they are one process group."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def _end_jobs(home: Path) -> None:
    """End what trains or measures: jobs outlive their service, which the demo's shall not."""
    jobs = extension.engine("process").serves[JobRunner](f"process://{home / 'jobs'}")
    for folder in (home / "jobs").glob("*/*"):
        await jobs.stop(unquote(folder.parent.name), unquote(folder.name))


def _last_words(home: Path) -> str:
    try:
        lines = (home / "up.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        return "it said nothing"
    return lines[-1] if lines else "it said nothing"
