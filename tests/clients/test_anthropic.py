"""The official Anthropic client against a running Noria: translated to an OpenAI endpoint, and native to its own kind."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic

ASK: Any = [{"role": "user", "content": "hello there 世界"}]
TOOLS: Any = [
    {
        "name": "get_weather",
        "description": "The weather of a city.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "cache_control": {"type": "ephemeral"},
    }
]
CONFIG = """
models:
  fake: {{provider: scripted, model: fake}}
  caller: {{provider: scripted, model: caller, options: {{tool: {{name: get_weather, arguments: '{{"city": "Chengdu"}}'}}}}}}
  up: {{provider: openai_compatible, url: "{up}", model: ok}}
  busy: {{provider: openai_compatible, url: "{up}", model: retry-after}}
  claude: {{provider: anthropic, url: "{claude}", model: claude-x}}
  crowded: {{provider: anthropic, url: "{claude}", model: crowded}}
  endless: {{provider: anthropic, url: "{claude}", model: endless}}
  down: {{provider: openai_compatible, url: "http://127.0.0.1:9/v1", model: none}}
guards:
  hide: [{{pii: {{action: mask}}}}]
  strict: [{{denylist: {{terms: [falcon], action: block, on: [input]}}}}]
apps:
  echo: {{model: fake}}
  caller: {{model: caller}}
  up: {{model: up}}
  busy: {{model: busy}}
  claude: {{model: claude}}
  mixed: {{model: [down, claude]}}
  crowded: {{model: crowded}}
  endless: {{model: endless}}
  guarded: {{model: claude, guard: hide}}
  strict: {{model: fake, guard: strict}}
"""
WHOLE = (
    b'{ "id":"msg_01", "type":"message","role":"assistant","model":"claude-x-2026","content":[{"type":"thinking",'
    b'"thinking":"hm","signature":"sig"},{"type":"text","text":"Gr\\u00fc\xc3\x9f  Gott"}],"stop_reason":"stop_sequence",'
    b'"stop_sequence":"END","usage":{"input_tokens":10,"cache_read_input_tokens":5,"cache_creation_input_tokens":7,'
    b'"cache_creation":{"ephemeral_5m_input_tokens":4,"ephemeral_1h_input_tokens":3},"output_tokens":20},"brand_new":1}'
)
STREAM = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_02","type":"message","role":"assistant","model":'
    b'"claude-x-2026","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":10,"cache_read_input_tokens":5,'
    b'"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    b'event: ping\ndata: {"type": "ping"}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,  "delta":{"type":"text_delta","text":"Gr\\u00fc"}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\xc3\x9f Gott"}}\n\n'
    b'event: brand_new\ndata: {"type":"brand_new"}\n\n'
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":'
    b'{"output_tokens":20}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)


class Claude:
    """An endpoint of Anthropic's dialect: fixed bytes, so that a changed one shows."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.gone: list[float] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lines = head.split("\r\n")
                headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if ": " in line)}
                raw = await reader.readexactly(int(headers["content-length"]))
                body = json.loads(raw)
                self.seen.append({"path": lines[0].split()[1], "headers": headers, "raw": raw, "body": body})
                await self._answer(reader, writer, lines[0].split()[1], body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]
    ) -> None:
        if body["model"] == "crowded":
            error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "req_up"}
            _whole(writer, 529, json.dumps(error).encode())
        elif path.endswith("/count_tokens"):
            _whole(writer, 200, b'{"input_tokens": 42}')
        elif body.get("thinking") == {"type": "wrong"}:
            error = {"type": "error", "error": {"type": "invalid_request_error", "message": "thinking: bad"}, "request_id": "r"}
            _whole(writer, 400, json.dumps(error).encode())
        elif not body.get("stream"):
            _whole(writer, 200, WHOLE)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            if body["model"] == "endless":
                await self._endless(reader, writer)
            for i in range(0, len(STREAM), 7):  # torn anywhere
                piece = STREAM[i : i + 7]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            writer.write(b"0\r\n\r\n")

    async def _endless(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = asyncio.ensure_future(reader.read(1))
        frames = STREAM.split(b"\n\n")
        writer.write(b"".join(b"%x\r\n%b\r\n" % (len(f) + 2, f + b"\n\n") for f in frames[:2]))
        while not left.done():
            writer.write(b"%x\r\n%b\r\n" % (len(frames[4]) + 2, frames[4] + b"\n\n"))
            await asyncio.wait([left], timeout=0.02)
        self.gone.append(time.monotonic())
        raise ConnectionError


def _whole(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))


