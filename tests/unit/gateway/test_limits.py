"""Rates and budgets by leased slices: never above the ceiling, settled once, given back."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.error import LimitExceeded, StoreError, Unavailable
from noria.contracts.exchange import Exchange
from noria.contracts.release import Endpoint, Key, Price, Release
from noria.engines.memory import MemoryCounter
from noria.gateway.limits import DEFAULT_OUTPUT, MINUTE_NS, Limits, output_limit, reserve_amount

PRICE = Price(input=1.0, output=2.0)
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)


class Shared:
    """The keeper's counters behind a line that takes a while; `away` cuts it."""

    def __init__(self, seed: int = 0, turns: int = 0) -> None:
        self.counter = MemoryCounter("memory://")
        self.clock = SimpleNamespace(now_ns=lambda: self.now)
        self.now = 0
        self.away = False
        self.takes = 0
        self._pace = random.Random(seed)
        self._turns = turns

    async def _wait(self) -> None:
        for _ in range(self._pace.randint(0, self._turns)):
            await asyncio.sleep(0)
        if self.away:
            raise StoreError("The keeper cannot be reached.", code="keeper_away")

    async def take(self, tenant: str, key: str, **what: int) -> int:
        await self._wait()
        self.takes += 1
        granted = await self.counter.take(tenant, key, **what, now_ns=self.now)
        await self._wait()
        return granted

    async def give(self, tenant: str, key: str, amount: int) -> None:
        await self._wait()
        await self.counter.give(tenant, key, amount, now_ns=self.now)

    async def spent(self, key: str = "budget:k") -> int:
        return await self.counter.read("local", key, now_ns=self.now)


def ask(
    key: Key | None, *, price: Price | None = PRICE, kind: str = "chat", params: dict | None = None, **body: object
) -> Exchange:
    release = Release("r1:x", "main", "a", (Endpoint("m", "p", "m", price=price),), params=params or {})
    raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in ({"model": "a"} | body).items()}
    return Exchange("x", "t", "s", "local", kind, "a", False, raw, 0, key=key, release=release)


def rated(rpm: int) -> Key:
    return Key("k", "h", rpm=rpm)


def funded(nanousd: int) -> Key:
    return Key("k", "h", budget_nanousd=nanousd)


async def test_a_key_without_limits_costs_nothing() -> None:
    shared = Shared()
    limits = Limits(shared, shared.clock)
    for key in (None, Key("k", "h")):
        x = ask(key)
        assert await limits.reserve(x) == (x, None)
    assert (shared.takes, limits.evaluated) == (0, 0)


# -- requests per minute ------------------------------------------------------------------------------------


async def test_the_request_after_the_last_is_refused_with_the_time_to_wait() -> None:
    shared = Shared()
    shared.now = MINUTE_NS + 45_000_000_000
    limits = Limits(shared, shared.clock)
    for _ in range(3):
        await limits.rate(ask(rated(3)))
    with pytest.raises(LimitExceeded) as e:
        await limits.rate(ask(rated(3)))
    assert (e.value.code, e.value.retry_after) == ("rate_limit_exceeded", 15.0)
    assert (limits.evaluated, limits.acted) == (4, 1)


async def test_a_new_minute_starts_from_nothing_and_the_old_slices_are_forgotten() -> None:
    shared = Shared()
    limits = Limits(shared, shared.clock)
    await limits.rate(ask(rated(1)))
    shared.now = MINUTE_NS
    await limits.rate(ask(rated(1)))
    assert len(limits._slices) == 1


async def test_most_requests_do_not_ask_the_keeper() -> None:
    shared = Shared()
    limits = Limits(shared, shared.clock)
    for _ in range(800):
        await limits.rate(ask(rated(800)))
    assert shared.takes == 8


