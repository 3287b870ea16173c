"""The endpoints of a release in order, until one has begun to answer."""

from __future__ import annotations

import asyncio
import random
from time import perf_counter_ns
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from noria.contracts.error import RequestError, Unavailable, UpstreamError
from noria.contracts.exchange import Exchange, ModelReply, unheard
from noria.contracts.release import Endpoint, Key, Timeouts
from noria.contracts.routing import Hedge, Routing, Rule, Semantic, Topic
from noria.contracts.stage import Provider
from noria.gateway.router import Router
from noria.gateway.traffic import Traffic


class Played(Provider):
    """Does what it is told, call by call."""

    id = "played"

    def __init__(self, *ends: Any, ready: Any = None) -> None:
        self.ends = list(ends)
        self.calls: list[Any] = []
        self._ready = ready

    @property
    def ready(self) -> Any:
        return self._ready

    async def send(self, call: Any, sink: Any) -> ModelReply:
        self.calls.append(call)
        end = self.ends.pop(0)
        if callable(end):
            end(sink)
            end = self.ends.pop(0)
        if isinstance(end, BaseException):
            raise end
        return end


class Gate:
    def __init__(self) -> None:
        self.committed = False
        self.restarts = 0

    def feed(self, data: bytes) -> None:
        self.committed = True

    def restart(self) -> None:
        self.restarts += 1


OK = ModelReply(200, b"{}")


def once_each(endpoints: int) -> Routing:
    """Each endpoint at most once."""
    return Routing(retries=max(0, endpoints - 1))


def failed(status: int | None = 500, code: str = "upstream_error") -> UpstreamError:
    return UpstreamError("no", code=code, upstream_status=status)


def ask(**body: Any) -> Exchange:
    raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in ({"model": "a"} | body).items()}
    return Exchange("x", "a" * 32, "b" * 16, "local", "chat", "a", True, raw, 0)


async def send(*providers: Provider, params: dict[str, Any] | None = None, **body: Any) -> SimpleNamespace:
    """Through a route without second tries."""
    names = [f"e{i}" for i in range(len(providers))]
    router = Router(
        [Endpoint(n, "played", n) for n in names],
        dict(zip(names, providers, strict=True)),
        params or {},
        routing=once_each(len(names)),
    )
    gate, account = (
        Gate(),
        SimpleNamespace(attempts=[], endpoint=None, model_ns=0, tries=0, first_ns=None, hedged=[], warnings=[], hear=unheard),
    )
    said = SimpleNamespace(gate=gate, account=account, error=None, reply=None)
    try:
        said.reply = await router.send(ask(**body), gate, account, 0)
    except (UpstreamError, Unavailable, RequestError) as e:
        said.error = e
    said.tried = [(a.endpoint, a.status, a.error) for a in account.attempts]
    return said


async def test_the_first_endpoint_answers_and_the_others_are_left_alone() -> None:
    second = Played(OK)
    said = await send(Played(OK), second)
    assert said.reply is OK
    assert said.tried == [("e0", 200, "")]
    assert said.account.endpoint.name == "e0"
    assert second.calls == []
    assert said.account.model_ns == said.account.attempts[0].took_ns


@pytest.mark.parametrize(
    "first", [failed(), failed(None, "upstream_timeout"), failed(429, "upstream_rate_limited"), failed(401)]
)
async def test_a_failure_before_content_goes_to_the_next(first: UpstreamError) -> None:
    said = await send(Played(first), Played(OK))
    assert said.reply is OK
    assert said.tried == [("e0", first.upstream_status, first.code), ("e1", 200, "")]
    assert said.gate.restarts == 1


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_what_any_endpoint_would_refuse_is_not_tried_elsewhere(status: int) -> None:
    second = Played(OK)
    said = await send(Played(failed(status)), second)
    assert said.error.upstream_status == status
    assert second.calls == []


async def test_once_content_has_left_there_is_no_other_endpoint() -> None:
    second = Played(OK)
    said = await send(Played(lambda sink: sink(b"content"), failed()), second)
    assert said.error is not None
    assert second.calls == []
    assert said.gate.restarts == 0


async def test_the_last_failure_is_the_one_told() -> None:
    said = await send(Played(failed(500)), Played(failed(503, "upstream_overloaded")))
    assert said.error.code == "upstream_overloaded"
    assert len(said.tried) == 2


