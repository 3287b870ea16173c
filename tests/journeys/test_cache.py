"""The journey of prompts that are asked twice: the exact cache and single flight, on in-memory parts."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from noria.checks.denylist import Denylist, DenylistOptions
from noria.checks.pii import Pii, PiiOptions
from noria.contracts.error import LimitExceeded, UpstreamError
from noria.contracts.exchange import Exchange, ModelCall, ModelReply
from noria.contracts.release import Caching, Endpoint, GuardRule, Key, Price, Release, SemanticCaching
from noria.contracts.stage import Provider
from noria.dialects.openai_stream import assemble
from noria.gateway.cache import Cache, Recall
from noria.gateway.router import Router
from noria.gateway.semantic import Meanings
from noria.guard.chain import InwardGuard, masked_copy
from noria.guard.restore import Restore
from noria.guard.stream import OutwardGuard
from noria.journeys.prompt import Parts, answer
from noria.kit.step import Stopwatch
from noria.observe.account import Account

RESERVED = 10**6
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
COST = 10 * 1000 + 5 * 2000
SECOND = 1_000_000_000


class Model(Provider):
    """Says `says` (or what it was last asked), one frame a turn of the loop; waits for `gate` where there is one."""

    id = "model"

    def __init__(self) -> None:
        self.calls: list[ModelCall] = []
        self.says: str | None = None
        self.finish = "stop"
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.cancelled = 0

    async def send(self, call: ModelCall, sink: Any) -> ModelReply:
        self.calls.append(call)
        text = self.says or json.loads(bytes(call.body["messages"]))[-1]["content"]
        try:
            return await (self._stream(text, sink) if call.stream else self._whole(text))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _whole(self, text: str) -> ModelReply:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": self.finish}
        body = {"id": "up-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}
        return ModelReply(200, json.dumps(body).encode(), (), "up-1")

    async def _stream(self, text: str, sink: Any) -> ModelReply:
        def frame(choices: list[Any], **more: Any) -> None:
            top = {"id": "up-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            sink(b"data: " + json.dumps({**top, "choices": choices, **more}).encode() + b"\n\n")

        frame([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for n, i in enumerate(range(0, len(text), 4)):
            if n == 2 and self.gate is not None:
                await self.gate.wait()
            if n == 2 and self.error is not None:
                raise self.error
            await asyncio.sleep(0)
            frame([{"index": 0, "delta": {"content": text[i : i + 4]}, "finish_reason": None}])
        frame([{"index": 0, "delta": {}, "finish_reason": self.finish}])
        frame([], usage=USAGE)
        sink(b"data: [DONE]\n\n")
        return ModelReply(200, b"", (), "up-1")


class Outlet:
    backlog = 0

    def __init__(self) -> None:
        self.status, self.headers, self.stream, self.pieces, self.ended = 0, {}, False, [], False

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:
        assert len(dict(headers)) == len(headers), "each header once"
        self.status, self.headers, self.stream = status, dict(headers), stream

    def data(self, data: bytes) -> None:
        self.pieces.append(data)

    def end(self) -> None:
        self.ended = True

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def text(self) -> str:
        whole = assemble(self.body) if self.stream else json.loads(self.body)
        return whole["choices"][0]["message"]["content"] or ""

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body.split(b"data: ")[-1])["error"]


class Claim:
    """A place in the limits; what it was settled for."""

    def __init__(self) -> None:
        self.amount: int | None = None
        self.settled: list[tuple[int | None, Any]] = []

    def settle(self, cost: int | None, usage: Any) -> None:
        self.settled.append((cost, usage))


class House:
    """One release over one model; keys by the exchange's `authorization`."""

    def __init__(self, caching: Caching | None = None, *, guard: bool = False, deny: str = "") -> None:
        endpoint = Endpoint("m", "model", "served", price=Price(1.0, 2.0))
        caching = caching or Caching()
        self.model = Model()
        self.release = Release("r1:x", "main", "app", (endpoint,), caching=caching)
        self.clock = 5 * SECOND
        self.cache = Cache(now=lambda: self.clock, secret=b"s" * 32)
        self.rows: list[Any] = []
        self.reserved = 0
        self.keys = {n: Key(f"key_{n}", n) for n in ("ann", "bob", "poor")}
        self.limits = self
        self.accounts: dict[str, Account] = {}
        more: dict[str, Any] = {}
        if guard:
            rule = GuardRule("pii", "mask")
            more = {
                "guard": InwardGuard([(Pii(PiiOptions()), rule)], report=lambda x, r: None),
                "masked": masked_copy,
                "restore": Restore(),
            }
        if deny:
            rule = GuardRule("denylist", "block", on=("output",), options={"terms": [deny]})
            more["outward"] = (OutwardGuard([(Denylist(msgspec.convert(rule.options, DenylistOptions)), rule)]),)
        self.wired = Parts(
            Router((endpoint,), {"m": self.model}, {}),
            cache=Recall(self.release, caching, self.cache),
            record_bodies=True,
            **more,
        )

    def admit(self, x: Exchange) -> Exchange:
        return replace(x, key=self.keys[x.authorization], release=self.release, authorization="")

    admit.name = "admit"  # type: ignore[attr-defined]

    async def enter(self, x: Exchange, headers: list[tuple[str, str]]) -> Claim:
        await asyncio.sleep(0)
        return Claim()

    async def reserve(self, claim: Claim, x: Exchange) -> Exchange:
        self.reserved += 1
        await asyncio.sleep(0)
        if x.key is not None and "poor" in x.key.id:
            raise LimitExceeded("spent", code="insufficient_quota")
        claim.amount = RESERVED
        return x

    def open(self, x: Exchange) -> Account:
        self.accounts[x.id] = Account(Stopwatch())
        return self.accounts[x.id]

    def parts(self, x: Exchange) -> Parts:
        return self.wired

    def close(self, x: Exchange, account: Account, claim: Claim | None = None) -> Any:
        row = account.row(x, worker="w", config="c")
        if claim is not None:
            claim.settle(row.cost_nanousd, row.usage)
        self.rows.append(row)
        return row

    def ask(self, text: str = "what is a noria, in one line?", **more: Any) -> tuple[Exchange, Outlet]:
        who, control, stream = more.pop("who", "ann"), more.pop("control", ""), more.pop("stream", False)
        fields = {"model": "app", "messages": [{"role": "user", "content": text}], "stream": stream, **more}
        x = Exchange(
            f"x{len(self.accounts)}-{len(self.rows)}", "t", "s", "local", "chat", "app", stream,
            {k: msgspec.Raw(json.dumps(v).encode()) for k, v in fields.items()}, 0,
            authorization=who, cache_control=control,
        )  # fmt: skip
        return x, Outlet()

    async def said(self, text: str = "what is a noria, in one line?", **more: Any) -> Outlet:
        x, out = self.ask(text, **more)
        await answer(x, self, out)
        return out

    def begin(self, text: str = "what is a noria, in one line?", **more: Any) -> tuple[asyncio.Task[None], Outlet]:
        x, out = self.ask(text, **more)
        return asyncio.ensure_future(answer(x, self, out)), out

    @property
    def row(self) -> Any:
        return self.rows[-1]


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
def stream(request) -> bool:
    return request.param


