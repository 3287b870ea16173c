"""The local provider against a model server that the test plays, found through its status file as in life."""

import asyncio
import os
import socket
import tempfile
import time
from pathlib import Path

import msgspec
import pytest

from noria.contracts.error import RequestError, Unavailable, UpstreamError
from noria.contracts.exchange import ModelCall
from noria.contracts.release import Endpoint, Timeouts
from noria.kit.http_server import HttpServer
from noria.kit.service import Service, publish
from noria.providers.local import Local, LocalOptions

USAGE = {"prompt_tokens": 5, "completion_tokens": 2}
JSON = [("content-type", "application/json")]
SSE = [("content-type", "text/event-stream")]


def call(kind="chat", stream=False, **body):
    raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in body.items()}
    return ModelCall("x1", kind, stream, raw, "00-" + "a" * 32 + "-" + "b" * 16 + "-01")


class Server:
    """A model server: `answer(request)` may be replaced; it keeps what it was asked."""

    def __init__(self, home, name="m"):
        self.status = home / "run" / "models" / f"{name}.json"
        self.uds = str(home / f"{name}.sock")
        self.asked = []
        self.answer = self.chat

    async def start(self, **facts):
        self.http = HttpServer(self)
        await self.http.start(self.uds)
        self.tell("ready", uds=self.uds, secret="s3cret", facts=facts)

    def tell(self, state, **more):
        publish(self.status, Service("m", state, os.getpid(), time.time_ns(), **more))

    def __call__(self, request):
        self.asked.append((request.method, request.path, dict(request.headers), msgspec.json.decode(request.body)))
        self.answer(request)

    def chat(self, request):
        asked = self.asked[-1][3]
        choice = {"index": 0, "message": {"role": "assistant", "content": f"seed {asked.get('seed')}"}, "finish_reason": "stop"}
        request.response.send(200, JSON, msgspec.json.encode({"id": "c1", "choices": [choice], "usage": USAGE}))


