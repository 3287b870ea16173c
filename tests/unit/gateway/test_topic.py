"""Routing by meaning."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from noria.contracts.error import Unavailable, UpstreamError
from noria.contracts.exchange import ModelReply
from noria.contracts.release import Endpoint
from noria.contracts.routing import Semantic, Topic
from noria.contracts.stage import Provider
from noria.gateway.topic import EVENTS, LOOKED_AT, MOST_WAITING, Topics

AXES = ("code", "food", "law")
TOPICS = tuple(Topic(name, (f"{name} one", f"{name} two"), ((name,),)) for name in AXES)


class Words(Provider):
    """Embeds a text as the counts of three words."""

    id = "words"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.seconds = 0.0
        self.failure: BaseException | None = None
        self.unready: Any = None

    @property
    def ready(self) -> Any:
        return self.unready

    async def send(self, call: Any, sink: Any) -> ModelReply:
        texts = msgspec.json.decode(call.body["input"])
        self.asked.append(texts)
        await asyncio.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure
        rows = [{"index": i, "embedding": [0.01 + t.count(a) for a in AXES]} for i, t in enumerate(texts)]
        return ModelReply(200, msgspec.json.encode({"data": rows[::-1]}))


def topics(embedder: Words, **more: Any) -> tuple[Topics, dict[str, int]]:
    counts = dict.fromkeys(EVENTS, 0)
    return Topics(Semantic(TOPICS, **more), Endpoint("e", "words", "m", region="eu"), embedder, counts), counts


async def test_the_nearest_topic_is_found_and_remembered() -> None:
    embedder = Words()
    made, counts = topics(embedder)
    for text in ("my code has a bug", "food please", "the law of food and law"):
        found = await made.topic(text)
        assert found is not None
        assert found.name == {"m": "code", "f": "food", "t": "law"}[text[0]]
    asked = len(embedder.asked)
    assert (await made.topic("food please")).name == "food"  # type: ignore[union-attr]
    assert len(embedder.asked) == asked, "what was asked lately is not embedded again"
    assert counts["semantic_chosen"] == 4


async def test_between_two_topics_there_is_none() -> None:
    made, counts = topics(Words(), margin=0.05)
    assert await made.topic("law and food") is None
    assert counts["semantic_undecided"] == 1


async def test_a_late_embedding_is_not_waited_for() -> None:
    embedder = Words()
    made, counts = topics(embedder, within=0.05)
    await made.topic("code")  # learns the examples
    embedder.seconds = 5.0
    began = asyncio.get_running_loop().time()
    assert await made.topic("food") is None
    assert asyncio.get_running_loop().time() - began < 0.3
    assert counts["semantic_late"] == 1


async def test_an_embedder_that_fails_or_loads_leaves_the_ordinary_route() -> None:
    embedder = Words()
    made, counts = topics(embedder)
    embedder.unready = Unavailable("loading")
    assert await made.topic("code") is None
    embedder.unready, embedder.failure = None, UpstreamError("no", code="upstream_error", upstream_status=500)
    assert await made.topic("code") is None
    embedder.failure = None
    assert await made.topic("code") is None, "the examples are tried again after a while, not with every request"
    assert counts["semantic_failed"] == 3
    made._next_try = 0.0
    assert (await made.topic("code")).name == "code"  # type: ignore[union-attr]


async def test_only_so_many_wait_for_the_embedder() -> None:
    embedder = Words()
    made, counts = topics(embedder, within=0.3)
    await made.topic("code")
    embedder.seconds = 0.1
    found = await asyncio.gather(*(made.topic(f"food {n}") for n in range(MOST_WAITING + 5)))
    assert sum(t is None for t in found) == counts["semantic_failed"] == 5


async def test_only_the_beginning_of_a_message_is_embedded() -> None:
    embedder = Words()
    made, _ = topics(embedder)
    await made.topic("law " + "x" * 10_000)
    assert max(len(t) for texts in embedder.asked for t in texts) <= LOOKED_AT


def test_a_request_that_must_stay_in_a_region_is_embedded_there_or_not_at_all() -> None:
    made, counts = topics(Words())
    assert made.within(())
    assert made.within((("eu",),))
    assert not made.within((("us",),))
    assert counts["semantic_barred"] == 1


@pytest.mark.parametrize("answer", [b"{}", b'{"data":[]}', b"<html>", b'{"data":[{"index":0,"embedding":"!!"}]}'])
async def test_garbage_is_no_topic(answer: bytes) -> None:
    class Broken(Words):
        async def send(self, call: Any, sink: Any) -> ModelReply:
            return ModelReply(200, answer)

    made, counts = topics(Broken())
    assert await made.topic("code") is None
    assert counts["semantic_failed"] == 1
