"""Shared by the tests of the running service: a caller, an operator, and an upstream that repeats what it is told."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.loopback import begin, end, frame, listening, put

KEYS = {"message", "type", "param", "code"}
CALLS = {
    "tool": ("function", "arguments", lambda text: json.dumps({"text": text}, ensure_ascii=False)),
    "custom": ("custom", "input", str),
}
"""What the mirror's models that call tools put where."""


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def frames(self) -> list[Any]:
        """The data of a stream's frames, decoded; `[DONE]` as it is; comments left out."""
        assert self.body.endswith(b"\n\n"), "a frame without its blank line is lost"
        data = [f[6:] for f in self.body.decode().split("\n\n") if f.startswith("data: ")]
        return [d if d == "[DONE]" else json.loads(d) for d in data]

    def text(self, choice: int = 0) -> str:
        """The content of a choice, of a stream or of a whole answer."""
        if not self.headers["content-type"].startswith("text/event-stream"):
            return self.json["choices"][choice]["message"]["content"]
        choices = [c for f in self.frames if f != "[DONE]" for c in f.get("choices", []) if c["index"] == choice]
        return "".join(c["delta"].get("content") or "" for c in choices)

    def arguments(self) -> str:
        """The arguments of the first tool call, or its input where it is of a custom tool."""
        if not self.headers["content-type"].startswith("text/event-stream"):
            calls = self.json["choices"][0]["message"]["tool_calls"][:1]
        else:
            choices = [c for f in self.frames if f != "[DONE]" for c in f["choices"]]
            calls = [call for c in choices for call in c["delta"].get("tool_calls") or []]
        said = [call.get("function") or call["custom"] for call in calls]
        return "".join(s.get("arguments", s.get("input", "")) for s in said)

    def refuses(self, status: int, code: str | None, type: str = "invalid_request_error", param: str | None = None) -> dict:
        """Assert the whole shape of an OpenAI error; the error."""
        assert self.status == status, self.body
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error"}
        error = self.json["error"]
        assert set(error) - {"details"} == KEYS
        assert (error["code"], error["type"], error["param"]) == (code, type, param), error
        assert error["message"]
        return error


@dataclass
class Caller:
    """Speaks to one service as its clients, and as its operator."""

    service: Any
    key: str = ""

    @property
    def token(self) -> str:
        return (self.service.home / "admin.token").read_text().strip()

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, timeout: float = 30
    ) -> Answer:
        """One request, its headers exactly these and those that HTTP needs."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(urlsplit(self.service.url).netloc, timeout=timeout)
        try:
            connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        bearer = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return self.send("POST", path, body, bearer | (headers or {}))

    def chat(self, model: str, text: str = "hello", *, headers: dict[str, str] | None = None, **more: Any) -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        return self.post("/v1/chat/completions", body, headers)

    def api(self, method: str, path: str, body: Any = None) -> Answer:
        return self.send(method, path, body, {"authorization": f"Bearer {self.token}"})

    def new_key(self, **what: Any) -> str:
        """The text of a new key, in force at every worker when this returns."""
        made = self.api("POST", "/api/keys", what)
        assert made.status == 201, made.body
        key = made.json["key"]
        for _ in range(100):  # every worker follows within a moment; ask often enough to meet each of them
            if all(self.knows(key) for _ in range(6)):
                return key
            time.sleep(0.02)
        raise AssertionError("the new key is not in force")

    def knows(self, key: str) -> bool:
        return self.send("GET", "/v1/models", headers={"authorization": f"Bearer {key}"}).status == 200

    def trace(self, id: str, within: float = 15.0) -> dict[str, Any]:
        """The recorded exchange, as soon as it is there."""
        end = time.monotonic() + within
        while True:
            found = self.api("GET", f"/api/traces/{id}")
            if found.status == 200:
                return found.json
            assert time.monotonic() < end, found.body
            time.sleep(0.05)

    def row(self, id: str) -> dict[str, Any]:
        return self.trace(id)["row"]


@pytest.fixture(scope="session")
def caller() -> Callable[..., Caller]:
    return Caller


@dataclass
class Mirror:
    """An upstream that answers with the last user message; `seen` are the bodies it got."""

    port: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    gone: list[float] = field(default_factory=list)
    """When (monotonic) callers of `endless` hung up."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def last(self) -> dict[str, Any]:
        return self.seen[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.seen.append(body)
                await self._answer(reader, writer, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        asked = [m["content"] for m in body["messages"] if m["role"] == "user"][-1]
        many = body.get("n", 1)
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        top = {"id": "chatcmpl-m", "object": "chat.completion", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choices = [{"index": i, "message": _said(body["model"], asked), "finish_reason": "stop"} for i in range(many)]
            data = json.dumps(top | {"choices": choices, "usage": usage}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
            return
        begin(writer)
        top["object"] = "chat.completion.chunk"

        def chunk(more: dict[str, Any]) -> None:
            put(writer, frame(top | more))

        if body["model"] == "endless":
            await self._endless(reader, chunk)
            return
        for delta in _deltas(body["model"], asked):
            for i in range(many):
                chunk({"choices": [{"index": i, "delta": delta, "finish_reason": None}]})
        for i in range(many):
            chunk({"choices": [{"index": i, "delta": {}, "finish_reason": "stop"}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            chunk({"choices": [], "usage": usage})
        end(writer)

    async def _endless(self, reader: asyncio.StreamReader, chunk: Callable[[dict[str, Any]], None]) -> None:
        left = asyncio.ensure_future(reader.read(1))
        while not left.done():
            chunk({"choices": [{"index": 0, "delta": {"content": "on and "}, "finish_reason": None}]})
            await asyncio.wait([left], timeout=0.02)
        self.gone.append(time.monotonic())
        raise ConnectionError


def _said(model: str, text: str) -> dict[str, Any]:
    if model not in CALLS:
        return {"role": "assistant", "content": text}
    kind, inner, written = CALLS[model]
    call = {"id": "call_1", "type": kind, kind: {"name": "note", inner: written(text)}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _deltas(model: str, text: str) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    if model not in CALLS:
        yield from ({"content": text[i : i + 3]} for i in range(0, len(text), 3))
        return
    kind, inner, written = CALLS[model]
    yield {"tool_calls": [{"index": 0, "id": "call_1", "type": kind, kind: {"name": "note", inner: ""}}]}
    whole = written(text)
    for i in range(0, len(whole), 3):
        yield {"tool_calls": [{"index": 0, kind: {inner: whole[i : i + 3]}}]}


@pytest.fixture(scope="session")
def mirror() -> Iterator[Mirror]:
    """Model names: `tool` calls a tool with the text, `custom` a custom tool, `endless` streams until its caller leaves,
    others say it.
    """
    made = Mirror()
    with listening(made.serve) as made.port:
        yield made