@pytest.fixture(scope="module")
def claude() -> Iterator[Claude]:
    made = Claude()
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(made.serve, "127.0.0.1", 0))
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
def here(upstream: Any, claude: Claude, start_service: Any) -> Iterator[SimpleNamespace]:
    with tempfile.TemporaryDirectory(prefix="noria-") as folder:
        config = CONFIG.format(up=upstream.url, claude=f"http://127.0.0.1:{claude.port}")
        service = start_service(Path(folder), config, "--workers", "1")
        try:
            key = service.json("keys", "create", "--name", "clients")["key"]
            yield SimpleNamespace(url=service.url, key=key, service=service)
        finally:
            service.stop()


@pytest.fixture
def client(here: Any) -> Iterator[Anthropic]:
    with Anthropic(base_url=here.url, api_key=here.key, max_retries=0) as made:
        yield made


def row(here: Any, id: str) -> dict[str, Any]:
    return here.service.trace(id)["row"]


# -- translated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["echo", "up"])
def test_a_message_is_answered_and_its_exchange_can_be_found(client: Anthropic, here: Any, app: str) -> None:
    got = client.messages.with_raw_response.create(model=app, max_tokens=50, messages=ASK, system="Be kind.")
    done = got.parse()
    assert done.content[0].text == ("hello there 世界" if app == "echo" else "Hello, 世界! How are you?")
    assert (done.role, done.type, done.stop_reason) == ("assistant", "message", "end_turn")
    assert done.usage.input_tokens > 0
    assert done.usage.output_tokens > 0
    assert got.headers["request-id"] == got.headers["x-request-id"] == done._request_id
    assert row(here, done._request_id)["tokens_in"] == done.usage.input_tokens


@pytest.mark.parametrize("app", ["echo", "up"])
def test_the_stream_helper_gives_the_whole_message(client: Anthropic, app: str) -> None:
    with client.messages.stream(model=app, max_tokens=50, messages=ASK) as stream:
        kinds = [e.type for e in stream]
        final = stream.get_final_message()
    assert final.content[0].text == ("hello there 世界" if app == "echo" else "Hello, 世界! How are you?")
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 0
    assert final.usage.input_tokens > 0


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called_and_their_results_read(client: Anthropic, streamed: bool) -> None:
    what: Any = {"model": "caller", "max_tokens": 50, "messages": ASK, "tools": TOOLS, "tool_choice": {"type": "any"}}
    if streamed:
        with client.messages.stream(**what) as stream:
            done = stream.get_final_message()
    else:
        done = client.messages.create(**what)
    use = done.content[-1]
    assert (use.type, use.name, use.input) == ("tool_use", "get_weather", {"city": "Chengdu"})
    assert done.stop_reason == "tool_use"
    result = {
        "type": "tool_result",
        "tool_use_id": use.id,
        "content": [{"type": "text", "text": "21 degrees"}],
        "is_error": False,
    }
    turns = [*ASK, {"role": "assistant", "content": done.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(model="up", max_tokens=50, messages=turns, tools=TOOLS)
    assert after.content[0].text == "Hello, 世界! How are you?"


async def test_a_message_is_answered_async(here: Any) -> None:
    async with AsyncAnthropic(base_url=here.url, api_key=here.key, max_retries=0) as later:
        done = await later.messages.create(model="echo", max_tokens=50, messages=ASK)
        async with later.messages.stream(model="up", max_tokens=50, messages=ASK) as stream:
            text = "".join([piece async for piece in stream.text_stream])
    assert done.content[0].text == "hello there 世界"
    assert text == "Hello, 世界! How are you?"


def test_a_request_as_of_claude_code_goes_to_an_openai_endpoint_and_says_what_it_lost(
    client: Anthropic, here: Any, upstream: Any
) -> None:
    user = "user_" + "a" * 64 + "_account__session_" + "b" * 36
    call: Any = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Chengdu"}}
    result: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny", "is_error": True}
    got = client.beta.messages.with_raw_response.create(
        model="up",
        max_tokens=4000,
        betas=["claude-code-20250219", "interleaved-thinking-2025-05-14"],
        system=[{"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral"}}],
        metadata={"user_id": user},
        thinking={"type": "enabled", "budget_tokens": 2048},
        tools=TOOLS,
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, call]},
            {"role": "user", "content": [result, {"type": "text", "text": "go on", "cache_control": {"type": "ephemeral"}}]},
        ],
    )
    sent = upstream.seen[-1]
    assert "anthropic-beta" not in sent["headers"]
    assert [m["role"] for m in sent["body"]["messages"]] == ["system", "user", "assistant", "tool", "user"]
    assert sent["body"]["messages"][1]["content"] == "a\n\nb"
    assert sent["body"]["reasoning_effort"] == "low"
    assert b"cache_control" not in json.dumps(sent["body"]).encode()
    assert not {"thinking", "anthropic", "metadata"} & set(sent["body"])
    assert len(sent["body"]["user"]) <= 64
    found = here.service.trace(got.headers["request-id"])
    assert user not in json.dumps(found), "the raw name of a user is not stored"
    assert found["row"]["dialect"] == "anthropic"
    assert found["row"]["native"] is False
    said = " ".join(found["row"]["warnings"])
    for word in ("cache_control", "Earlier thinking", "thinking budget", "is_error", "anthropic-beta"):
        assert word in said