async def turns(n: int = 30) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


# -- exact ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True], ids=["whole", "stream"])
async def test_the_second_time_the_answer_comes_from_the_cache_for_nothing(stream, again):
    house = House()
    first = await house.said(stream=stream)
    house.clock += 3 * SECOND
    second = await house.said(stream=again)
    assert len(house.model.calls) == 1
    assert (first.text, second.text, second.stream, second.status) == (first.text, first.text, again, 200)
    assert (first.headers["x-noria-cache"], second.headers["x-noria-cache"]) == ("miss", "hit")
    assert second.headers["age"] == "3"
    assert [(r.cache, r.cost_nanousd, r.cost_status) for r in house.rows] == [("", COST, "exact"), ("hit", 0, "exact")]
    assert house.row.usage.input == 10, "what it took is shown, and not billed"
    assert house.row.attempts == ()
    assert house.reserved == 1, "a hit reserves no money"
    assert house.cache.saved_nanousd == COST
    if not again:
        assert second.headers["x-noria-cost"] == "0.000000000"
        assert second.headers["cache-control"] == "private, max-age=3597"
    assert second.ended


async def test_a_stream_is_replayed_with_its_very_bytes():
    house = House()
    first = await house.said(stream=True, stream_options={"include_usage": True})
    second = await house.said(stream=True, stream_options={"include_usage": True})
    assert second.body == first.body


