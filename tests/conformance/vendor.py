"""The model endpoint behind the Noria of the conformance matrix: it does what the model's name says.

`chat` says hello; `tools` makes two calls at once and then repeats their results; `schema` answers JSON only where a schema
reached it; `refuse` is a 400 in the vendor's own words; `cut` breaks off a stream; `wait` is busy once for each prompt, for
`PAUSE` seconds; `dead` is a 500; `endless` streams until its caller leaves. `asked` are its requests, `gone` the moments
at which callers left (monotonic clock, the same in every process of a machine).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

TOKENS = ["Hel", "lo", ", ", "世", "界", "! ", "How ", "are ", "you", "?"]
TEXT = "".join(TOKENS)
USAGE = {"prompt_tokens": 12, "completion_tokens": 10, "total_tokens": 22}
CITIES = ["Chengdu", "Oslo"]
WEATHER = {"city": "Chengdu", "degrees": 21}
PAUSE = 0.7
"""Seconds that `wait` asks for: no client would wait just that long by itself, and Noria passes it on where it may not retry."""
REFUSAL = {"message": "temperature is too hot", "type": "invalid_request_error", "param": "temperature", "code": "too_hot"}
FAULT = {"message": "out of order", "type": "server_error", "param": None, "code": None}


class Vendor:
    """The endpoint. `start` serves it from a thread of its own."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[dict[str, Any]] = []
        self.gone: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._busy: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._server.close()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def of(self, prompt: str) -> list[dict[str, Any]]:
        """The requests whose last user message was `prompt`: `at` (monotonic seconds), `headers`, `body`."""
        return [a for a in self.asked if a["prompt"] == prompt]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                pairs = (line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                headers = {name.lower(): value for name, value in pairs}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                asked = {"at": time.monotonic(), "headers": headers, "body": body, "prompt": _prompt(body)}
                self.asked.append(asked)
                await self._answer(reader, writer, body, asked["prompt"])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any], prompt: str
    ) -> None:
        model = body["model"]
        if model == "wait" and prompt not in self._busy:
            self._busy.add(prompt)
            _whole(writer, 429, {"error": FAULT}, f"retry-after-ms: {PAUSE * 1000:.0f}\r\n")
        elif model == "refuse":
            _whole(writer, 400, {"error": REFUSAL})
        elif model == "dead":
            _whole(writer, 500, {"error": FAULT})
        elif not body.get("stream"):
            message = _message(model, body)
            finish = "tool_calls" if "tool_calls" in message else "stop"
            choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
            top = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model}
            _whole(writer, 200, {**top, "choices": [choice], "usage": USAGE})
        else:
            await self._stream(reader, writer, body)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        top = {"id": "chatcmpl-2", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

        def send(more: dict[str, Any]) -> None:
            data = b"data: " + json.dumps(top | more, ensure_ascii=False).encode() + b"\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))

        def delta(what: dict[str, Any], finish: str | None = None) -> None:
            send({"choices": [{"index": 0, "delta": what, "finish_reason": finish}]})

        if body["model"] == "endless":
            await self._endless(reader, delta)
        delta({"role": "assistant", "content": ""})
        finish = "stop"
        for i, piece in enumerate(_deltas(body)):
            if body["model"] == "cut" and i == 4:
                await writer.drain()
                raise ConnectionError
            finish = "tool_calls" if "tool_calls" in piece else finish
            delta(piece)
            await asyncio.sleep(0)  # frames of their own
        delta({}, finish)
        if (body.get("stream_options") or {}).get("include_usage"):
            send({"choices": [], "usage": USAGE})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    async def _endless(self, reader: asyncio.StreamReader, delta: Callable[[dict[str, Any]], None]) -> None:
        left = asyncio.ensure_future(reader.read(1))
        while not left.done():
            delta({"content": "on and "})
            await asyncio.wait([left], timeout=0.02)
        self.gone.append(time.monotonic())
        raise ConnectionError


def _prompt(body: dict[str, Any]) -> str:
    said = [m["content"] for m in body["messages"] if m["role"] == "user"][-1]
    return said if isinstance(said, str) else "".join(part.get("text", "") for part in said)


def _results(body: dict[str, Any]) -> list[str]:
    """What the tools gave, in the order of the two calls."""
    found = {m["tool_call_id"]: m["content"] for m in body["messages"] if m["role"] == "tool"}
    texts = [found.get(f"call_{city}", "lost") for city in CITIES]
    return [t if isinstance(t, str) else "".join(part["text"] for part in t) for t in texts]


def _message(model: str, body: dict[str, Any]) -> dict[str, Any]:
    form = (body.get("response_format") or {}).get("type")
    if model == "schema":
        text = json.dumps(WEATHER) if form == "json_schema" else f"no schema came, but {form}"
        return {"role": "assistant", "content": text}
    if model == "tools" and body["messages"][-1]["role"] == "tool":
        return {"role": "assistant", "content": " and ".join(_results(body))}
    if model == "tools":
        names = [t["function"]["name"] for t in body.get("tools", [])]
        name = names[0] if names else "no_tool_came"
        calls = [
            {"id": f"call_{c}", "type": "function", "function": {"name": name, "arguments": json.dumps({"city": c})}}
            for c in CITIES
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    return {"role": "assistant", "content": TEXT}


def _deltas(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An answer in pieces; the arguments of the first call in three-byte pieces before those of the second."""
    message = _message(body["model"], body)
    if "tool_calls" not in message:
        text = message["content"]
        pieces = TOKENS if text == TEXT else [text[i : i + 5] for i in range(0, len(text), 5)]
        yield from ({"content": piece} for piece in pieces)
        return
    for i, call in enumerate(message["tool_calls"]):
        function = {"name": call["function"]["name"], "arguments": ""}
        yield {"tool_calls": [{"index": i, "id": call["id"], "type": "function", "function": function}]}
        arguments = call["function"]["arguments"]
        for j in range(0, len(arguments), 3):
            yield {"tool_calls": [{"index": i, "function": {"arguments": arguments[j : j + 3]}}]}


def _whole(writer: asyncio.StreamWriter, status: int, value: Any, extra: str = "") -> None:
    data = json.dumps(value, ensure_ascii=False).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n{extra}\r\n"
    writer.write(head.encode() + data)
