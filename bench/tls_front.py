"""A TLS terminator before the mock, so that what is measured speaks TLS upstream. Its own CPU is nobody's figure.

python tls_front.py CERTIFICATE UPSTREAM_PORT        (prints "listening PORT" and serves until killed)
"""

from __future__ import annotations

import asyncio
import ssl
import sys

import uvloop


class Side(asyncio.Protocol):
    """One side of a relayed connection: what it gets goes to the other, as far as that keeps up."""

    other: asyncio.Transport | None = None

    def __init__(self) -> None:
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early.append(data)
        elif not self.other.is_closing():
            self.other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  the event loop's signature
        if self.other is not None:
            self.other.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.is_closing():
            self.other.resume_reading()


class Outer(Side):
    """The side that speaks TLS."""

    def __init__(self, port: int, tasks: set[asyncio.Task[None]]) -> None:
        super().__init__()
        self._port = port
        self._tasks = tasks

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        task = asyncio.get_running_loop().create_task(self._join())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self) -> None:
        inner, protocol = await asyncio.get_running_loop().create_connection(Side, "127.0.0.1", self._port)
        protocol.other, self.other = self.transport, inner
        inner.write(b"".join(self.early))
        if self.transport.is_closing():
            inner.close()


async def main(certificate: str, port: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    tasks: set[asyncio.Task[None]] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: Outer(port, tasks), "127.0.0.1", 0, ssl=context, backlog=1024
    )
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
