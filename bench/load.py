"""The load generator for machines without a C compiler: as `load.c`, two to three times slower.

python load.py PORT REQUEST_FILE REQUESTS CONNECTIONS SAMPLES_FILE
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from pathlib import Path
from time import perf_counter_ns

import httptools
import uvloop

STALL_S = 20.0


class Run:
    """What all connections of one run share."""

    def __init__(self, request: bytes, requests: int) -> None:
        self.request = request
        self.left = requests
        self.open = 0
        self.serial = time.time_ns() // 1000
        self.samples: list[tuple[int, int]] = []
        self.counts = dict.fromkeys(("sent", "ok", "bad_status", "bad_stream", "lost", "stalled", "frames"), 0)
        self.done = asyncio.get_running_loop().create_future()
        self.progress = time.monotonic()

    def next(self, number: int) -> bytes:
        """The next request, or nothing where all are sent."""
        if not self.left:
            return b""
        self.left -= 1
        self.open += 1
        self.serial += 1
        self.counts["sent"] += 1
        return self.request.replace(b"##########", b"%010d" % (self.serial % 10**10)).replace(b"@@@@@@@@@@", b"%010d" % number)

    def over(self, what: str) -> None:
        """One answer has ended: well (`ok`) or not."""
        self.counts[what] += 1
        self.open -= 1
        self.progress = time.monotonic()

    def idle(self) -> None:
        if not self.open and not self.left and not self.done.done():
            self.done.set_result(None)


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, run: Run, number: int) -> None:
        self.run = run
        self.number = number
        self.waiting = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)
        self.ask()

    def ask(self) -> None:
        data = self.run.next(self.number)
        self.first, self.body, self.streamed = 0, [], False
        self.waiting = bool(data)
        if data:
            self.began = perf_counter_ns()
            self.transport.write(data)
        else:
            self.run.idle()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.streamed = self.streamed or (name.lower() == b"content-type" and value.startswith(b"text/event-stream"))

    def on_body(self, part: bytes) -> None:
        self.first = self.first or perf_counter_ns()
        self.body.append(part)

    def on_message_complete(self) -> None:
        now = perf_counter_ns()
        body = b"".join(self.body)
        if self.parser.get_status_code() != 200:
            self.run.over("bad_status")
        elif self.streamed and b"data: [DONE]" not in body:
            self.run.over("bad_stream")
        else:
            self.run.samples.append((now - self.began, self.first - self.began))
            self.run.counts["frames"] += body.count(b"data: {") if self.streamed else 0
            self.run.over("ok")
        asyncio.get_running_loop().call_soon(self.ask)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  the event loop's signature
        if self.waiting:
            self.waiting = False
            self.run.over("lost")
            self.run.idle()


async def main(port: int, request: bytes, requests: int, connections: int, samples: Path) -> None:
    loop = asyncio.get_running_loop()
    run = Run(request, requests)
    began = time.perf_counter()
    made = [(await loop.create_connection(lambda i=i: Connection(run, i), "127.0.0.1", port))[0] for i in range(connections)]
    while not run.done.done():
        await asyncio.wait([run.done], timeout=1.0)
        if not run.done.done() and time.monotonic() - run.progress > STALL_S:
            run.counts["stalled"] = run.open
            break
    seconds = time.perf_counter() - began
    for transport in made:
        transport.abort()
    samples.write_bytes(b"".join(struct.pack("<QQ", *s) for s in run.samples))  # noqa: ASYNC240  all is measured by now
    print(json.dumps(run.counts | {"seconds": seconds}))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), Path(sys.argv[2]).read_bytes(), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])))