# -- native -------------------------------------------------------------------------------------------------


def test_an_answer_of_the_callers_own_dialect_keeps_every_byte(here: Any, http: Any, claude: Claude) -> None:
    body = (
        b'{"model": "claude", "max_tokens":9,"messages" : [ {"role":"user","content":[{"type":"text","text":"hi",'
        b'"cache_control":{"type":"ephemeral","ttl":"1h"}}]} ], "brand_new": {"a":  1},"metadata":{"user_id":"ada-4711"}}'
    )
    betas = "interleaved-thinking-2025-05-14, files-api-2025-04-14"
    headers = {"x-api-key": here.key, "anthropic-version": "2023-06-01", "anthropic-beta": betas}
    status, got, answer = http(here.url + "/v1/messages", body, headers)
    assert (status, answer) == (200, WHOLE)
    assert claude.seen[-1]["raw"] == (
        b'{"model":"claude-x","max_tokens":9,"messages":[ {"role":"user","content":[{"type":"text","text":"hi",'
        b'"cache_control":{"type":"ephemeral","ttl":"1h"}}]} ],"brand_new":{"a":  1},"metadata":{"user_id":"ada-4711"}}'
    )
    assert claude.seen[-1]["headers"]["anthropic-beta"] == "interleaved-thinking-2025-05-14"
    assert "x-api-key" not in claude.seen[-1]["headers"], "the caller's key is not for the endpoint"
    found = here.service.trace(got["request-id"])
    one = found["row"]
    assert (one["native"], one["dialect"], one["finish_reason"], one["served_model"]) == (
        True,
        "anthropic",
        "stop",
        "claude-x-2026",
    )
    usage = {k: one["usage"][k] for k in ("input", "output", "cached", "cache_write", "cache_write_long")}
    assert usage == {"input": 22, "output": 20, "cached": 5, "cache_write": 4, "cache_write_long": 3}
    assert found["answer"]["content"][1]["text"] == "Grüß  Gott"
    assert found["request"]["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert "ada-4711" not in json.dumps(found)
    assert any("files-api" in w for w in one["warnings"])


@pytest.mark.parametrize("app", ["claude", "mixed"])
def test_a_native_stream_keeps_every_byte_behind_a_failed_endpoint_too(here: Any, http: Any, app: str) -> None:
    body = {"model": app, "max_tokens": 9, "messages": ASK, "stream": True}
    status, got, answer = http(here.url + "/v1/messages", body, {"x-api-key": here.key})
    assert status == 200
    assert got["content-type"].startswith("text/event-stream")
    assert answer == STREAM
    found = here.service.trace(got["request-id"])
    assert found["row"]["native"] is True
    assert (found["row"]["tokens_in"], found["row"]["tokens_out"]) == (15, 20)
    assert found["row"]["ttft_ns"] is not None
    assert found["answer"]["content"] == [{"type": "text", "text": "Grüß Gott"}]
    assert found["chat"]["answer"]["choices"][0]["message"]["content"] == "Grüß Gott"
    assert found["chat"]["request"]["messages"] == ASK
    listed = here.service.json("trace", "list")
    mine = next(line for line in (listed if isinstance(listed, list) else listed["rows"]) if line["id"] == got["request-id"])
    assert (mine["preview_in"], mine["preview_out"]) == ("hello there 世界", "Grüß Gott")


def test_a_masked_request_is_translated_and_keeps_its_markers(client: Anthropic, here: Any, claude: Claude) -> None:
    thought: Any = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    use: Any = {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {}}
    turns: Any = [
        {"role": "user", "content": [{"type": "text", "text": "I am ada@example.org", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, thought, use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "x", "is_error": True}]},
    ]
    done = client.messages.create(model="guarded", max_tokens=9, messages=turns, tools=TOOLS, metadata={"user_id": "u"})
    sent = claude.seen[-1]["body"]
    assert "ada@example.org" not in json.dumps(sent)
    assert sent["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert sent["messages"][1]["content"] == turns[1]["content"]
    assert sent["messages"][2]["content"][0]["is_error"] is True
    assert sent["tools"][0]["cache_control"] == {"type": "ephemeral"}
    assert sent["metadata"] == {"user_id": "u"}
    assert (done.stop_reason, done.stop_sequence) == ("stop_sequence", "END")
    assert [b.type for b in done.content] == ["thinking", "text"]
    assert done.content[0].signature == "sig"
    usage = done.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (10, 5, 7)
    assert usage.cache_creation.ephemeral_1h_input_tokens == 3
    assert row(here, done._request_id)["native"] is False


# -- errors -------------------------------------------------------------------------------------------------


def test_errors_are_those_that_the_client_knows(client: Anthropic, here: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="nothing", max_tokens=5, messages=ASK)
    assert (missing.value.type, missing.value.error_code) == ("not_found_error", "model_not_found")
    assert missing.value.request_id == missing.value.body["request_id"]
    with (
        Anthropic(base_url=here.url, api_key="nk-wrong", max_retries=0) as other,
        pytest.raises(anthropic.AuthenticationError) as e,
    ):
        other.messages.create(model="echo", max_tokens=5, messages=ASK)
    assert e.value.type == "authentication_error"
    with pytest.raises(anthropic.BadRequestError) as blocked:
        client.messages.create(model="strict", max_tokens=5, messages=[{"role": "user", "content": "a falcon"}])
    assert blocked.value.type == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError) as wrong:
        client.messages.create(model="echo", messages=ASK, max_tokens=-1)
    assert "max_tokens" in wrong.value.api_message
    with pytest.raises(anthropic.OverloadedError) as crowded:
        client.messages.create(model="crowded", max_tokens=5, messages=ASK)
    assert (crowded.value.status_code, crowded.value.type) == (529, "overloaded_error")
    with pytest.raises(anthropic.BadRequestError) as own:
        client.messages.create(model="claude", max_tokens=5, messages=ASK, thinking={"type": "wrong"})  # type: ignore[arg-type]
    assert own.value.api_message == "thinking: bad"


@pytest.mark.parametrize(
    ("body", "param"), [(b"{", ""), (b'{"model":"echo","max_tokens":1,"messages":[{"role":"x"}]}', "role")]
)
def test_what_cannot_be_read_is_refused_in_the_callers_words(here: Any, http: Any, body: bytes, param: str) -> None:
    status, got, answer = http(here.url + "/v1/messages", body, {"x-api-key": here.key})
    said = json.loads(answer)
    assert (status, said["type"], said["error"]["type"]) == (400, "error", "invalid_request_error")
    assert param in said["error"]["message"]
    assert said["request_id"] == got["request-id"]
    status, _, answer = http(here.url + "/v1/messages", b"", {"x-api-key": here.key}, method="GET")
    assert (status, json.loads(answer)["type"]) == (405, "error")


@pytest.mark.parametrize(("app", "retries", "error"), [("busy", 0, "rate_limit_error"), ("crowded", 2, "overloaded_error")])
def test_the_client_does_not_retry_what_we_have_retried(here: Any, app: str, retries: int, error: str) -> None:
    count = 0

    def counted(request: httpx2.Request) -> None:
        nonlocal count
        count += 1

    with (
        anthropic.DefaultHttpxClient(event_hooks={"request": [counted]}) as http,
        Anthropic(base_url=here.url, api_key=here.key, max_retries=retries, http_client=http) as made,
        pytest.raises(anthropic.APIStatusError) as e,
    ):
        made.messages.create(model=app, max_tokens=5, messages=ASK)
    assert (e.value.type, count) == (error, 1)


# -- the rest -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("app", "count", "how"), [("claude", 42, "exact"), ("up", None, "estimated")])
def test_tokens_are_counted_and_the_count_says_how_it_is_known(
    client: Anthropic, app: str, count: int | None, how: str
) -> None:
    got = client.messages.with_raw_response.count_tokens(model=app, messages=ASK, system="Be kind.", tools=TOOLS)
    assert got.headers["x-noria-count"] == how
    tokens = got.parse().input_tokens
    assert tokens == count if count else 10 < tokens < 200


def test_models_are_listed_in_the_clients_shape(client: Anthropic, here: Any, http: Any) -> None:
    names = [m.id for m in client.models.list()]
    assert {"echo", "claude"} <= set(names)
    one = client.models.retrieve("echo")
    assert (one.id, one.type, one.display_name) == ("echo", "model", "echo")
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("nothing")
    plain = json.loads(http(here.url + "/v1/models", b"", {"authorization": f"Bearer {here.key}"}, method="GET")[2])
    assert plain["object"] == "list", "others get OpenAI's shape"


def test_a_caller_who_leaves_ends_the_call(client: Anthropic, claude: Claude) -> None:
    with client.messages.stream(model="endless", max_tokens=5, messages=ASK) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                break
    left = time.monotonic()
    while not claude.gone and time.monotonic() < left + 5:
        time.sleep(0.01)
    assert claude.gone, "the endpoint goes on"
    assert claude.gone[-1] - left < 0.5