async def test_a_whole_answer_is_replayed_with_its_very_bytes():
    house = House()
    assert (await house.said()).body == (await house.said()).body


@pytest.mark.parametrize("wanted", [True, False])
async def test_the_usage_frame_is_for_those_who_asked_on_a_replay_too(stream, wanted):
    house = House()
    await house.said(stream=stream, stream_options={"include_usage": not wanted})
    x, out = house.ask(stream=True, stream_options={"include_usage": wanted})
    await answer(replace(x, usage_wanted=wanted), house, out)
    assert house.row.cache == "hit"
    assert (b'"usage"' in out.body) == wanted
    assert out.body.endswith(b"data: [DONE]\n\n")


async def test_another_key_gets_its_own_answer(stream):
    house = House()
    await house.said(stream=stream)
    await house.said(stream=stream, who="bob")
    assert len(house.model.calls) == 2


async def test_another_key_shares_the_answer_where_the_app_says_so():
    house = House(Caching(scope="app"))
    await house.said()
    await house.said(who="bob")
    assert [r.cache for r in house.rows] == ["", "hit"]


async def test_after_its_time_the_answer_is_asked_for_again():
    house = House(Caching(ttl=10))
    await house.said()
    house.clock += 10 * SECOND
    assert (await house.said()).headers["x-noria-cache"] == "miss"
    assert len(house.model.calls) == 2


@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_an_answer_that_was_cut_is_not_kept(stream, finish):
    house = House()
    house.model.finish = finish
    await house.said(stream=stream)
    await house.said(stream=stream)
    assert len(house.model.calls) == 2


async def test_an_error_is_not_kept(stream):
    house = House()
    house.model.error = UpstreamError("no", code="upstream_error", upstream_status=400)
    await house.said(stream=stream)
    house.model.error = None
    assert (await house.said(stream=stream)).status == 200
    assert len(house.model.calls) == 2


async def test_a_blocked_answer_is_not_kept(stream):
    house = House(deny="wheel")
    house.model.says = "it is a wheel that lifts water"
    out = await house.said(stream=stream)
    assert out.error["code"] == "content_filter"
    await house.said(stream=stream)
    assert len(house.model.calls) == 2


async def test_a_guard_judges_every_replay_anew(stream):
    house = House(Caching(scope="app"))
    house.model.says = "it is a wheel that lifts water"
    await house.said(stream=stream)
    rule = GuardRule("denylist", "block", on=("output",), options={"terms": ["wheel"]})
    check = Denylist(msgspec.convert(rule.options, DenylistOptions))
    house.wired = dataclasses.replace(house.wired, outward=(OutwardGuard([(check, rule)]),))
    out = await house.said(stream=stream)
    assert len(house.model.calls) == 1, "the answer was there"
    assert out.error["code"] == "content_filter"
    assert b"wheel" not in out.body


