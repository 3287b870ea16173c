"""What the upstreams of the tests stand on: a server on loopback with a loop of its own, and streams as endpoints send them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

DONE = b"data: [DONE]\n\n"


@contextmanager
def listening(serve: Serve) -> Iterator[int]:
    """The port of a server that gives each connection to `serve`; it ends, with whatever it still does, on leaving."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    server.close()
    loop.run_until_complete(_end_all(loop))
    loop.close()


async def _end_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = [t for t in asyncio.all_tasks(loop) if t is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def begin(writer: asyncio.StreamWriter) -> None:
    """The head of an event stream in chunks."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")


def frame(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def put(writer: asyncio.StreamWriter, data: bytes) -> None:
    """One HTTP chunk."""
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def end(writer: asyncio.StreamWriter) -> None:
    """`[DONE]`, and the end of the answer."""
    put(writer, DONE)
    writer.write(b"0\r\n\r\n")
