"""What every provider promises, over each one that can run without a network: real HTTP on 127.0.0.1, or none."""

import asyncio
import json
from contextlib import asynccontextmanager

import msgspec
import pytest

from noria.contracts.error import UpstreamError
from noria.contracts.exchange import ModelCall
from noria.contracts.release import Endpoint, Timeouts
from noria.contracts.stage import Provider
from noria.dialects.openai_answer import read_answer, read_text
from noria.dialects.openai_stream import StreamReader, assemble
from noria.dialects.sse import FrameSplitter
from noria.kit.extension import load

TEXT = "Hello there"
USAGE = {"input_tokens": 3, "output_tokens": 2}


class Upstream:
    """A server of one raw answer. `requests` holds (head, JSON body); `closed` is set when a client hangs up."""

    def __init__(self):
        self.pieces, self.hang, self.cut = [], False, False
        self.requests, self.closed = [], asyncio.Event()

    def answers(self, status, headers, *pieces, length=True):
        lines = [f"HTTP/1.1 {status} X", *(f"{k}: {v}" for k, v in headers.items()), "connection: close"]
        if length:
            lines.append(f"content-length: {sum(map(len, pieces))}")
        self.pieces = ["\r\n".join([*lines, "", ""]).encode(), *pieces]

    def json(self, status, value, **headers):
        self.answers(status, {"content-type": "application/json"} | headers, json.dumps(value).encode())

    def sse(self, *frames):
        self.answers(200, {"content-type": "text/event-stream", "x-request-id": "r1"}, *frames, length=False)

    async def serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(int(line[15:]) for line in head.decode().lower().split("\r\n") if line.startswith("content-length:"))
        self.requests.append((head.decode(), json.loads(await reader.readexactly(size))))
        for piece in self.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if self.hang:
            await reader.read()
        self.closed.set()
        if self.cut:
            writer.transport.abort()
        writer.close()

    @asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()


def chunk(delta, finish=None, **more):
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"id": "u1", "model": "served", "choices": choices} | more).encode() + b"\n\n"


def event(kind, **fields):
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


class OpenAI:
    """How an OpenAI-compatible server says what the contract asks for."""

    id, prefix, options = "openai_compatible", "/v1", {}

    def script(self, upstream, case):
        openai_usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        whole = {
            "id": "u1",
            "model": "served",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        }
        frames = [
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Hello"}),
            chunk({"content": " there"}),
            chunk({}, "stop"),
        ]
        tail = [chunk({}, choices=[], usage=openai_usage), b"data: [DONE]\n\n"]
        failed = {"error": {"message": "why", "type": "t", "param": None, "code": "c"}}
        script(upstream, case, whole | {"usage": openai_usage}, frames, tail, failed, b'data: {"error":{"message":"why"}}\n\n')
        return {}


class Claude:
    """The same in Anthropic's words."""

    id, prefix, options = "anthropic", "", {}

    def script(self, upstream, case):
        message = {
            "id": "u1",
            "type": "message",
            "model": "served",
            "content": [{"type": "text", "text": TEXT}],
            "stop_reason": "end_turn",
            "usage": USAGE,
        }
        frames = [
            event("message_start", message=message | {"content": [], "usage": USAGE | {"output_tokens": 0}}),
            event("content_block_start", index=0, content_block={"type": "text", "text": ""})
            + event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"}),
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": " there"}),
            event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
        ]
        failed = {"type": "error", "error": {"type": "t", "message": "why"}}
        script(
            upstream,
            case,
            message,
            frames,
            [event("message_stop")],
            failed,
            event("error", error={"type": "t", "message": "why"}),
        )
        return {}


class Script:
    """The fake needs no upstream: its faults are options."""

    id, prefix = "scripted", ""

    def script(self, upstream, case):
        faults = {
            "cut": {"cut_after": 1},
            "hang": {"hang_after": 1},
            "garbage": {"garbage": True},
            "error frame": None,
            "json for a stream": None,
        }
        if case in ("whole", "stream"):
            return {"reply": TEXT}
        if isinstance(case, int):
            return {"fail_rate": 1.0, "fail_status": case, "fail_message": "why", "retry_after": 7}
        if faults[case] is None:
            pytest.skip(f"the script has no fault '{case}'")
        return {"reply": TEXT} | faults[case]


def script(upstream, case, whole, frames, tail, failed, error_frame):
    if isinstance(case, int):
        upstream.json(case, failed, **{"retry-after": "7"})
    elif case in ("whole", "json for a stream"):
        upstream.json(200, whole)
    elif case == "stream":
        upstream.sse(*frames, *tail)
    elif case == "cut":
        upstream.answers(
            200,
            {"content-type": "text/event-stream", "transfer-encoding": "chunked"},
            *(b"%x\r\n%b\r\n" % (len(f), f) for f in frames[:2]),
            length=False,
        )
        upstream.cut = True
    elif case == "hang":
        upstream.sse(*frames[:2])
        upstream.hang = True
    elif case == "error frame":
        upstream.sse(error_frame)
    elif case == "garbage":
        upstream.answers(200, {"content-type": "text/html"}, b"<html>")


@pytest.fixture(params=[OpenAI, Claude, Script], ids=lambda kind: kind.id)
def spoken(request):
    return request.param()