async def test_a_rate_is_not_a_reason_to_stop_when_the_keeper_is_away() -> None:
    shared = Shared()
    shared.away = True
    limits = Limits(shared, shared.clock)
    await limits.rate(ask(rated(1)))
    await limits.rate(ask(rated(1)))
    assert limits.unchecked == 2


@PROPERTY
@given(rpm=st.integers(1, 60), workers=st.integers(1, 4), asked=st.integers(1, 80), seed=st.integers(0, 99))
def test_workers_together_never_pass_a_rate(rpm, workers, asked, seed) -> None:
    async def run() -> tuple[int, int]:
        shared = Shared(seed, turns=3)
        team = [Limits(shared, shared.clock, workers=workers) for _ in range(workers)]
        results = await asyncio.gather(*(team[i % workers].rate(ask(rated(rpm))) for i in range(asked)), return_exceptions=True)
        assert all(r is None or isinstance(r, LimitExceeded) for r in results)
        return sum(r is None for r in results), sum(s.left for t in team for s in t._slices.values())

    granted, idle = asyncio.run(run())
    assert granted <= rpm
    slice_ = max(1, rpm // (8 * workers))
    assert granted >= min(asked, rpm - workers * slice_), "under-used by at most one slice a worker"
    assert idle <= workers * slice_


# -- budgets ------------------------------------------------------------------------------------------------


async def test_the_reservation_is_what_the_request_can_cost_at_most() -> None:
    x = ask(funded(1), messages=[{"role": "user", "content": "世界"}], max_tokens=10, n=3)
    size = sum(len(v) for v in x.body.values())
    assert reserve_amount(x) == size * 1000 + 30 * 2000 + 1


async def test_the_dearest_endpoint_of_the_route_decides() -> None:
    x = ask(funded(1), max_tokens=10)
    route = (Endpoint("cheap", "p", "m", price=Price(0, 0)), Endpoint("dear", "p", "m", price=Price(input=0, output=50)))
    x = msgspec.structs.replace(x, release=msgspec.structs.replace(x.release, route=route))
    assert reserve_amount(x) == 10 * 50_000 + 1


@pytest.mark.parametrize(
    ("body", "params", "limit"),
    [
        ({}, {}, None),
        ({"max_tokens": 5}, {}, 5),
        ({"max_completion_tokens": 7}, {"max_tokens": 99}, 7),
        ({"max_tokens": None}, {"max_tokens": 9}, 9),
        ({}, {"max_completion_tokens": 11}, 11),
    ],
)
def test_the_output_limit_is_the_callers_else_the_releases(body, params, limit) -> None:
    assert output_limit(ask(None, params=params, **body)) == limit


async def test_a_missing_output_limit_is_put_in_under_a_budget_only() -> None:
    shared = Shared()
    limits = Limits(shared, shared.clock)
    x, money = await limits.reserve(ask(funded(10**10)))
    assert bytes(x.body["max_tokens"]) == b"%d" % DEFAULT_OUTPUT
    assert money.amount >= DEFAULT_OUTPUT * 2000
    x, _ = await limits.reserve(ask(funded(10**10), max_tokens=3))
    assert bytes(x.body["max_tokens"]) == b"3"
    x, _ = await limits.reserve(ask(funded(10**10), kind="embedding", input="a"))
    assert "max_tokens" not in x.body
    x, _ = await limits.reserve(ask(rated(10)))
    assert "max_tokens" not in x.body


async def test_an_unknown_price_is_not_free() -> None:
    shared = Shared()
    with pytest.raises(LimitExceeded) as e:
        await Limits(shared, shared.clock).reserve(ask(funded(10**12), price=None))
    assert e.value.code == "price_unknown"


async def test_a_spent_budget_is_refused_without_a_time_to_wait() -> None:
    shared = Shared()
    limits = Limits(shared, shared.clock)
    with pytest.raises(LimitExceeded) as e:
        await limits.reserve(ask(funded(5), max_tokens=10))
    assert (e.value.code, e.value.retry_after, limits.acted) == ("insufficient_quota", None, 1)
    assert await shared.spent() == 0


async def test_money_is_never_spent_unchecked() -> None:
    shared = Shared()
    shared.away = True
    with pytest.raises(Unavailable) as e:
        await Limits(shared, shared.clock).reserve(ask(funded(10**12)))
    assert (e.value.status, e.value.code) == (503, "budget_unavailable")


async def test_a_reservation_is_settled_once() -> None:
    shared = Shared()
    limits = Limits(shared, shared.clock)
    _, money = await limits.reserve(ask(funded(10**9), max_tokens=1))
    for cost in (100, 0, None, 100):
        money.settle(cost)
    await limits.give_back()
    assert await shared.spent() == 100


async def test_an_unknown_cost_pays_the_whole_reservation() -> None:
    shared = Shared()
    limits = Limits(shared, shared.clock)
    _, money = await limits.reserve(ask(funded(10**9), max_tokens=1))
    money.settle(None)
    await limits.give_back()
    assert await shared.spent() == money.amount


async def test_what_cost_more_than_was_set_aside_is_made_good_by_the_next() -> None:
    shared = Shared()
    limits = Limits(shared, shared.clock)
    _, first = await limits.reserve(ask(funded(10**9), max_tokens=1))
    first.settle(first.amount + 5_000_000)
    _, second = await limits.reserve(ask(funded(10**9), max_tokens=1))
    second.settle(0)
    await limits.give_back()
    assert await shared.spent() == first.amount + 5_000_000


async def test_leases_that_cannot_be_given_back_are_kept() -> None:
    shared = Shared()
    limits = Limits(shared, shared.clock)
    _, money = await limits.reserve(ask(funded(10**9), max_tokens=1))
    money.settle(0)
    shared.away = True
    await limits.give_back()
    shared.away = False
    await limits.give_back()
    assert await shared.spent() == 0


async def test_a_caller_who_leaves_during_a_renewal_loses_nothing_of_the_budget() -> None:
    shared = Shared(turns=5)
    limits = Limits(shared, shared.clock)
    task = asyncio.create_task(limits.reserve(ask(funded(10**9), max_tokens=1)))
    while not await shared.spent():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(20):
        await asyncio.sleep(0)
    await limits.give_back()
    assert await shared.spent() == 0


@PROPERTY
@given(
    budget=st.integers(0, 3_000_000),
    costs=st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=25),
    workers=st.integers(1, 3),
    leavers=st.sets(st.integers(0, 24)),
    seed=st.integers(0, 99),
)
def test_a_budget_is_never_passed_and_every_nano_dollar_is_accounted_for(budget, costs, workers, leavers, seed) -> None:
    async def one(limits: Limits, share: float | None, pause: int) -> int:
        _, money = await limits.reserve(ask(funded(budget), max_tokens=20))
        try:
            for _ in range(pause):
                await asyncio.sleep(0)
        finally:
            cost = None if share is None else int(money.amount * share)
            money.settle(cost)
        return money.amount if cost is None else cost

    async def run() -> None:
        shared = Shared(seed, turns=3)
        pace = random.Random(seed)
        team = [Limits(shared, shared.clock, workers=workers) for _ in range(workers)]
        tasks = [asyncio.create_task(one(team[i % workers], c, pace.randint(0, 4))) for i, c in enumerate(costs)]
        for turn in range(12):
            await asyncio.sleep(0)
            assert await shared.spent() <= budget
            for i in leavers:
                if i < len(tasks) and i % 12 == turn:
                    tasks[i].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, int | LimitExceeded | asyncio.CancelledError) for r in results), results
        for _ in range(30):
            await asyncio.sleep(0)
        for limits in team:
            await limits.give_back()
        spent = await shared.spent()
        paid = sum(r for r in results if isinstance(r, int))
        assert spent <= budget
        if not leavers:
            assert spent == paid
        else:
            assert spent >= paid

    asyncio.run(run())