async def test_what_was_masked_for_one_is_restored_only_for_who_asks(stream):
    house = House(Caching(scope="app"), guard=True)
    one = await house.said("write to ann.miller@example.com please", who="ann", stream=stream)
    two = await house.said("write to bob.smith@example.org please", who="bob", stream=stream)
    assert len(house.model.calls) == 1, "the model saw the same prompt"
    assert "ann.miller@example.com" in one.text
    assert "bob.smith@example.org" in two.text
    assert b"ann.miller" not in two.body
    for row in house.rows:
        assert b"@example" not in row.request + row.answer, "nothing personal is recorded"
    held = b"".join(e.kept.body for shelf in house.cache._shelves.values() for e in shelf._small.values())
    assert b"@example" not in held, "and nothing personal is kept"


async def test_a_stated_temperature_asks_for_chance():
    house = House()
    await house.said(temperature=0.7)
    out = await house.said(temperature=0.7)
    assert (len(house.model.calls), out.headers["x-noria-cache"]) == (2, "bypass")
    await house.said(temperature=0)
    await house.said(temperature=0)
    await house.said()
    await house.said()
    assert len(house.model.calls) == 4
    house = House(Caching(sampled=True))
    await house.said(temperature=0.7)
    await house.said(temperature=0.7)
    assert len(house.model.calls) == 1


async def test_no_cache_asks_again_and_keeps_the_new_answer():
    house = House()
    await house.said()
    house.model.says = "something new"
    assert (await house.said(control="no-cache")).text == "something new"
    assert (await house.said()).text == "something new"
    assert len(house.model.calls) == 2


async def test_no_store_leaves_nothing_behind():
    house = House()
    await house.said(control="no-store")
    assert (await house.said(control="no-store")).headers["x-noria-cache"] == "bypass"
    await house.said()
    assert len(house.model.calls) == 3


async def test_max_age_refuses_what_is_older():
    house = House()
    await house.said()
    house.clock += 60 * SECOND
    assert (await house.said(control="max-age=60")).headers["x-noria-cache"] == "hit"
    house.clock += 1 * SECOND
    assert (await house.said(control="max-age=60")).headers["x-noria-cache"] == "miss"


async def test_only_if_cached_never_asks_the_model(stream):
    house = House()
    out = await house.said(control="only-if-cached", stream=stream)
    assert (out.status, out.error["code"]) == (504, "not_cached")
    assert house.model.calls == []
    await house.said(stream=stream)
    assert (await house.said(control="only-if-cached", stream=stream)).status == 200


async def test_a_key_without_money_still_gets_what_is_there():
    house = House(Caching(scope="app"))
    await house.said(who="ann")
    out = await house.said(who="poor")
    assert (out.status, house.row.cache) == (200, "hit")
    assert (await house.said("something else", who="poor")).status == 429


# -- single flight ----------------------------------------------------------------------------------


async def test_identical_requests_under_way_share_one_call(stream):
    house = House(Caching(ttl=0))
    house.model.gate = asyncio.Event()
    began = [house.begin(stream=stream) for _ in range(20)]
    await turns()
    assert len(house.model.calls) == 1
    house.model.gate.set()
    await asyncio.gather(*(task for task, _ in began))
    assert len(house.model.calls) == 1
    assert {out.text for _, out in began} == {"what is a noria, in one line?"}
    assert sorted(r.cache for r in house.rows) == [""] + ["joined"] * 19
    assert sum(r.cost_nanousd for r in house.rows) == COST, "one of them pays"
    assert house.cache.saved_nanousd == 19 * COST
    assert house.cache.flights == {}
    await house.said(stream=stream)
    assert len(house.model.calls) == 2, "with no time to live nothing is kept"


async def test_one_who_joins_late_gets_what_was_and_then_what_comes():
    house = House()
    house.model.gate = asyncio.Event()
    leader, first = house.begin(stream=True)
    await turns()
    before = first.body
    assert b"what" in before
    follower, second = house.begin(stream=True)
    await turns()
    assert second.body == before, "so far, at once"
    assert not second.ended
    house.model.gate.set()
    await asyncio.gather(leader, follower)
    assert second.body == first.body


