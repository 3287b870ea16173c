import json

import msgspec
import pytest

from noria.contracts.error import ConfigError, RequestError
from noria.contracts.exchange import ModelCall
from noria.contracts.release import Endpoint
from noria.providers.anthropic import Anthropic

MESSAGE = (
    b'{"id":"m1","type":"message","model":"c","content":[{"type":"text","text":"ok"}],"stop_reason":"end_turn","usage":{}}'
)


class FakeRelay:
    async def send(self, method, path, headers, body, *, on_head=None):
        self.sent = (path, dict(headers), json.loads(body))
        return 200, [("content-type", "application/json")], MESSAGE


def made(relay, secret="s", **options):
    return Anthropic(Endpoint("e", "anthropic", "claude"), secret, msgspec.convert(options, Anthropic.Config), relay=relay)


def call(kind="chat", **fields):
    body = {"model": "app", "messages": [{"role": "user", "content": "hi"}]} | fields
    return ModelCall("x", kind, False, msgspec.json.decode(json.dumps(body).encode(), type=dict[str, msgspec.Raw]))


async def test_the_request_carries_version_key_and_a_limit():
    relay = FakeRelay()
    reply = await made(relay, beta=["a", "b"], max_tokens=99, headers={"X-Own": "1"}).send(call(), lambda data: None)
    path, headers, body = relay.sent
    assert path == "/v1/messages"
    assert headers["anthropic-version"] == "2023-06-01"
    assert (headers["x-api-key"], headers["anthropic-beta"], headers["x-own"]) == ("s", "a,b", "1")
    assert (body["model"], body["max_tokens"]) == ("claude", 99)
    assert reply.upstream_id == "m1"


@pytest.mark.parametrize("kind", ["completion", "embedding"])
async def test_other_kinds_are_refused(kind):
    with pytest.raises(RequestError, match="offers no"):
        await made(FakeRelay()).send(call(kind), lambda data: None)


async def test_what_the_api_cannot_do_is_refused_before_anything_is_sent():
    relay = FakeRelay()
    with pytest.raises(RequestError) as e:
        await made(relay).send(call(n=2), lambda data: None)
    assert (e.value.code, hasattr(relay, "sent")) == ("unsupported_feature", False)


def test_a_missing_key_is_a_configuration_error():
    with pytest.raises(ConfigError, match="has no key"):
        made(FakeRelay(), secret="")
