"""Museum 20: retries that multiply, and cooldowns that take away the last endpoint.

Where two layers retry N times each, (1 + N)² calls arrive (litellm PR#34129). A new cooldown ended a longer one early
(litellm#40130), the only deployment was taken out and nobody was left to answer (litellm PR#7823), and the wait that a provider
had asked for was not kept (litellm#7669).

Here N retries are N more calls over all endpoints; in an outage, retries add at most a tenth to a worker's requests, and a small
fixed number. SDKs are told not to repeat what was tried more than once here, and how long the provider wants them to wait. A
deadline only moves later; an endpoint without an alternative is always asked.
"""

from __future__ import annotations

import random
from time import perf_counter_ns
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.error import UpstreamError
from noria.contracts.exchange import Exchange, ModelReply
from noria.contracts.release import Endpoint
from noria.contracts.routing import Routing
from noria.contracts.stage import Provider
from noria.dialects.openai_error import error_answer
from noria.gateway.health import Health
from noria.gateway.retry import FLOOR, SECOND_NS, SHARE
from noria.gateway.router import Router
from noria.gateway.traffic import Traffic


class Failing(Provider):
    id = "failing"

    def __init__(self, error: UpstreamError) -> None:
        self.error = error
        self.calls = 0

    async def send(self, call: Any, sink: Any) -> ModelReply:
        self.calls += 1
        raise self.error


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noria.gateway.retry.FIRST_PAUSE", 0.0001)


def failed(status: int, retry_after: float | None = None) -> UpstreamError:
    code = "upstream_rate_limited" if status == 429 else "upstream_error"
    return UpstreamError("no", code=code, upstream_status=status, retry_after=retry_after)


async def send(router: Router) -> UpstreamError:
    gate = SimpleNamespace(committed=False, feed=lambda data: None, restart=lambda: None)
    account = SimpleNamespace(
        attempts=[], endpoint=None, model_ns=0, tries=0, first_ns=None, hedged=[], warnings=[], hear=lambda usage: None
    )
    x = Exchange("x", "a" * 32, "b" * 16, "local", "chat", "app", False, {}, 0)
    with pytest.raises(UpstreamError) as caught:
        await router.send(x, gate, account, perf_counter_ns())
    return caught.value


def routed(*providers: Failing, traffic: Traffic | None = None, **routing: Any) -> Router:
    names = [f"e{i}" for i in range(len(providers))]
    return Router(
        [Endpoint(n, "failing", n) for n in names],
        dict(zip(names, providers, strict=True)),
        {},
        routing=Routing(**routing),
        traffic=traffic or Traffic(random.Random(1)),
    )


@pytest.mark.parametrize("endpoints", [1, 2, 3, 5])
@pytest.mark.parametrize("retries", [0, 1, 2, 4])
async def test_n_retries_are_n_more_calls_however_many_endpoints_there_are(endpoints: int, retries: int) -> None:
    players = [Failing(failed(503)) for _ in range(endpoints)]
    await send(routed(*players, retries=retries))
    assert sum(p.calls for p in players) == 1 + retries


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_was_retried_here_is_not_retried_by_the_sdk(status: int) -> None:
    error = await send(routed(Failing(failed(status)), Failing(failed(status))))
    assert ("x-should-retry", "false") in error_answer(error)[1]


async def test_the_wait_that_the_provider_asked_for_reaches_the_caller() -> None:
    error = await send(routed(Failing(failed(429, 17.0))))
    assert {("retry-after", "17"), ("retry-after-ms", "17000")} <= set(error_answer(error)[1])


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["busy", "failed", "auth"]), st.floats(0.01, 100)), max_size=30))
def test_no_sequence_of_failures_shortens_a_deadline(steps: list[tuple[int, Any, float]]) -> None:
    health, now, deadline = Health("a"), 1000 * SECOND_NS, 0
    for gap, kind, wait in steps:
        now += gap * SECOND_NS
        health.failed(kind, now, now, wait if kind == "busy" else None)
        assert health.until_ns >= deadline
        deadline = health.until_ns


async def test_the_single_endpoint_is_asked_whatever_it_has_done() -> None:
    for status, wait in ((429, 600.0), (500, None), (401, None)):
        player = Failing(failed(status, wait))
        router = routed(player, retries=0)
        for _ in range(25):
            await send(router)
        assert player.calls == 25


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 400))
async def test_when_everything_fails_the_load_grows_by_a_tenth_and_not_threefold(requests: int) -> None:
    player, traffic = Failing(failed(503)), Traffic(random.Random(1))
    router = routed(player, traffic=traffic, retries=2)
    for _ in range(requests):
        await send(router)
    assert player.calls - requests <= FLOOR + SHARE * requests