@pytest.mark.parametrize("follows", [False, True], ids=["whole follows", "stream follows"])
async def test_who_wants_the_other_form_gets_it_at_the_end(stream, follows):
    house = House()
    house.model.gate = asyncio.Event()
    leader, _ = house.begin(stream=stream)
    await turns()
    follower, out = house.begin(stream=follows)
    await turns()
    house.model.gate.set()
    await asyncio.gather(leader, follower)
    assert (out.text, out.stream, len(house.model.calls)) == ("what is a noria, in one line?", follows, 1)


async def test_the_call_goes_on_for_those_who_follow_when_its_leader_leaves(stream):
    house = House()
    house.model.gate = asyncio.Event()
    leader, _ = house.begin(stream=stream)
    await turns()
    follower, out = house.begin(stream=stream)
    await turns()
    leader.cancel()
    await turns()
    assert house.model.cancelled == 0
    house.model.gate.set()
    await asyncio.gather(leader, follower, return_exceptions=True)
    assert leader.cancelled()
    assert out.text == "what is a noria, in one line?"
    rows = {r.cache: r for r in house.rows}
    assert (rows[""].outcome, rows[""].cost_nanousd, rows[""].cost_status) == ("cancelled", COST, "exact"), "who began it pays"
    assert rows["joined"].cost_nanousd == 0
    await house.said(stream=stream)
    assert house.row.cache == "hit", "a follower has kept the answer"


async def test_with_nobody_left_the_call_is_cancelled(stream):
    house = House()
    house.model.gate = asyncio.Event()
    leader, _ = house.begin(stream=stream)
    await turns()
    follower, _ = house.begin(stream=stream)
    await turns()
    leader.cancel()
    await turns()
    follower.cancel()
    await turns()
    assert house.model.cancelled == 1
    assert leader.done()
    assert follower.done()
    assert house.cache.flights == {}
    house.model.gate.set()
    assert (await house.said(stream=stream)).status == 200


async def test_a_leader_alone_that_leaves_cancels_the_call(stream):
    house = House()
    house.model.gate = asyncio.Event()
    leader, _ = house.begin(stream=stream)
    await turns()
    leader.cancel()
    await turns()
    assert (house.model.cancelled, leader.done()) == (1, True)


async def test_a_failed_call_fails_for_all_who_had_joined_and_is_made_once(stream):
    house = House()
    house.model.gate = asyncio.Event()
    house.model.error = UpstreamError("no", code="upstream_error", upstream_status=400)
    began = [house.begin(stream=stream) for _ in range(10)]
    await turns()
    house.model.gate.set()
    await asyncio.gather(*(task for task, _ in began))
    assert len(house.model.calls) == 1, "no stampede"
    assert {out.status for _, out in began} == {200 if stream else 400}
    assert len({json.dumps(out.error) for _, out in began}) == 1
    house.model.error = None
    assert (await house.said(stream=stream)).status == 200
    assert house.cache.flights == {}


async def test_a_leader_that_has_no_money_is_not_everybodys_fault():
    house = House(Caching(scope="app"))
    poor, refused = house.begin(who="poor")
    rich, served = house.begin(who="ann")
    also, too = house.begin(who="bob")
    await asyncio.gather(poor, rich, also)
    assert (refused.status, served.status, too.status) == (429, 200, 200)
    assert len(house.model.calls) == 1


async def test_who_asks_for_a_fresh_answer_does_not_join():
    house = House()
    house.model.gate = asyncio.Event()
    leader, _ = house.begin()
    await turns()
    fresh, _ = house.begin(control="no-cache")
    await turns()
    assert len(house.model.calls) == 2
    house.model.gate.set()
    await asyncio.gather(leader, fresh)


async def test_without_single_flight_each_asks():
    house = House(Caching(single_flight=False))
    house.model.gate = asyncio.Event()
    began = [house.begin() for _ in range(3)]
    await turns()
    assert len(house.model.calls) == 3
    house.model.gate.set()
    await asyncio.gather(*(task for task, _ in began))


