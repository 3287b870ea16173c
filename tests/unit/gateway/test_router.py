"""The endpoints of a release in order, until one has begun to answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from noria.contracts.error import RequestError, Unavailable, UpstreamError
from noria.contracts.exchange import Exchange, ModelReply
from noria.contracts.release import Endpoint
from noria.contracts.stage import Provider
from noria.gateway.router import Router


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


def failed(status: int | None = 500, code: str = "upstream_error") -> UpstreamError:
    return UpstreamError("no", code=code, upstream_status=status)


def ask(**body: Any) -> Exchange:
    raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in ({"model": "a"} | body).items()}
    return Exchange("x", "a" * 32, "b" * 16, "local", "chat", "a", True, raw, 0)


async def send(*providers: Provider, params: dict[str, Any] | None = None, **body: Any) -> SimpleNamespace:
    names = [f"e{i}" for i in range(len(providers))]
    router = Router([Endpoint(n, "played", n) for n in names], dict(zip(names, providers, strict=True)), params or {})
    gate, account = Gate(), SimpleNamespace(attempts=[], endpoint=None, model_ns=0)
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
    import asyncio

    class Hanging(Played):
        async def send(self, call: Any, sink: Any) -> ModelReply:
            await asyncio.Event().wait()
            raise AssertionError

    account = SimpleNamespace(attempts=[], endpoint=None, model_ns=0)
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
