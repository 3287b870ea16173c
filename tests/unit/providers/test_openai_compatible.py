import json

import msgspec
import pytest

from noria.contracts.error import ConfigError, RequestError, UpstreamError
from noria.contracts.exchange import ModelCall
from noria.contracts.release import Endpoint
from noria.dialects.openai_stream import DONE
from noria.providers.openai_compatible import VENDORS, OpenAICompatible

ANSWER = b'{"id": "c1", "model": "m", "choices": [{"index": 0, "message": {"content": "ok"}, "finish_reason": "stop"}]}'


class FakeRelay:
    """Answers every call the same and remembers what was sent."""

    def __init__(self, status=200, body=ANSWER, headers=(("content-type", "application/json"),), pieces=()):
        self.status, self.body, self.headers, self.pieces = status, body, list(headers), pieces

    async def send(self, method, path, headers, body, *, on_head=None):
        self.sent = (method, path, dict(headers), body)
        sink = on_head(self.status, self.headers) if on_head else None
        if sink is None:
            return self.status, self.headers, self.body
        for piece in self.pieces:
            sink(piece)
        return self.status, self.headers, b""


def made(relay, secret="s", options=None, **endpoint):
    config = msgspec.convert(options or {}, OpenAICompatible.Config)
    return OpenAICompatible(
        Endpoint(**({"name": "e", "provider": "openai_compatible", "model": "gpt", "url": "http://h/v1"} | endpoint)),
        secret,
        config,
        relay=relay,
    )


def call(raw=b'{"model":"app","messages":[]}', kind="chat", stream=False, **more):
    return ModelCall("x", kind, stream, msgspec.json.decode(raw, type=dict[str, msgspec.Raw]), **more)


async def sent_by(raw, *, kind="chat", stream=False, **endpoint):
    relay = FakeRelay(
        headers=[("content-type", "text/event-stream")] if stream else [],
        pieces=[b'data: {"choices":[{"finish_reason":"stop"}]}\n\n', DONE],
    )
    if kind == "embedding":
        relay.body = b'{"data":[]}'
    await made(relay, **endpoint).send(call(raw, kind, stream), lambda data: None)
    return relay.sent


async def test_only_the_model_is_spliced_on_a_plain_request():
    _, path, _, body = await sent_by(
        b'{ "model": "app", "temperature": 1.10, "messages": [ {"role":"user"} ], "x_new": {"a": 1} }'
    )
    assert path == "/chat/completions"
    assert body == b'{"model":"gpt","temperature":1.10,"messages":[ {"role":"user"} ],"x_new":{"a": 1}}'


async def test_streams_are_asked_for_their_usage_beside_what_the_caller_asked():
    body = (await sent_by(b'{"model":"a","stream":true}', stream=True))[3]
    assert json.loads(body)["stream_options"] == {"include_usage": True}
    raw = b'{"model":"a","stream":true,"stream_options":{"include_usage":false,"include_obfuscation":false}}'
    body = (await sent_by(raw, stream=True))[3]
    assert json.loads(body)["stream_options"] == {"include_usage": True, "include_obfuscation": False}


async def test_a_vendor_that_refuses_stream_options_gets_none():
    raw = b'{"model":"a","stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":5}'
    body = json.loads((await sent_by(raw, stream=True, vendor="mistral"))[3])
    assert "stream_options" not in body
    assert (body["max_tokens"], "max_completion_tokens" in body) == (5, False)


async def test_an_endpoint_may_differ_from_its_vendor():
    raw = b'{"model":"a","stream":true}'
    body = json.loads((await sent_by(raw, stream=True, vendor="mistral", options={"stream_usage": True}))[3])
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("kind", "path"), [("chat", "/chat/completions"), ("completion", "/completions"), ("embedding", "/embeddings")]
)
async def test_each_kind_has_its_path(kind, path):
    assert (await sent_by(b'{"model":"a"}', kind=kind))[1] == path