async def test_an_endpoint_that_is_not_ready_is_noted_and_passed_over() -> None:
    loading = Unavailable("loading", code="model_loading")
    idle = Played(ready=loading)
    said = await send(idle, Played(OK))
    assert said.tried == [("e0", None, "model_loading"), ("e1", 200, "")]
    assert idle.calls == []
    assert (await send(Played(ready=loading))).error is loading


async def test_an_endpoint_that_goes_away_between_look_and_call_is_passed_over_too() -> None:
    said = await send(Played(Unavailable("gone", code="model_not_running")), Played(OK))
    assert said.tried == [("e0", None, "model_not_running"), ("e1", 200, "")]


async def test_a_failure_outranks_an_endpoint_that_was_not_ready() -> None:
    said = await send(Played(ready=Unavailable("loading", code="model_loading")), Played(failed(500)))
    assert isinstance(said.error, UpstreamError)


async def test_a_request_that_a_provider_cannot_take_is_refused_at_once() -> None:
    said = await send(Played(RequestError("no tools here", code="unsupported_feature")), Played(OK))
    assert said.error.code == "unsupported_feature"


async def test_an_empty_route_says_so() -> None:
    assert (await send()).error.code == "no_endpoint"


async def test_our_own_fields_do_not_reach_the_model() -> None:
    provider = Played(OK)
    await send(provider, conversation="c", variables={"a": "b"}, temperature=1)
    assert set(provider.calls[0].body) == {"model", "temperature"}


async def test_the_releases_parameters_stand_in_where_the_caller_is_silent() -> None:
    provider = Played(OK)
    await send(provider, params={"temperature": 0.1, "seed": 7}, temperature=0.9)
    body = {k: msgspec.json.decode(v) for k, v in provider.calls[0].body.items()}
    assert body == {"model": "a", "temperature": 0.9, "seed": 7}


async def test_the_trace_goes_on_upstream() -> None:
    provider = Played(OK)
    await send(provider)
    assert provider.calls[0].traceparent == f"00-{'a' * 32}-{'b' * 16}-01"


