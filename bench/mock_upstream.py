"""The mock upstream for machines without a C compiler: as `mock_upstream.c`, two to three times slower.

python mock_upstream.py PORT
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

import httptools
import uvloop

TOKENS = 64
WORDS = ("The", " river", " lifts", " the", " wheel", " and", " the", " wheel lifts water.")
USAGE = {"prompt_tokens": 96, "completion_tokens": TOKENS, "total_tokens": 96 + TOKENS}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
MODEL = re.compile(rb'"model": ?"([^"]*)"')
PACE = re.compile(rb"-([lg])(\d+)")


def whole(answer: dict) -> bytes:
    """An HTTP answer with a JSON body."""
    body = json.dumps(answer, separators=(",", ":")).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def completion() -> bytes:
    text = "".join(WORDS[i & 7] for i in range(TOKENS))
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": "stop"}
    return whole(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1,
            "model": "mock",
            "choices": [choice],
            "usage": USAGE,
        }
    )


def chunk(delta: dict | None, finish: str | None = None, usage: dict | None = None) -> bytes:
    """One event of a stream as one chunk of an HTTP body; `delta` None is the usage event."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    event = {
        "id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1, "model": "mock", "choices": choices, "usage": usage,
    }  # fmt: skip
    return framed(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = completion()
EVENTS = [
    chunk({"role": "assistant", "content": ""}),
    *(chunk({"content": WORDS[i & 7]}) for i in range(TOKENS)),
    chunk({}, "stop"),
]
DONE = framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
ASKED = chunk(None, usage=USAGE)


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests come one after the other."""

    requests = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body = b""

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        if self.parser.get_method() == b"GET":
            self.transport.write(whole({"requests": Connection.requests}))
            return
        Connection.requests += 1
        found = MODEL.search(self.body)
        pace = {letter: int(n) for letter, n in PACE.findall(found[1] if found else b"")}
        stream = b'"stream":true' in self.body
        last = (ASKED if b'"include_usage":true' in self.body else b"") + DONE
        asyncio.get_running_loop().call_later(
            pace.get(b"l", 0) / 1000, self.answer, [*EVENTS, last] if stream else [], pace.get(b"g", 0) / 1e6
        )

    def answer(self, events: list[bytes], gap: float) -> None:
        if self.transport.is_closing():
            return
        if not events:
            self.transport.write(WHOLE)
        elif not gap:
            self.transport.write(STREAM_HEAD + b"".join(events))
        else:
            self.transport.write(STREAM_HEAD)
            self.next(events, 0, gap)

    def next(self, events: list[bytes], at: int, gap: float) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(events[at])
        if at + 1 < len(events):
            asyncio.get_running_loop().call_later(gap, self.next, events, at + 1, gap)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
