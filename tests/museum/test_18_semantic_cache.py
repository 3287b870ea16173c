"""Museum 18: semantic caches that answer wrongly, or with somebody else's answer.

Questions that looked alike got each other's answers (litellm#12234, #6954), in the worst case across tenants
(semantic-router#1448). Exact caches leak as well: LiteLLM's key is optional, and Portkey hashes body and URL without the caller,
so one customer's answer goes to the next who asks the same.

Here every question has the same vector, as if the embedder were as wrong as can be: what is left must keep them apart.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from noria.contracts.exchange import Exchange, ModelCall, ModelReply, Usage
from noria.contracts.release import Caching, Endpoint, Key, Release, SemanticCaching
from noria.gateway.cache import Cache, Recall
from noria.gateway.semantic import Meanings

EMBEDDER = Endpoint("e", "local", "e")
RELEASE = Release("r1:a", "main", "app", (Endpoint("m", "openai", "gpt"),))
ANSWER = json.dumps(
    {"id": "a", "choices": [{"index": 0, "message": {"role": "assistant", "content": "secret"}, "finish_reason": "stop"}]}
).encode()
SYSTEM = {"role": "system", "content": "You work for Acme."}
TOOLS = [{"type": "function", "function": {"name": "wire_money"}}]


class OneVector:
    ready = None

    async def send(self, call: ModelCall, sink: Any) -> ModelReply:
        return ModelReply(200, b'{"data": [{"embedding": [1.0]}]}')


class Account:
    def __init__(self) -> None:
        self.cache, self.headers, self.usage, self.error, self.native, self.model_ns = "", [], Usage(), None, False, 0

    def cost(self) -> tuple[int, str]:
        return 5, "exact"


class Gate:
    committed = False

    def feed(self, data: bytes) -> None: ...

    def restart(self) -> None: ...

    def speak(self, dialect: str) -> None: ...


def recall(cache: Cache, release: Release = RELEASE, *, semantic: bool, scope: Any = "key") -> Recall:
    caching = Caching(scope=scope, semantic=SemanticCaching(EMBEDDER, 0.5) if semantic else None)
    likeness = Meanings(caching.semantic, OneVector(), cache.index("app", b"e", 100)) if semantic else None
    return Recall(release, caching, cache, likeness)


def asked(text: str = "how much do I owe", *, before: tuple[Any, ...] = (), **more: Any) -> Exchange:
    body = {"model": "app", "messages": [*before, {"role": "user", "content": text}], **more.pop("fields", {})}
    raw = {k: msgspec.Raw(json.dumps(v, ensure_ascii=False).encode()) for k, v in body.items()}
    key = more.pop("key", Key("ann", "h", org="o", team="t", user="u"))
    return Exchange("i", "t", "s", more.pop("tenant", "acme"), "chat", "app", False, raw, 0, key=key, **more)


async def use(of: Recall, x: Exchange) -> str:
    """What the cache made of one request; a model that is asked answers, and the answer is kept."""

    async def model(x: Exchange, gate: Any, account: Any, began: int) -> ModelReply:
        return ModelReply(200, ANSWER)

    account = Account()
    turn = await of.find(x, account)
    await turn.through(model)(x, Gate(), account, 0)
    turn.close(account)
    return account.cache


OTHERS = {
    "another tenant": asked(tenant="globex"),
    "another key": asked(key=Key("bob", "h2", org="o", team="t", user="u")),
    "no key": asked(key=None),
    "another system prompt": asked(before=({"role": "system", "content": "You work for Globex."},)),
    "an earlier turn": asked(
        before=(SYSTEM, {"role": "user", "content": "I am Bob"}, {"role": "assistant", "content": "Hi Bob"})
    ),
    "tools": asked(before=(SYSTEM,), fields={"tools": TOOLS}),
    "parameters": asked(before=(SYSTEM,), fields={"max_tokens": 3}),
    "a form of the answer": asked(before=(SYSTEM,), fields={"response_format": {"type": "json_object"}}),
    "a field that nobody knows yet": asked(before=(SYSTEM,), fields={"persona": "bob"}),
    "another dialect": asked(before=(SYSTEM,), dialect="anthropic"),
}


@pytest.mark.parametrize("semantic", [False, True], ids=["exact", "semantic"])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
async def test_the_same_words_of_somebody_else_or_in_another_place_get_no_kept_answer(other, semantic):
    of = recall(Cache(), semantic=semantic)
    assert await use(of, asked(before=(SYSTEM,))) == ""
    assert await use(of, asked(before=(SYSTEM,))) == "hit"
    assert await use(of, other) == ""


@pytest.mark.parametrize("semantic", [False, True], ids=["exact", "semantic"])
@pytest.mark.parametrize("scope", ["key", "user", "team", "app"])
async def test_no_scope_leads_to_another_tenant(scope, semantic):
    of = recall(Cache(), semantic=semantic, scope=scope)
    await use(of, asked())
    assert await use(of, asked(tenant="globex")) == ""
    assert await use(of, asked()) == "hit"


@pytest.mark.parametrize("semantic", [False, True], ids=["exact", "semantic"])
async def test_another_release_of_the_same_app_answers_for_itself(semantic):
    cache = Cache()
    await use(recall(cache, semantic=semantic), asked())
    moved = replace(RELEASE, route=(Endpoint("m", "openai", "gpt", url="https://elsewhere/v1"),))
    for other in (replace(RELEASE, id="r1:b"), moved):
        assert await use(recall(cache, other, semantic=semantic), asked()) == ""


WRONG = [
    ("what is 2 + 2", "what is 2 + 3"),
    ("capital of France", "capital of Germany"),
    ("is ibuprofen safe with aspirin", "is ibuprofen not safe with aspirin"),
    ("translate 'yes' to German", "translate 'no' to German"),
    ("refund order 1234", "refund order 1235"),
    ("sort ascending", "sort descending"),
    ("transfer from savings to checking", "transfer from checking to savings"),
    ("我可以退款吗", "我不可以退款吗"),
    ("怎么开通花呗", "怎么关闭花呗"),
    ("北京到上海的航班", "上海到北京的航班"),
]


@pytest.mark.parametrize(("one", "other"), WRONG)
async def test_questions_that_only_look_alike_get_answers_of_their_own(one, other):
    of = recall(Cache(), semantic=True)
    await use(of, asked(one))
    assert await use(of, asked(other)) == ""


async def test_a_semantic_cache_is_off_until_somebody_turns_it_on():
    of = recall(Cache(), semantic=False)
    await use(of, asked("what is the refund policy"))
    assert await use(of, asked("tell me the refund policy")) == ""
    assert Caching().semantic is None


async def test_a_joined_call_never_crosses_callers_either():
    cache, held, calls = Cache(), asyncio.Event(), []

    async def model(x: Exchange, gate: Any, account: Any, began: int) -> ModelReply:
        calls.append(x.key)
        await held.wait()
        return ModelReply(200, ANSWER)

    async def one(x: Exchange) -> str:
        account = Account()
        turn = await recall(cache, semantic=False).find(x, account)
        await turn.through(model)(x, Gate(), account, 0)
        turn.close(account)
        return account.cache

    bob = Key("bob", "h2")
    asking = [asyncio.ensure_future(one(x)) for x in (asked(), asked(key=bob), asked(), asked(key=bob), asked(tenant="globex"))]
    await asyncio.sleep(0.01)
    held.set()
    assert await asyncio.gather(*asking) == ["", "", "joined", "joined", ""]
    assert len(calls) == 3