async def test_a_cancelled_attempt_is_noted() -> None:
    class Hanging(Played):
        async def send(self, call: Any, sink: Any) -> ModelReply:
            await asyncio.Event().wait()
            raise AssertionError

    account = SimpleNamespace(
        attempts=[], endpoint=None, model_ns=0, tries=0, first_ns=None, hedged=[], warnings=[], hear=unheard
    )
    task = asyncio.create_task(Router([Endpoint("e", "p", "m")], {"e": Hanging()}, {}).send(ask(), Gate(), account, 0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(a.status, a.error) for a in account.attempts] == [(None, "cancelled")]


def test_a_router_is_ready_when_one_endpoint_is() -> None:
    def router(*states: Any) -> Router:
        return Router(
            [Endpoint(str(i), "p", "m") for i in range(len(states))],
            {str(i): Played(ready=s) for i, s in enumerate(states)},
            {},
        )

    away = Unavailable("loading")
    assert router(away, None).ready
    assert not router(away, away).ready
    assert not router().ready


# -- retries: one owner ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses in milliseconds."""
    monkeypatch.setattr("noria.gateway.retry.FIRST_PAUSE", 0.002)


def routed(
    *providers: Provider, traffic: Traffic | None = None, contexts: tuple[int | None, ...] = (), **routing: Any
) -> tuple[Router, Traffic]:
    """A router over endpoints e0, e1, …"""
    names = [f"e{i}" for i in range(len(providers))]
    sizes = (*contexts, *[None] * len(names))
    traffic = traffic or Traffic(random.Random(1))
    route = [Endpoint(n, "played", n, context=c) for n, c in zip(names, sizes, strict=False)]
    return Router(route, dict(zip(names, providers, strict=True)), {}, routing=Routing(**routing), traffic=traffic), traffic


async def through(router: Router, x: Exchange | None = None) -> SimpleNamespace:
    gate, account = (
        Gate(),
        SimpleNamespace(attempts=[], endpoint=None, model_ns=0, tries=0, first_ns=None, hedged=[], warnings=[], hear=unheard),
    )
    said = SimpleNamespace(gate=gate, account=account, error=None, reply=None)
    try:
        said.reply = await router.send(x or ask(), gate, account, perf_counter_ns())
    except (UpstreamError, Unavailable, RequestError) as e:
        said.error = e
    said.names = [a.endpoint for a in account.attempts]
    return said


async def test_a_failure_that_may_pass_is_tried_again_at_the_same_endpoint() -> None:
    router, traffic = routed(Played(failed(503), failed(503), OK))
    said = await through(router)
    assert said.reply is OK
    assert said.names == ["e0", "e0", "e0"]
    assert said.account.tries == 3
    assert traffic.totals()["retry"] == 2


async def test_the_attempts_of_an_exchange_have_a_cap_over_all_endpoints() -> None:
    players = [Played(*[failed(500)] * 9) for _ in range(4)]
    assert (await through(routed(*players, retries=2)[0])).names == ["e0", "e1", "e2"]
    assert (await through(routed(*players, retries=0)[0])).names == ["e0"]
    assert (await through(routed(*players[:2], retries=3)[0])).names == ["e0", "e1", "e0", "e1"]


async def test_what_we_have_retried_the_sdk_shall_not() -> None:
    once, again = (
        (await through(routed(Played(failed(500)), retries=0)[0])),
        await through(routed(Played(*[failed(500)] * 3))[0]),
    )
    assert (once.error.retried, again.error.retried) == (False, True)


@pytest.mark.parametrize(
    "error", [failed(401, "upstream_auth"), failed(None, "upstream_timeout"), failed(504, "upstream_timeout")]
)
async def test_a_refused_key_and_a_late_endpoint_are_not_asked_again(error: UpstreamError) -> None:
    assert (await through(routed(Played(error, OK))[0])).names == ["e0"]


async def test_a_wait_that_is_too_long_is_the_callers_to_wait() -> None:
    limited = UpstreamError("slow down", code="upstream_rate_limited", upstream_status=429, retry_after=30.0)
    said = await through(routed(Played(limited, OK))[0])
    assert said.names == ["e0"]
    assert said.error.retry_after == 30.0
    assert not said.error.retried


async def test_where_the_workers_budget_is_spent_nobody_is_asked_again() -> None:
    traffic = Traffic(random.Random(1))
    while traffic.budget.allow(perf_counter_ns()):
        pass
    before = traffic.totals()["retry_denied"]
    said = await through(routed(Played(failed(500)), Played(OK), traffic=traffic)[0])
    assert said.names == ["e0"]
    assert traffic.totals()["retry_denied"] == before + 1


async def test_a_prompt_that_is_too_long_goes_to_a_larger_window_only() -> None:
    long = UpstreamError("no", code="upstream_error", upstream_status=400, body=b"context_length_exceeded")
    smaller, larger = Played(OK), Played(OK)
    said = await through(routed(Played(long), smaller, larger, contexts=(8000, 4000, 32000))[0])
    assert said.names == ["e0", "e2"]
    assert smaller.calls == []
    alone = await through(routed(Played(long), Played(OK), contexts=(8000, 8000))[0])
    assert alone.error is long
    assert (await through(routed(Played(long), Played(OK), contexts=(8, 9), fallback_on=())[0])).names == ["e0"]


async def test_a_content_policy_is_fallen_back_from_only_where_configured() -> None:
    barred = UpstreamError("no", code="upstream_error", upstream_status=400, body=b'{"error":{"code":"content_filter"}}')
    assert (await through(routed(Played(barred), Played(OK))[0])).error is barred
    assert (await through(routed(Played(barred), Played(OK), fallback_on=("content_policy",))[0])).names == ["e0", "e1"]


# -- health -------------------------------------------------------------------------------------------


async def test_an_endpoint_that_fails_is_passed_over_and_then_tried_by_one_request() -> None:
    sick, well = Played(*[failed(500)] * 50), Played(*[OK] * 50)
    router, traffic = routed(sick, well)
    for _ in range(5):
        assert (await through(router)).names == ["e0", "e1"]
    assert (await through(router)).names == ["e1"]
    assert traffic.board.out == 1
    assert traffic.totals()["ejected"] == 1
    health = traffic.health(Endpoint("e0", "played", "e0"))
    health._until_ns = 0  # its time is over
    assert (await through(router)).names == ["e0", "e1"], "one real request tries it"
    assert (await through(router)).names == ["e1"], "and its failure puts it out again"
    health._until_ns = 0
    sick.ends[0] = OK
    assert (await through(router)).names == ["e0"]
    assert traffic.board.out == 0
    assert traffic.totals()["recovered"] == 1


async def test_an_ejected_endpoint_is_a_last_resort() -> None:
    sick, other = Played(*[failed(500)] * 5, OK), Played(*[OK] * 5, failed(500))
    router, _ = routed(sick, other)
    for _ in range(5):
        await through(router)
    said = await through(router)
    assert said.reply is OK
    assert said.names == ["e1", "e0"]


async def test_the_only_endpoint_is_asked_however_it_fails() -> None:
    router, _ = routed(Played(*[failed(500)] * 50), retries=0)
    for _ in range(20):
        assert (await through(router)).names == ["e0"]


async def test_a_rate_limited_endpoint_rests_for_as_long_as_it_says() -> None:
    limited = UpstreamError("slow down", code="upstream_rate_limited", upstream_status=429, retry_after=30.0)
    first = Played(limited)
    router, traffic = routed(first, Played(*[OK] * 3))
    assert (await through(router)).names == ["e0", "e1"]
    assert (await through(router)).names == ["e1"]
    assert traffic.board.standings(perf_counter_ns())[0].state == "cooling"
    assert len(first.calls) == 1


async def test_health_can_be_switched_off() -> None:
    router, _ = routed(Played(*[failed(401, "upstream_auth")] * 9), Played(*[OK] * 9), health=False)
    for _ in range(3):
        assert (await through(router)).names == ["e0", "e1"]


async def test_releases_share_what_is_known_of_an_endpoint() -> None:
    traffic = Traffic(random.Random(1))
    one, _ = routed(Played(failed(401, "upstream_auth")), Played(OK), traffic=traffic)
    other, _ = routed(Played(OK), Played(OK), traffic=traffic)
    await through(one)
    assert (await through(other)).names == ["e1"]


# -- the order ----------------------------------------------------------------------------------------


async def test_a_pool_shares_the_load_and_the_next_stands_behind_it() -> None:
    players = [Played(*[OK] * 100), Played(*[OK] * 100), Played(*[OK] * 100)]
    router, _ = routed(*players, strategy="weighted", pools=(("e0", "e1"), ("e2",)))
    for _ in range(100):
        await through(router)
    assert min(len(p.calls) for p in players[:2]) > 30
    assert players[2].calls == []
    both = [Played(*[failed(500)] * 3), Played(*[failed(500)] * 3)]
    said = await through(routed(*both, Played(OK), strategy="weighted", pools=(("e0", "e1"), ("e2",)))[0])
    assert sorted(said.names[:2]) == ["e0", "e1"]
    assert said.names[2] == "e2"


@pytest.mark.parametrize(
    ("rule", "more", "holds"),
    [
        ({"stream": True}, {}, True),
        ({"stream": False}, {}, False),
        ({"tools": True}, {"tools": [{"type": "function"}]}, True),
        ({"tools": True}, {}, False),
        ({"min_tokens": 100}, {}, False),
        ({"min_tokens": 100}, {"messages": [{"role": "user", "content": "word " * 200}]}, True),
        ({"max_tokens": 100}, {}, True),
        ({"language": ("zh",)}, {"messages": [{"role": "user", "content": "怎么重置密码？"}]}, True),
        ({"language": ("zh",)}, {"messages": [{"role": "user", "content": "How do I reset it?"}]}, False),
        (
            {"images": True},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
            True,
        ),
        ({"stream": True, "tools": True}, {}, False),
        ({"tags": {"tier": "gold"}}, {}, True),
        ({"tags": {"tier": "free"}}, {}, False),
    ],
)
async def test_a_rule_sends_what_it_describes_to_its_models(rule, more, holds) -> None:
    router, traffic = routed(Played(OK), Played(OK), rules=(Rule((("e1",),), **rule),))
    body = {"messages": [{"role": "user", "content": "hello"}], **more}
    said = await through(router, replace(ask(**body), tags={"tier": "gold"}))
    assert said.names == (["e1"] if holds else ["e0"])
    assert traffic.totals()["rule"] == holds


async def test_the_first_rule_that_holds_decides() -> None:
    rules = (Rule((("e1",),), stream=False), Rule((("e2",), ("e0",)), stream=True), Rule((("e1",),)))
    router, _ = routed(Played(OK), Played(), Played(failed(500)), rules=rules)
    assert (await through(router)).names == ["e2", "e0"]


async def test_a_request_never_leaves_its_regions_whatever_fails() -> None:
    abroad = Played(OK)
    route = [Endpoint("eu", "played", "m", region="eu-west-1"), Endpoint("us", "played", "m", region="us")]
    providers = {"eu": Played(*[failed(500)] * 9), "us": abroad}
    router = Router(route, providers, {}, routing=Routing(regions=(("eu",),)), traffic=Traffic(random.Random(1)))
    assert (await through(router)).names == ["eu"] * 3
    assert abroad.calls == []
    plain = Router(route, providers, {}, traffic=Traffic(random.Random(1)))
    keyed = replace(ask(), tags={"regions": "eu"}, key=Key("k", "", tags={"regions": "eu"}))
    assert (await through(plain, keyed)).names == ["eu"] * 3
    nowhere = replace(ask(), tags={"regions": "ap"}, key=Key("k", "", tags={"regions": "ap"}))
    said = await through(plain, nowhere)
    assert said.error.code == "no_model_qualifies"
    assert "regions [ap]" in said.error.text
    assert said.names == []


async def test_a_model_without_tools_gets_no_request_with_tools() -> None:
    route = [Endpoint("plain", "played", "m", lacks=("tools",)), Endpoint("able", "played", "m")]
    router = Router(route, {"plain": Played(OK), "able": Played(OK)}, {})
    assert (await through(router, ask(tools=[{"type": "function"}]))).names == ["able"]
    assert (await through(router)).names == ["plain"]


async def test_a_topic_chooses_and_no_topic_leaves_the_order() -> None:
    class Fixed:
        def __init__(self) -> None:
            self.found: Any = None

        def within(self, regions: Any) -> bool:
            return not regions

        async def topic(self, text: str) -> Any:
            return self.found

    semantic = Semantic((Topic("code", ("x", "y"), (("e1",),)), Topic("chat", ("x", "y"), (("e0",),))))
    fixed = Fixed()
    names = ["e0", "e1"]
    route = [Endpoint(n, "played", n) for n in names]
    router = Router(route, {n: Played(OK, OK) for n in names}, {}, routing=Routing(semantic=semantic), topics=fixed)  # type: ignore[arg-type]
    x = ask(messages=[{"role": "user", "content": "hello"}])
    assert (await through(router, x)).names == ["e0"]
    fixed.found = semantic.topics[0]
    assert (await through(router, x)).names == ["e1"]


# -- time ---------------------------------------------------------------------------------------------


class Talking(Played):
    """Sends `data` now and then, and never ends."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data
        self.left = False

    async def send(self, call: Any, sink: Any) -> ModelReply:
        self.calls.append(call)
        try:
            while True:
                await asyncio.sleep(0.01)
                sink(self.data)
        finally:
            self.left = True


class Deaf(Gate):
    """A gate for which nothing that comes is content."""

    def feed(self, data: bytes) -> None:
        pass


async def test_a_stream_that_talks_without_content_is_left_for_the_next_endpoint() -> None:
    talking = Talking(b": ping\n\n")
    route = [Endpoint("e0", "played", "m", timeouts=Timeouts(first=0.1)), Endpoint("e1", "played", "m")]
    router = Router(route, {"e0": talking, "e1": Played(OK)}, {}, traffic=Traffic(random.Random(1)))
    account = SimpleNamespace(
        attempts=[], endpoint=None, model_ns=0, tries=0, first_ns=None, hedged=[], warnings=[], hear=unheard
    )
    began = perf_counter_ns()
    assert await router.send(ask(), Deaf(), account, began) is OK
    assert [(a.endpoint, a.error) for a in account.attempts] == [("e0", "upstream_timeout"), ("e1", "")]
    assert talking.left
    assert 0.08e9 < perf_counter_ns() - began < 0.6e9


async def test_a_hedge_asks_the_second_when_the_first_is_late_and_pays_for_both() -> None:
    class Slow(Played):
        async def send(self, call: Any, sink: Any) -> ModelReply:
            await asyncio.sleep(5)
            return OK

    router, traffic = routed(Slow(), Played(OK), hedge=Hedge(after=0.02))
    said = await through(router, replace(ask(), stream=False))
    assert said.reply is OK
    assert {(a.endpoint, a.error) for a in said.account.attempts} == {("e0", "hedge_lost"), ("e1", "")}
    assert said.account.endpoint.name == "e1"
    assert [e.name for e in said.account.hedged] == ["e0"]
    assert (traffic.totals()["hedge"], traffic.totals()["hedge_won"]) == (1, 1)
    stored = replace(ask(store=True), stream=False)
    quick, _ = routed(Played(OK), Played(OK), hedge=Hedge(after=0.0001))
    assert (await through(quick, stored)).names == ["e0"]


async def test_a_race_that_both_lose_goes_on_to_the_third() -> None:
    class Late(Played):
        async def send(self, call: Any, sink: Any) -> ModelReply:
            await asyncio.sleep(0.05)
            raise failed(500)

    router, _ = routed(Late(), Late(), Played(OK), hedge=Hedge(after=0.01))
    said = await through(router, replace(ask(), stream=False))
    assert said.reply is OK
    assert sorted(said.names) == ["e0", "e1", "e2"]