async def test_each_follower_has_its_own_outward_stages():
    house = House(Caching(scope="app"), guard=True)
    house.model.gate = asyncio.Event()
    one, first = house.begin("write to ann.miller@example.com please", who="ann", stream=True)
    await turns()
    two, second = house.begin("write to bob.smith@example.org please", who="bob", stream=True)
    await turns()
    house.model.gate.set()
    await asyncio.gather(one, two)
    assert len(house.model.calls) == 1
    assert "ann.miller@example.com" in first.text
    assert "bob.smith@example.org" in second.text
    assert b"ann.miller" not in second.body


async def test_what_goes_upstream_is_the_same_for_the_same_request():
    house = House(guard=True)
    tools = [{"type": "function", "function": {"name": n, "parameters": {"z": 1, "a": 2}}} for n in ("zeta", "alpha", "mid")]
    for _ in range(2):
        await house.said(
            "mail ann.miller@example.com and bob@example.org", control="no-cache", tools=tools, prompt_cache_key="k"
        )
    one, two = ([(k, bytes(v)) for k, v in call.body.items()] for call in house.model.calls)
    assert one == two
    assert [t["function"]["name"] for t in json.loads(dict(one)["tools"])] == ["zeta", "alpha", "mid"]
    assert dict(one)["prompt_cache_key"] == b'"k"'


# -- questions that mean the same -------------------------------------------------------------------


class Embedder:
    """Every question lies in the same direction: only wording and bucket tell them apart."""

    ready = None

    def __init__(self) -> None:
        self.calls = 0

    async def send(self, call: ModelCall, sink: Any) -> ModelReply:
        self.calls += 1
        await asyncio.sleep(0)
        return ModelReply(200, b'{"data": [{"embedding": [1.0, 2.0]}]}')


def likening(house: House, **more: Any) -> Embedder:
    caching = Caching(semantic=SemanticCaching(Endpoint("e", "local", "e"), 0.9), **more)
    embedder = Embedder()
    meanings = Meanings(caching.semantic, embedder, house.cache.index("app", b"e", 100))
    house.wired = dataclasses.replace(house.wired, cache=Recall(house.release, caching, house.cache, meanings))
    return embedder


async def test_another_wording_gets_the_answer_and_is_marked_as_such(stream):
    house = House()
    embedder = likening(house)
    await house.said("what is the refund policy?", stream=stream)
    out = await house.said("tell me about the refund policy", stream=stream)
    assert (out.text, out.headers["x-noria-cache"]) == ("what is the refund policy?", "semantic")
    assert (house.row.cache, house.row.cost_nanousd, house.reserved) == ("semantic", 0, 1)
    assert embedder.calls == 2
    await house.said("tell me about the refund policy", stream=stream)
    assert (house.row.cache, embedder.calls) == ("semantic", 2), "a repetition needs no embedding and says where it came from"
    await house.said("what is the refund policy?", stream=stream)
    assert house.row.cache == "hit"
    assert len(house.model.calls) == 1


async def test_likeness_never_leads_to_another_callers_answer():
    house = House()
    likening(house)
    await house.said("what is the refund policy?", who="ann")
    out = await house.said("tell me about the refund policy", who="bob")
    assert out.headers["x-noria-cache"] == "miss"
    assert len(house.model.calls) == 2


async def test_a_stampede_of_other_wordings_embeds_each_once():
    house = House()
    embedder = likening(house)
    await house.said("what is the refund policy?")
    began = [house.begin("tell me about the refund policy") for _ in range(20)]
    await asyncio.gather(*(task for task, _ in began))
    assert (len(house.model.calls), embedder.calls) == (1, 2)
    assert [r.cache for r in house.rows[1:]] == ["semantic"] * 20


async def test_no_cache_asks_again_where_meanings_are_compared_too():
    house = House()
    likening(house)
    await house.said("what is the refund policy?")
    await house.said("tell me about the refund policy", control="no-cache")
    assert len(house.model.calls) == 2