@asynccontextmanager
async def provider_of(spoken, case):
    upstream = Upstream()
    options = spoken.script(upstream, case)
    async with upstream.running() as url:
        kind = load("providers", spoken.id, Provider)
        endpoint = Endpoint(
            "mine", spoken.id, "served", url=url + spoken.prefix, timeouts=Timeouts(connect=2, first=5, idle=5, total=10)
        )
        provider = kind(endpoint, "secret", msgspec.convert(options, kind.Config))
        assert provider.ready is None
        yield provider, upstream
        await provider.close()


def call(*, stream=False):
    body = {"model": "app", "messages": [{"role": "user", "content": "Hi"}]}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return ModelCall("x1", "chat", stream, msgspec.json.decode(json.dumps(body).encode(), type=dict[str, msgspec.Raw]))


async def failure(provider, sink=lambda data: None, *, stream=False):
    with pytest.raises(UpstreamError) as e:
        await provider.send(call(stream=stream), sink)
    return e.value


async def test_a_whole_answer_comes_in_openais_form(spoken):
    async with provider_of(spoken, "whole") as (provider, _):
        reply = await provider.send(call(), lambda data: pytest.fail("a whole answer needs no sink"))
    facts = read_answer("chat", reply.body)
    assert (reply.status, reply.upstream_id) == (200, facts.id)
    assert (read_text(reply.body), facts.model, facts.finish_reason) == (TEXT, "served", "stop")
    assert facts.usage.output == 2


async def test_a_stream_comes_in_openais_form(spoken):
    got = bytearray()
    async with provider_of(spoken, "stream") as (provider, _):
        reply = await provider.send(call(stream=True), got.extend)
    splitter, reader = FrameSplitter(), StreamReader()
    for frame in splitter.feed(bytes(got)):
        reader.read(frame)
    assert splitter.rest() == b""
    assert (reader.done, reader.finish_reason, reader.model, reader.usage.output) == (True, "stop", "served", 2)
    assert assemble(bytes(got))["choices"][0]["message"]["content"] == TEXT
    assert (reply.status, reply.body, reply.upstream_id) == (200, b"", reader.id)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "code", "callers"),
    [
        (400, "upstream_error", True),
        (401, "upstream_auth", False),
        (403, "upstream_auth", False),
        (404, "upstream_error", True),
        (422, "upstream_error", True),
        (429, "upstream_rate_limited", False),
        (500, "upstream_error", False),
        (503, "upstream_error", False),
        (529, "upstream_overloaded", False),
    ],
)
async def test_an_error_answer_is_classified(spoken, stream, status, code, callers):
    async with provider_of(spoken, status) as (provider, _):
        error = await failure(provider, stream=stream)
    assert (error.code, error.upstream_status, error.retry_after, error.started) == (code, status, 7.0, False)
    assert error.callers_fault is callers
    assert set(json.loads(error.body)["error"]) == {"message", "type", "param", "code"}
    assert ("why" in error.message) is (code != "upstream_auth")


@pytest.mark.parametrize("stream", [False, True])
async def test_garbage_with_status_200_is_an_error_of_the_endpoint(spoken, stream):
    async with provider_of(spoken, "garbage") as (provider, _):
        error = await failure(provider, stream=stream)
    assert (error.code, error.upstream_status, error.started) == ("bad_upstream_response", 200, False)


async def test_a_stream_that_breaks_off_is_cut_and_says_how_far_it_came(spoken):
    got = bytearray()
    async with provider_of(spoken, "cut") as (provider, _):
        error = await failure(provider, got.extend, stream=True)
    assert (error.code, error.started) == ("upstream_cut", True)
    assert assemble(bytes(got))["choices"][0]["message"]["content"] == "Hello"


async def test_an_error_inside_a_stream_is_raised_and_not_passed_on(spoken):
    got = bytearray()
    async with provider_of(spoken, "error frame") as (provider, _):
        error = await failure(provider, got.extend, stream=True)
    assert (error.code, error.started, bytes(got)) == ("upstream_error", False, b"")


async def test_a_whole_answer_where_a_stream_was_asked_for_is_an_error(spoken):
    async with provider_of(spoken, "json for a stream") as (provider, _):
        error = await failure(provider, stream=True)
    assert error.code == "bad_upstream_response"


async def test_cancelling_ends_the_call_and_hangs_up(spoken):
    begun = asyncio.Event()
    async with provider_of(spoken, "hang") as (provider, upstream):
        task = asyncio.create_task(provider.send(call(stream=True), lambda data: begun.set()))
        await asyncio.wait_for(begun.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if upstream.requests:
            await asyncio.wait_for(upstream.closed.wait(), 5)


async def test_an_endpoint_that_is_not_there_is_refused(spoken):
    if spoken.id == "scripted":
        pytest.skip("the script connects to nothing")
    async with provider_of(spoken, "whole") as (provider, _):
        pass
    kind = type(provider)
    gone = kind(Endpoint("gone", spoken.id, "m", url="http://127.0.0.1:9"), "", kind.Config())
    error = await failure(gone)
    assert (error.code, error.upstream_status) == ("upstream_refused", None)


async def test_the_callers_words_and_our_credentials_reach_the_endpoint(spoken):
    if spoken.id == "scripted":
        pytest.skip("the script connects to nothing")
    async with provider_of(spoken, "whole") as (provider, upstream):
        await provider.send(call(), lambda data: None)
    [(head, body)] = upstream.requests
    assert body["model"] == "served"
    assert "Hi" in json.dumps(body["messages"])
    assert "secret" in head
    assert head.startswith(f"POST {'/v1/messages' if spoken.id == 'anthropic' else '/v1/chat/completions'} HTTP/1.1")
