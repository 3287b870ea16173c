"""The serving loops: a gateway worker on its socket, a keeper on its unix socket."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from noria.app.link import SOCKET
from noria.kit.handover import Giver, Taker
from noria.kit.priority import yield_to_others

if TYPE_CHECKING:
    from noria.kit.http_server import HttpServer

log = logging.getLogger("noria.serve")
Word = Literal["stop", "replaced"]
Told = Callable[[], Callable[[], Awaitable[Word]]]
"""Called within the loop: gives what waits for the next word."""
TELL_EVERY = 5.0
"""Seconds between words on what a drain still waits for."""


class Post(msgspec.Struct, frozen=True):
    """A worker's place: its slot, what tells it from its predecessor there, and how it leaves (seconds)."""

    slot: int
    side: str = ""
    workers: int = 1
    host: str = "127.0.0.1"
    notice: float = 0.0
    stop: float = 25.0
    drain: float = 600.0


async def serve_worker(home: Path, post: Post, listener: socket.socket, told: Told) -> None:
    """Serve until told to leave; then requests in flight finish, leases go back, the spool is flushed.

    A worker that is replaced hands its idle connections to its successor and has `post.drain` seconds; one that is
    stopped first says no to `/readyz` for `post.notice` seconds, then has `post.stop`.
    """
    from noria.api.gateway import Gateway
    from noria.app.worker import Worker
    from noria.kit.http_server import HttpServer

    word = told()
    part = Worker(home, post.slot, workers=post.workers, side=post.side)
    await part.start()
    await part.configured(10.0)  # callers wait in the accept queue meanwhile
    gateway = Gateway(part, () if post.host in ("127.0.0.1", "localhost", "::1") else (post.host,))
    server = HttpServer(gateway.handle, limits=gateway.limits(), error=gateway.refused, divert=gateway.divert)
    part.in_flight = server.in_flight
    tasks: set[asyncio.Task[None]] = set()

    def take(connection: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(server.adopt(connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    taker = Taker(_handover(home, post.slot), take)
    await server.start(listener)
    taker.start()
    gc.collect()
    gc.freeze()  # what start-up made stays: no collection needs to walk it again
    gc.set_threshold(20_000, 20, 50)
    beating = asyncio.create_task(part.beat())
    said = await word()
    if said == "stop":
        part.draining = True
        await asyncio.sleep(post.notice)
    taker.close()
    gateway.leave()
    await _drain(server, post, said, word, _handover(home, post.slot))
    beating.cancel()
    await part.stop()


def _handover(home: Path, slot: int) -> Path:
    return home / "run" / f"worker-{slot}.sock"


async def _drain(server: HttpServer, post: Post, said: Word, word: Callable[[], Awaitable[Word]], successor: Path) -> None:
    """Finish what has begun, telling every few seconds what that is; a word to stop shortens it."""
    giver = Giver(successor) if said == "replaced" else None
    limit = post.drain if giver else post.stop
    draining = asyncio.ensure_future(server.drain(limit, giver))
    hurried = asyncio.ensure_future(word())
    while not draining.done():
        await asyncio.wait((draining, hurried), timeout=TELL_EVERY, return_when=asyncio.FIRST_COMPLETED)
        if hurried.done():
            if hurried.result() == "stop":
                server.hurry(post.stop)
                limit = post.stop
            hurried = asyncio.ensure_future(word())
        elif not draining.done():
            left = ", ".join(f"{n} {path}" for path, n in server.in_flight().most_common(20))
            log.info("draining: %s", left or f"{server.connections} idle connections")
    hurried.cancel()
    if giver is not None:
        giver.close()
        log.info("replaced; %d idle connections were handed over", giver.given)
    if draining.result():
        log.warning("%d requests were cut short after %.0f s", draining.result(), limit)


async def serve_keeper(home: Path, config: Path | None, told: Told) -> None:
    """Own the stores and answer on the unix socket until told to stop."""
    import uvicorn

    from noria.api.manage import build
    from noria.app.stores import open_keeper
    from noria.web.console import mount

    class Quiet(uvicorn.Server):
        """Without signal handlers, which the process has itself, and without ten looks a second whether it shall end."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def main_loop(self) -> None:
            while not await self.on_tick(0):
                with suppress(TimeoutError):
                    await asyncio.wait_for(leaving.wait(), 1.0)

    leaving = asyncio.Event()
    word = told()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4, "noria-work", initializer=yield_to_others))
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
        await word()
        await keeper.leave()
        server.should_exit = True
        leaving.set()
        await serving
    path.unlink(missing_ok=True)
    await keeper.stop()
