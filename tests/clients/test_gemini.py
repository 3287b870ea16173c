"""Gemini's protocol over plain HTTP: translated to an OpenAI endpoint, and native to its own kind."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

CONFIG = """
models:
  fake: {{provider: scripted, model: fake}}
  up: {{provider: openai_compatible, url: "{up}", model: ok}}
  google: {{provider: gemini, url: "{google}", model: gemini-2.5-flash}}
apps:
  echo: {{model: fake}}
  up: {{model: up}}
  google: {{model: google}}
"""
WHOLE = (
    b'{ "candidates": [ {"content":{"role":"model","parts":[{"text":"Gr\\u00fc\xc3\x9f  Gott"}]},"finishReason":"STOP","index":0} ],'
    b'"usageMetadata":{"promptTokenCount":10,"cachedContentTokenCount":4,"candidatesTokenCount":5,"thoughtsTokenCount":2,'
    b'"totalTokenCount":17},"modelVersion":"gemini-2.5-flash","responseId":"r1","brandNew":1}'
)
STREAM = (
    b'data: {"candidates": [{"content": {"parts": [{"text": "Gr\\u00fc"}],"role": "model"}}],"responseId":"r2","modelVersion":"g"}\r\n\r\n'
    b'data: {"candidates": [{"content": {"parts": [{"text": "\xc3\x9f"}]},"finishReason": "STOP"}],"usageMetadata": '
    b'{"promptTokenCount": 10,"candidatesTokenCount": 5}}\r\n\r\n'
)
ASK = {"contents": [{"role": "user", "parts": [{"text": "hello there"}]}], "generationConfig": {"maxOutputTokens": 50}}


@pytest.fixture(scope="module")
def google() -> Iterator[SimpleNamespace]:
    made = SimpleNamespace(seen=[], port=0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if ": " in line)}
                raw = await reader.readexactly(int(headers["content-length"]))
                made.seen.append({"path": lines[0].split()[1], "headers": headers, "raw": raw})
                path = lines[0].split()[1]
                kind, answer = b"application/json", WHOLE
                if ":countTokens" in path:
                    answer = b'{"totalTokens": 7}'
                elif ":stream" in path:
                    kind, answer = b"text/event-stream", STREAM
                writer.write(
                    b"HTTP/1.1 200 X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(answer), answer)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    made.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield made
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    server.close()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()


@pytest.fixture(scope="module")
def here(upstream: Any, google: Any, start_service: Any) -> Iterator[SimpleNamespace]:
    with tempfile.TemporaryDirectory(prefix="noria-") as folder:
        config = CONFIG.format(up=upstream.url, google=f"http://127.0.0.1:{google.port}")
        service = start_service(Path(folder), config, "--workers", "1")
        try:
            yield SimpleNamespace(url=service.url, key=service.json("keys", "create", "--name", "g")["key"], service=service)
        finally:
            service.stop()


def path(app: str, action: str) -> str:
    return f"/v1beta/models/{app}:{action}"


@pytest.mark.parametrize("app", ["echo", "up"])
def test_content_is_generated_by_an_endpoint_of_another_dialect(here: Any, http: Any, app: str) -> None:
    status, _, answer = http(here.url + path(app, "generateContent"), ASK, {"x-goog-api-key": here.key})
    got = json.loads(answer)
    assert status == 200
    said = got["candidates"][0]["content"]["parts"][0]["text"]
    assert said == ("hello there" if app == "echo" else "Hello, 世界! How are you?")
    assert got["candidates"][0]["finishReason"] == "STOP"
    assert got["usageMetadata"]["promptTokenCount"] > 0


@pytest.mark.parametrize("sse", [True, False])
def test_a_translated_stream_comes_as_events_or_as_one_array(here: Any, http: Any, sse: bool) -> None:
    url = here.url + path("up", "streamGenerateContent") + f"?key={here.key}" + ("&alt=sse" if sse else "")
    status, headers, answer = http(url, ASK)
    events = [json.loads(f[6:]) for f in answer.decode().split("\n\n") if f] if sse else json.loads(answer)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream" if sse else "application/json")
    assert "".join(p["text"] for e in events for p in e["candidates"][0]["content"]["parts"]) == "Hello, 世界! How are you?"
    assert events[-1]["usageMetadata"]["candidatesTokenCount"] == 10


def test_the_callers_own_dialect_keeps_every_byte(here: Any, http: Any, google: Any) -> None:
    key = {"x-goog-api-key": here.key}
    status, got, answer = http(here.url + path("google", "generateContent"), ASK, key)
    assert (status, answer) == (200, WHOLE)
    assert json.loads(google.seen[-1]["raw"]) == ASK
    assert google.seen[-1]["path"] == "/v1beta/models/gemini-2.5-flash:generateContent"
    assert "x-goog-api-key" not in google.seen[-1]["headers"], "the caller's key is not for the endpoint"
    found = here.service.trace(got["x-request-id"])
    assert (found["row"]["native"], found["row"]["tokens_in"], found["row"]["tokens_out"]) == (True, 10, 7)
    status, got, answer = http(here.url + path("google", "streamGenerateContent") + "?alt=sse", ASK, key)
    assert (status, answer) == (200, STREAM)
    found = here.service.trace(got["x-request-id"])
    assert found["answer"]["candidates"][0]["content"]["parts"] == [{"text": "Grüß"}]
    assert found["chat"]["answer"]["choices"][0]["message"]["content"] == "Grüß"
    _, _, answer = http(here.url + path("google", "streamGenerateContent"), ASK, key)
    assert [e["candidates"][0]["content"]["parts"][0]["text"] for e in json.loads(answer)] == ["Grü", "ß"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_openai_caller_is_answered_by_the_gemini_provider(here: Any, http: Any, google: Any, stream: bool) -> None:
    body = {"model": "google", "messages": [{"role": "user", "content": "hi"}], "parallel_tool_calls": False, "stream": stream}
    status, got, answer = http(here.url + "/v1/chat/completions", body, {"authorization": f"Bearer {here.key}"})
    assert status == 200
    assert "Gr" in answer.decode()
    assert "finish_reason" in answer.decode()
    assert json.loads(google.seen[-1]["raw"])["contents"] == [{"role": "user", "parts": [{"text": "hi"}]}]
    found = here.service.trace(got["x-request-id"])["row"]
    assert found["native"] is False
    assert any("parallel_tool_calls" in w for w in found["warnings"])
    assert found["tokens_in"] == 10


@pytest.mark.parametrize(("app", "how"), [("google", "exact"), ("up", "estimated")])
def test_tokens_are_counted(here: Any, http: Any, app: str, how: str) -> None:
    status, got, answer = http(here.url + path(app, "countTokens"), {"contents": ASK["contents"]}, {"x-goog-api-key": here.key})
    assert (status, got["x-noria-count"]) == (200, how)
    assert json.loads(answer)["totalTokens"] == 7 if app == "google" else json.loads(answer)["totalTokens"] > 4


def test_errors_have_googles_shape(here: Any, http: Any) -> None:
    key = {"x-goog-api-key": here.key}
    for url, status, word in (
        (path("nothing", "generateContent"), 404, "NOT_FOUND"),
        (path("echo", "generateContent"), 400, "INVALID_ARGUMENT"),
    ):
        got, _, answer = http(here.url + url, ASK if status == 404 else {"contents": [{"role": "x"}]}, key)
        assert (got, json.loads(answer)["error"]["code"], json.loads(answer)["error"]["status"]) == (status, status, word)
    got, _, answer = http(here.url + path("echo", "generateContent"), ASK, {"x-goog-api-key": "wrong"})
    assert (got, json.loads(answer)["error"]["status"]) == (401, "UNAUTHENTICATED")
    got, _, answer = http(here.url + "/v1beta/models", b"", key, method="GET")
    assert {"models/echo", "models/google"} <= {m["name"] for m in json.loads(answer)["models"]}
