"""Rates, places and tokens: exact in a worker, never above the limit over several, given back on every way out."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.error import LimitExceeded, StoreError
from noria.contracts.exchange import Exchange, Usage
from noria.contracts.release import Budget, Endpoint, Key, Limit, Price, Release, Snapshot
from noria.engines.memory import MemoryCounter
from noria.gateway.bank import Bank, DirectLeases
from noria.gateway.limits import MINUTE_NS, Limits, duration, priority_of

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
PRICE = Price(input=1.0, output=2.0)


class Town:
    """A bank in memory, and workers with a line to it that takes some turns of the loop; `away` cuts the line."""

    def __init__(self, seed: int = 0, turns: int = 0) -> None:
        self.counter = MemoryCounter("memory://")
        self.now = 10 * MINUTE_NS
        self.clock = SimpleNamespace(now_ns=lambda: self.now)
        self.paid: dict[str, int] = {}
        self.alive: set[str] = set()
        self.bank = Bank(self.counter, self, self.clock)
        self.away = False
        self.takes = 0
        self._pace, self._turns = random.Random(seed), turns

    def holders(self) -> set[str]:
        return self.alive

    async def level(self) -> None:
        return

    async def spent(self, tenant: str, account: str) -> int | None:
        return self.paid.get(account, 0) if account.startswith("budget:") else None

    async def pause(self) -> None:
        if self.away:
            raise StoreError("The keeper cannot be reached.", code="keeper_away")
        self.takes += 1
        for _ in range(self._pace.randint(0, self._turns)):
            await asyncio.sleep(0)

    async def worker(self, name: str = "w0", *, workers: int = 1, limits=(), budgets=()) -> Limits:
        made = Limits(DirectLeases(self.bank, name, pause=self.pause), self.clock, workers=workers)
        made.adopt(Snapshot("c1:x", "local", 1, {}, {}, limits=tuple(limits), budgets=tuple(budgets)))
        self.alive.add(name)
        await made.tick()
        return made


def ask(key: Key | None = None, *, price=PRICE, kind="chat", tags=None, priority="normal", at=10 * MINUTE_NS, **body):
    release = Release("r1:x", "main", "a", (Endpoint("m", "scripted", "m", price=price),))
    raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in ({"model": "a"} | body).items()}
    return Exchange(
        "x", "t", "s", "local", kind, "a", False, raw, at, key=key, release=release, tags=tags or {}, priority=priority
    )


async def enter(limits: Limits, x: Exchange | None = None, headers=None):
    return await limits.enter(x or ask(), [] if headers is None else headers)


async def test_without_limits_and_budgets_there_is_no_claim() -> None:
    town = Town()
    limits = await town.worker()
    town.takes = 0
    for key in (None, Key("k", "h")):
        claim = await enter(limits, ask(key))
        assert claim is None
        x = ask(key)
        assert await limits.reserve(claim, x) is x
    assert (town.takes, limits.evaluated) == (0, 0)


async def test_the_request_after_the_last_is_refused_with_the_scope_the_limit_and_the_time_to_wait() -> None:
    town = Town()
    town.now += 45_000_000_000
    limits = await town.worker(limits=[Limit("all", "tenant", requests_per_minute=3)])
    for _ in range(3):
        await enter(limits)
    with pytest.raises(LimitExceeded) as e:
        await enter(limits)
    assert (e.value.code, e.value.retry_after) == ("rate_limit_exceeded", 15.0)
    assert "tenant" in e.value.message
    assert "3 requests per minute" in e.value.message
    assert e.value.details["limit"] == "all"
    assert (limits.evaluated, limits.acted) == (4, 1)


async def test_a_keys_own_rate_needs_no_configuration() -> None:
    limits = await Town().worker()
    key = Key("k", "h", rpm=2)
    for _ in range(2):
        await enter(limits, ask(key))
    with pytest.raises(LimitExceeded, match="this key"):
        await enter(limits, ask(key))
    await enter(limits, ask(Key("other", "h", rpm=2)))


async def test_a_new_minute_starts_from_nothing_and_old_slices_are_forgotten() -> None:
    town = Town()
    limits = await town.worker(limits=[Limit("all", "tenant", requests_per_minute=1)])
    for _ in range(4):
        await enter(limits)
        town.now += MINUTE_NS
        await limits.tick()
    assert len(list(limits.slices)) <= 2, "a minute's slice lasts for one more"


async def test_steady_traffic_seldom_asks_the_keeper() -> None:
    town = Town()
    limits = await town.worker(limits=[Limit("all", "tenant", requests_per_minute=6000)])
    town.takes = 0
    for _ in range(5):
        for _ in range(100):
            await enter(limits)
        town.now += 1_000_000_000
        await limits.tick()
    assert town.takes <= 40


async def test_every_scope_of_an_exchange_counts_and_a_refusal_leaves_none_of_them_charged() -> None:
    limits = await Town().worker(
        limits=[Limit("t", "tenant", requests_per_minute=10), Limit("g", "tag:env=prod", requests_per_minute=1)]
    )
    await enter(limits, ask(tags={"env": "prod"}))
    for _ in range(3):
        with pytest.raises(LimitExceeded, match="tag:env=prod"):
            await enter(limits, ask(tags={"env": "prod"}))
    for _ in range(9):
        await enter(limits)
    with pytest.raises(LimitExceeded, match="tenant"):
        await enter(limits)


async def test_a_rate_is_no_reason_to_stop_when_the_keeper_is_away() -> None:
    town = Town()
    limits = await town.worker(limits=[Limit("all", "tenant", requests_per_minute=1, concurrent=1)])
    town.away = True
    first, second = await enter(limits), await enter(limits)
    assert limits.unchecked == 2
    assert first.unchecked == second.unchecked == ("all",)
    for claim in (first, second):
        claim.settle(0, Usage())
    town.away = False
    assert (await enter(limits)).warnings == []
    with pytest.raises(LimitExceeded):
        await enter(limits)


@PROPERTY
@given(rpm=st.integers(1, 60), workers=st.integers(1, 4), asked=st.integers(1, 80), seed=st.integers(0, 99))
def test_workers_together_never_pass_a_rate_and_under_use_it_by_one_slice_each_at_most(rpm, workers, asked, seed) -> None:
    async def run() -> int:
        town = Town(seed, turns=3)
        limit = [Limit("all", "tenant", requests_per_minute=rpm)]
        team = [await town.worker(f"w{i}", workers=workers, limits=limit) for i in range(workers)]
        results = await asyncio.gather(*(enter(team[i % workers]) for i in range(asked)), return_exceptions=True)
        assert all(r is None or isinstance(r, LimitExceeded) or hasattr(r, "settle") for r in results), results
        return sum(not isinstance(r, BaseException) for r in results)

    granted = asyncio.run(run())
    slice_ = max(1, rpm // (8 * workers))
    assert granted <= rpm
    assert granted >= min(asked, rpm - (workers - 1) * slice_)


# -- tokens -------------------------------------------------------------------------------------------------


async def test_tokens_are_set_aside_by_estimate_and_settled_by_usage() -> None:
    limits = await Town().worker(limits=[Limit("all", "tenant", tokens_per_minute=3000)])

    async def one(usage: Usage) -> None:
        claim = await enter(limits)
        await limits.reserve(claim, ask(max_tokens=1000))
        claim.settle(None, usage)

    for _ in range(20):
        await one(Usage(50, 50))  # 2,000 of 3,000; the estimate alone would allow two
    with pytest.raises(LimitExceeded, match="tokens per minute"):
        await one(Usage(50, 50))


async def test_a_request_that_no_minute_can_hold_is_told_so() -> None:
    limits = await Town().worker(limits=[Limit("all", "tenant", tokens_per_minute=500)])
    with pytest.raises(LimitExceeded) as e:
        await limits.reserve(await enter(limits), ask(max_tokens=1000))
    assert e.value.lasting
    assert "Lower max_tokens" in e.value.text


# -- places -------------------------------------------------------------------------------------------------


async def test_a_place_is_free_again_once_its_exchange_is_settled_and_only_once() -> None:
    limits = await Town().worker(limits=[Limit("all", "tenant", concurrent=2)])
    first = await enter(limits)
    await enter(limits)
    with pytest.raises(LimitExceeded, match="at a time"):
        await enter(limits)
    first.settle(0, Usage())
    first.settle(0, Usage())
    await asyncio.sleep(0.11)
    await enter(limits)
    with pytest.raises(LimitExceeded):
        await enter(limits)


async def test_a_queue_lets_in_by_priority_then_in_order_of_arrival() -> None:
    town = Town()
    limits = await town.worker(limits=[Limit("all", "tenant", concurrent=1, queue_seconds=5.0)])
    inside = await enter(limits)
    order: list[str] = []

    async def come(name: str, priority: str) -> None:
        claim = await enter(limits, ask(Key(name, "h", priority="high"), priority=priority))
        order.append(name)
        await asyncio.sleep(0)
        claim.settle(0, Usage())

    tasks = []
    for name, priority in (("low", "low"), ("first", "normal"), ("second", "normal"), ("high", "high")):
        tasks.append(asyncio.create_task(come(name, priority)))
        await asyncio.sleep(0.01)
    inside.settle(0, Usage())
    await asyncio.gather(*tasks)
    assert order == ["high", "first", "second", "low"]


def test_a_priority_is_at_most_what_the_key_may_ask_for() -> None:
    assert priority_of(ask(priority="high")) == "normal"
    assert priority_of(ask(Key("k", "h", priority="high"), priority="high")) == "high"
    assert priority_of(ask(Key("k", "h", priority="low"), priority="normal")) == "low"
    assert priority_of(ask(priority="low")) == "low"


async def test_who_waits_in_vain_gets_429_and_who_gives_up_leaves_no_trace() -> None:
    limits = await Town().worker(limits=[Limit("all", "tenant", concurrent=1, queue_seconds=0.05, queue_size=1)])
    inside = await enter(limits)
    with pytest.raises(LimitExceeded, match="none came free"):
        await enter(limits)
    leaving = asyncio.create_task(enter(limits))
    await asyncio.sleep(0.01)
    with pytest.raises(LimitExceeded, match="too many wait"):
        await enter(limits)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    inside.settle(0, Usage())
    await asyncio.sleep(0.15)
    (await enter(limits)).settle(0, Usage())


async def test_permits_of_a_worker_that_died_are_free_again() -> None:
    town = Town()
    limit = [Limit("all", "tenant", concurrent=1)]
    dying = await town.worker("dying", limits=limit)
    await enter(dying)
    other = await town.worker("other", limits=limit)
    with pytest.raises(LimitExceeded):
        await enter(other)
    town.alive.discard("dying")
    town.bank.ended("dying")
    await town.bank.mend()
    await asyncio.sleep(0.0)
    town.now += 200_000_000
    await enter(other)


# -- headers ------------------------------------------------------------------------------------------------


async def test_the_head_tells_of_the_tightest_limit_in_openais_words() -> None:
    town = Town()
    town.now += 54_000_000_000
    limits = await town.worker(
        limits=[
            Limit("t", "tenant", requests_per_minute=100, tokens_per_minute=9000),
            Limit("a", "app:a", requests_per_minute=5),
        ]
    )
    headers: list[tuple[str, str]] = []
    await enter(limits, ask(), headers)
    told = dict(headers)
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("5", "4")
    assert told["x-ratelimit-reset-requests"] == "6s"
    assert told["x-ratelimit-limit-tokens"] == "9000"


@pytest.mark.parametrize(("ns", "text"), [(12_000_000, "12ms"), (1_000_000_000, "1s"), (360_000_000_000, "6m0s"), (0, "0ms")])
def test_durations_are_those_of_openai(ns, text) -> None:
    assert duration(ns) == text


# -- what changes under way ---------------------------------------------------------------------------------


async def test_a_changed_limit_is_in_force_at_once_and_keeps_what_was_used() -> None:
    town = Town()
    limits = await town.worker(limits=[Limit("all", "tenant", requests_per_minute=2)])
    await enter(limits)
    await enter(limits)
    limits.adopt(Snapshot("c1:y", "local", 2, {}, {}, limits=(Limit("all", "tenant", requests_per_minute=3),)))
    await enter(limits)
    town.now += 200_000_000
    with pytest.raises(LimitExceeded):
        await enter(limits)
    limits.adopt(Snapshot("c1:z", "local", 3, {}, {}))
    assert await enter(limits) is None


async def test_soft_budgets_refuse_nothing() -> None:
    limits = await Town().worker(budgets=[Budget("b", "tenant", 0, hard=False)])
    assert await enter(limits) is None