async def test_a_kind_that_a_vendor_lacks_is_refused():
    with pytest.raises(RequestError, match="offers no embeddings"):
        await made(FakeRelay(), vendor="groq").send(call(kind="embedding"), lambda data: None)


async def test_credentials_trace_and_own_headers_are_sent():
    relay = FakeRelay()
    await made(relay, options={"headers": {"OpenAI-Project": "p"}}).send(call(traceparent="00-1-2-01"), lambda data: None)
    headers = relay.sent[2]
    assert headers["authorization"] == "Bearer s"
    assert (headers["openai-project"], headers["traceparent"], headers["content-type"]) == (
        "p",
        "00-1-2-01",
        "application/json",
    )


async def test_azure_has_its_own_paths_and_header():
    relay = FakeRelay()
    await made(relay, vendor="azure", url="https://r.openai.azure.com").send(call(), lambda data: None)
    assert relay.sent[1] == "/openai/v1/chat/completions"
    assert relay.sent[2]["api-key"] == "s"
    assert "authorization" not in relay.sent[2]
    await made(relay, vendor="azure", model="my gpt", options={"api_version": "2024-10-21"}).send(call(), lambda data: None)
    assert relay.sent[1] == "/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21"


async def test_no_secret_means_no_credentials():
    relay = FakeRelay()
    await made(relay, secret="").send(call(), lambda data: None)
    assert not {"authorization", "api-key"} & set(relay.sent[2])


async def test_the_answer_comes_back_byte_for_byte_with_the_headers_worth_keeping():
    relay = FakeRelay(headers=[("x-request-id", "r"), ("set-cookie", "c")])
    reply = await made(relay).send(call(), lambda data: None)
    assert (reply.body, reply.headers, reply.upstream_id) == (ANSWER, (("x-request-id", "r"),), "c1")


async def test_an_error_with_status_200_is_an_error():
    with pytest.raises(UpstreamError, match="out of credit") as e:
        await made(FakeRelay(body=b'{"error":{"message":"out of credit"}}')).send(call(), lambda data: None)
    assert e.value.code == "bad_upstream_response"


async def test_stream_frames_keep_their_bytes():
    frames = [
        b'data:{"id":"c1",  "choices":[{"delta":{"content":"a"}}]}\r\n\r\n',
        b": ping\n\n",
        b'data: {"choices":[{"finish_reason":"stop"}]}\n\n',
        DONE,
    ]
    got = []
    relay = FakeRelay(headers=[("content-type", "text/event-stream")], pieces=frames)
    reply = await made(relay).send(call(b'{"model":"a","stream":true}', stream=True), got.append)
    assert got == frames
    assert reply.upstream_id == "c1"


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ({"url": ""}, "has no url"),
        ({"url": "", "vendor": "openai", "secret": ""}, "has no key"),
        ({"vendor": "opnai"}, "does not exist"),
        ({"secret": "a\r\nb"}, "no header can carry"),
        ({"url": "ftp://h", "relay": None}, "cannot be used"),
    ],
)
def test_a_wrong_configuration_is_refused_with_what_to_do(endpoint, words):
    relay = endpoint.pop("relay", FakeRelay())
    with pytest.raises(ConfigError, match=words) as e:
        made(relay, **endpoint)
    assert e.value.hint or e.value.where


def test_no_secret_appears_in_the_error_about_it():
    with pytest.raises(ConfigError) as e:
        made(FakeRelay(), secret="sk-very\nsecret")
    assert "sk-very" not in str(e.value)


@pytest.mark.parametrize("name", sorted(VENDORS))
def test_each_vendor_is_a_usable_row(name):
    vendor = VENDORS[name]
    assert name.isidentifier()
    assert made(None, vendor=name, url=vendor.url or "https://h").ready is None
    assert vendor.chat.startswith("/")
    assert not vendor.url.endswith("/")
    assert vendor.url.startswith("https://") or vendor.url == "" or "127.0.0.1" in vendor.url
    assert vendor.max_tokens_field in ("", "max_tokens", "max_completion_tokens")
