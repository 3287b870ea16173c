"""How a command reaches the service: the keeper's socket where it runs, a keeper of its own where it does not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from noria.contracts.error import NoriaError, Unavailable
from noria.settings import config_path, home


class Refused(NoriaError):
    """What the service answered to a command, in its own words."""


def call(method: str, path: str, body: Any = None) -> Any:
    """One call to the management API; the decoded answer. Starts a keeper for its duration where none runs."""
    with keeper():
        return asyncio.run(_call(method, path, body))


async def _call(method: str, path: str, body: Any) -> Any:
    from noria.app.supervisor import ask

    data = b"" if body is None else msgspec.json.encode(body)
    status, _, answer = await ask(home(), method, path, data)
    decoded = msgspec.json.decode(answer) if answer else None
    if status >= 400:
        _refuse(status, decoded)
    return decoded


def _refuse(status: int, decoded: Any) -> NoReturn:
    error = decoded.get("error") if isinstance(decoded, dict) else None
    if isinstance(error, dict):
        raise Refused(str(error.get("message")), code=error.get("code"))
    detail = decoded.get("detail") if isinstance(decoded, dict) else decoded
    raise Refused(f"The service answered {status}: {detail}")


def reachable(root: Path) -> bool:
    """Whether a keeper answers on its socket."""
    from noria.app.supervisor import ANSWER_WITHIN, ask
    from noria.kit.http_client import HttpCallError

    try:
        return asyncio.run(ask(root, "GET", "/api/status", within=ANSWER_WITHIN))[0] == 200
    except HttpCallError:
        return False


@contextmanager
def keeper() -> Iterator[None]:
    """A keeper to talk to: the running one, else one under the same lock, ended afterwards."""
    root = home()
    if reachable(root):
        yield
        return
    from noria.app.stores import load_settings
    from noria.kit.orphan import tied
    from noria.kit.supervise import lock

    config = config_path()
    load_settings(config)  # a mistake in it is told here, by file and line
    argv = [sys.executable, "-m", "noria", "process", "keeper"]
    if config is not None:
        argv += ["--config", str(config.absolute())]

    with lock(root / "lock"):
        (root / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
        child = subprocess.Popen(
            tied(argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "NORIA_HOME": str(root)},
        )  # fmt: skip
        try:
            _await(root, child)
            yield
        finally:
            child.terminate()
            child.wait(15)


def _await(root: Path, child: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if child.poll() is not None:
            raise Unavailable("The stores could not be opened.", hint=f"Run `noria doctor`, and look into {root}.")
        if reachable(root):
            return
        time.sleep(0.05)
    raise Unavailable("The stores did not open within 30 s.")


def gateway_url() -> str:
    """Where the running service listens. Raises `Unavailable` where none runs."""
    try:
        address = msgspec.json.decode((home() / "run" / "address.json").read_bytes())
    except OSError:
        raise Unavailable("Noria is not running here.", code="not_running", hint="Start it with `noria up`.") from None
    host = address["host"]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104  compared, not bound
    return f"http://{shown}:{address['port']}"


def bearer(key: str | None) -> str:
    """The key to send: the one given, `NORIA_API_KEY`, else a session made from the admin token of this home."""
    from noria.govern.access import Sessions, admin_token

    return key or os.environ.get("NORIA_API_KEY") or Sessions(admin_token(home())).issue(time.time_ns())


def emit(value: Any) -> None:
    """One JSON document on stdout, nothing else."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