def chunk(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + msgspec.json.encode({"id": "c1", "choices": [choice]}) + b"\n\n"


@pytest.fixture
async def home():
    # not tmp_path: a unix socket's path has 107 bytes
    with tempfile.TemporaryDirectory(prefix="noria-") as path:
        yield Path(path)


@pytest.fixture
async def server(home):
    made = Server(home)
    yield made
    if hasattr(made, "http"):
        await made.http.drain(0.1)


@pytest.fixture
async def local(home):
    endpoint = Endpoint("small", "local", "m", timeouts=Timeouts(connect=2, first=5, idle=5, total=10))
    made = Local(endpoint, "", LocalOptions(home=str(home)))
    yield made
    await made.close()


async def refused(local, asked, sink=bytes):
    with pytest.raises(UpstreamError) as raised:
        await local.send(asked, sink)
    return raised.value


async def test_a_whole_answer_comes_back_as_it_was_sent(local, server):
    await server.start()
    reply = await local.send(call(messages=[], temperature=0), print)
    assert msgspec.json.decode(reply.body)["usage"] == USAGE
    assert (reply.status, reply.upstream_id) == (200, "c1")
    method, path, headers, body = server.asked[0]
    assert (method, path, body) == ("POST", "/v1/chat/completions", {"messages": [], "temperature": 0})
    assert headers["authorization"] == "Bearer s3cret"
    assert headers["traceparent"].startswith("00-aaaa")


@pytest.mark.parametrize(("kind", "path"), [("completion", "/v1/completions"), ("embedding", "/v1/embeddings")])
async def test_each_kind_has_its_path(local, server, kind, path):
    await server.start()
    await local.send(call(kind, prompt="a"), print)
    assert server.asked[0][1] == path


async def test_a_stream_is_relayed_byte_for_byte(local, server):
    await server.start()
    sent = chunk({"content": "odd  spacing\u2028"}) + b": ping\n\n" + chunk({}, "stop") + b"data: [DONE]\n\n"

    def answer(request):
        request.response.start(200, SSE, length=None)
        request.response.write(sent)
        request.response.end()

    server.answer = answer
    out = bytearray()
    reply = await local.send(call("chat", True, messages=[]), out.extend)
    assert bytes(out) == sent
    assert (reply.status, reply.body, reply.upstream_id) == (200, b"", "c1")


async def test_a_model_that_was_never_added_says_how(local):
    assert isinstance(local.ready, Unavailable)
    assert "noria models add m" in local.ready.text
    with pytest.raises(Unavailable):
        await local.send(call(), print)


async def test_a_loading_model_says_since_when_and_when_to_come_back(local, server):
    server.tell("loading")
    assert local.ready.message == "The local model 'm' is loading (0 s so far); try again in 1 s."
    assert (local.ready.code, local.ready.retry_after, local.ready.status) == ("model_loading", 1.0, 503)


async def test_a_failed_model_gives_its_reason(local, server):
    server.tell("failed", detail="model.gguf has sha256 00, not 11.")
    assert "has sha256 00, not 11." in local.ready.message
    assert local.ready.code == "model_failed"


async def test_a_replaced_server_is_followed(local, server, home):
    await server.start()
    await local.send(call(), print)
    other = Server(home)
    other.uds += "2"
    await other.start()
    local._watch.forget()
    await local.send(call(), print)
    await other.http.drain(0.1)
    assert (len(server.asked), len(other.asked)) == (1, 1)


async def test_a_server_that_has_gone_is_an_upstream_error_and_looked_at_again(local, server):
    await server.start()
    await local.send(call(), print)
    await server.http.drain(0.1)
    Path(server.uds).unlink()
    assert (await refused(local, call())).code == "upstream_refused"
    server.tell("loading")
    local._watch.forget()
    assert local.ready.code == "model_loading"


async def test_a_server_that_dies_in_the_middle_cuts_the_stream(local, server):
    await server.start()
    out = bytearray()

    def die(request):
        request.response.start(200, SSE, length=None)
        request.response.write(chunk({"content": "half"}))
        asyncio.get_running_loop().call_later(0.05, request.response.abort)

    server.answer = die
    error = await refused(local, call("chat", True, messages=[]), out.extend)
    assert (error.code, error.started) == ("upstream_cut", True)
    assert b"half" in out


async def test_cancelling_closes_the_connection(local, server):
    await server.start()
    gone = asyncio.Event()

    def hang(request):
        request.response.on_close = gone.set

    server.answer = hang
    sending = asyncio.ensure_future(local.send(call(), print))
    while not server.asked:
        await asyncio.sleep(0.01)
    sending.cancel()
    async with asyncio.timeout(1):
        await gone.wait()


async def test_several_choices_are_asked_for_one_by_one_and_merged(local, server):
    await server.start()
    reply = await local.send(call(messages=[], n=3, seed=10), print)
    answer = msgspec.json.decode(reply.body)
    assert [(c["index"], c["message"]["content"]) for c in answer["choices"]] == [
        (0, "seed 10"),
        (1, "seed 11"),
        (2, "seed 12"),
    ]
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens"] == 5
    assert all("n" not in asked[3] for asked in server.asked)


async def test_the_first_failure_of_several_ends_all(local, server):
    await server.start()
    closed = []

    def answer(request):
        if server.asked[-1][3]["seed"] == 11:
            request.response.send(500, JSON, b'{"error":{"message":"broken"}}')
        else:
            request.response.on_close = lambda: closed.append(1)

    server.answer = answer
    error = await refused(local, call(n=3, seed=10))
    assert error.upstream_status == 500
    async with asyncio.timeout(2):
        while len(closed) < 2:
            await asyncio.sleep(0.01)


async def test_several_streams_are_one_stream(local, server):
    await server.start()
    out = bytearray()

    def stream(request):
        request.response.start(200, SSE, length=None)
        request.response.write(chunk({"content": "a"}) + chunk({}, "stop") + b"data: [DONE]\n\n")
        request.response.end()

    server.answer = stream
    await local.send(call("chat", True, n=2), out.extend)
    frames = bytes(out).split(b"\n\n")
    assert frames[-2] == b"data: [DONE]"
    assert sorted(msgspec.json.decode(f[6:])["choices"][0]["index"] for f in frames[:-2]) == [0, 0, 1, 1]


TOOLS = [{"type": "function", "function": {"name": "f"}}]


async def test_tools_that_the_template_would_drop_in_silence_are_refused(local, server):
    await server.start(tools=False)
    with pytest.raises(RequestError, match="cannot call tools") as refusal:
        await local.send(call(tools=TOOLS), print)
    assert refusal.value.param == "tools"
    for harmless in (call(tools=[]), call(tools=TOOLS, tool_choice="none"), call()):
        await local.send(harmless, print)


async def test_tools_reach_a_model_that_has_them(local, server):
    await server.start(tools=True)
    await local.send(call(tools=TOOLS), print)
    assert server.asked[0][3]["tools"] == TOOLS


@pytest.mark.parametrize(
    ("status", "said", "kind", "expected"),
    [
        (
            400,
            "request (9 tokens) exceeds the available context size",
            "exceed_context_size_error",
            (400, "context_length_exceeded"),
        ),
        (400, "'messages' is required", "invalid_request_error", (400, "invalid_value")),
        (500, "image input is not supported - hint: mmproj", "server_error", (400, "unsupported_content")),
    ],
)
async def test_llama_cpps_refusals_carry_openais_codes(local, server, status, said, kind, expected):
    await server.start()
    body = msgspec.json.encode({"error": {"code": status, "message": said, "type": kind}})
    server.answer = lambda request: request.response.send(status, JSON, body)
    error = await refused(local, call())
    assert (error.upstream_status, msgspec.json.decode(error.body)["error"]["code"]) == expected
    assert error.callers_fault


async def test_a_full_pool_is_overload_and_not_the_callers_fault(local, server):
    await server.start()
    body = b'{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}'
    server.answer = lambda request: request.response.send(500, JSON, body)
    error = await refused(local, call())
    assert (error.code, error.retry_after, error.callers_fault) == ("upstream_overloaded", 1.0, False)


async def test_tokens_are_counted_by_the_servers_tokenizer(local, server):
    await server.start()
    server.answer = lambda request: request.response.send(200, JSON, b'{"tokens":[1,2,3]}')
    assert await local.count("a b c") == 3
    assert server.asked[0][1:2] == ("/tokenize",)
    server.answer = lambda request: request.response.send(200, JSON, b'{"count":4}')
    assert await local.count("a b c") == 4
    server.answer = lambda request: request.response.send(500, JSON, b"{}")
    with pytest.raises(UpstreamError):
        await local.count("a")


async def test_a_server_on_a_port_is_reached_too(local, server, home):
    listener = socket.create_server(("127.0.0.1", 0))
    server.http = HttpServer(server)
    await server.http.start(listener)
    server.tell("ready", port=listener.getsockname()[1], secret="s3cret")
    assert (await local.send(call(), print)).status == 200
