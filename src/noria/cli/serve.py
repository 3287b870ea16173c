"""The serving loops: a gateway worker on its socket, a keeper on its unix socket."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from noria.app.link import SOCKET

log = logging.getLogger("noria.serve")
Until = Callable[[], Awaitable[None]]
DRAIN = 25.0
"""Seconds that requests in flight get to finish."""


async def serve_worker(home: Path, slot: int, listener: socket.socket, *, workers: int, host: str, until: Until) -> None:
    """Serve until told to stop, then drain: readiness off, requests in flight finish, leases go back, spool flushed."""
    from noria.kit.shared_metrics import share

    if not share(home / "metrics", str(slot)):
        log.warning("no room for shared metrics in %s: /metrics tells of one worker a time", home / "metrics")
    from noria.api.gateway import Gateway
    from noria.app.worker import Worker
    from noria.kit.http_server import HttpServer

    part = Worker(home, slot, workers=workers)
    await part.start()
    await part.configured(10.0)  # callers wait in the accept queue meanwhile
    gateway = Gateway(part, () if host in ("127.0.0.1", "localhost", "::1") else (host,))
    server = HttpServer(gateway.handle, limits=gateway.limits(), error=gateway.refused)
    await server.start(listener)
    gc.collect()
    gc.freeze()  # what start-up made stays: no collection needs to walk it again
    gc.set_threshold(20_000, 20, 50)
    beating = asyncio.create_task(part.beat())
    await until()
    part.draining = True
    gateway.leave()
    cut = await server.drain(DRAIN)
    if cut:
        log.warning("%d requests were cut short after %.0f s", cut, DRAIN)
    beating.cancel()
    await part.stop()


async def serve_keeper(home: Path, config: Path | None, *, until: Until) -> None:
    """Own the stores and answer on the unix socket until told to stop."""
    import uvicorn

    from noria.api.manage import build
    from noria.app.stores import open_keeper
    from noria.web.console import mount

    class Quiet(uvicorn.Server):
        """Without signal handlers: the process has its own."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    keeper = await open_keeper(home, config)
    path = home / "run" / SOCKET
    path.unlink(missing_ok=True)
    app = build(keeper)
    mount(app, keeper)
    settings = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", http="httptools", timeout_graceful_shutdown=3
    )
    server = Quiet(settings)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.bind(str(path))
        path.chmod(0o600)
        s.listen(256)
        serving = asyncio.ensure_future(server.serve(sockets=[s]))
        await until()
        await keeper.leave()
        server.should_exit = True
        await serving
    path.unlink(missing_ok=True)
    await keeper.stop()
