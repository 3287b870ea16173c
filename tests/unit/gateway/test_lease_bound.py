"""The bounds of docs/explanation/limits.md over random interleavings: never above a limit, at most the workers' shares below it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.gateway.test_limits import Town, ask

from noria.contracts.error import LimitExceeded, StoreError
from noria.contracts.exchange import Usage
from noria.contracts.release import Limit
from noria.gateway import lease
from noria.gateway.lease import IDLE_SHARE
from noria.gateway.limits import MINUTE_NS

PROPERTY = settings(max_examples=70, deadline=None, derandomize=True)
S = 1_000_000_000


@pytest.fixture(autouse=True)
def _soon(monkeypatch) -> None:
    monkeypatch.setattr(lease, "SOON", 0.0)


class Fleet:
    """Workers of one keeper under one limit, and what they let in."""

    def __init__(self, town: Town, limit: Limit, workers: int) -> None:
        self.town, self.limit, self.workers = town, limit, workers
        self.team = {}
        self.lives = 0
        self.begun: Counter[int] = Counter()
        self.tokens: Counter[int] = Counter()
        self.inside: dict[str, list] = {}
        self.most = 0

    async def hire(self) -> None:
        name = f"w{self.lives}"
        self.lives += 1
        self.team[name] = await self.town.worker(name, workers=self.workers, limits=[self.limit])
        self.inside[name] = []

    async def enter(self, who: int) -> bool:
        """Whether one came in; what it sets aside is counted in its minute."""
        name = list(self.team)[who % len(self.team)]
        worker = self.team[name]
        claim = None
        try:
            claim = await worker.enter(ask(max_tokens=20), [])
            minute = self.town.now // MINUTE_NS
            await worker.reserve(claim, ask(max_tokens=20))
        except LimitExceeded:
            if claim is not None:
                claim.settle(0, Usage())
                self.begun[minute] += 1
            return False
        self.begun[minute] += 1
        if name not in self.team:
            return False
        self.inside[name].append((claim, minute))
        self.most = max(self.most, sum(map(len, self.inside.values())))
        return True

    def leave(self, who: int) -> None:
        name = list(self.team)[who % len(self.team)]
        if self.inside[name]:
            claim, _ = self.inside[name].pop()
            claim.settle(None, Usage(3, 4))

    async def tick(self, who: int) -> None:
        await list(self.team.values())[who % len(self.team)].tick()

    async def kill(self, who: int) -> None:
        """-9: what it had under way is gone; the keeper finds out, and a new worker takes its place."""
        name = list(self.team)[who % len(self.team)]
        del self.team[name], self.inside[name]
        self.town.alive.discard(name)
        self.town.bank.ended(name)
        await self.town.bank.mend()
        await self.hire()

    async def settle_down(self) -> None:
        """Everything that goes back soon has gone back."""
        for _ in range(20):
            await asyncio.sleep(0)
        for worker in self.team.values():
            await worker.tick()


steps = st.lists(
    st.tuples(st.sampled_from(["enter"] * 6 + ["leave"] * 3 + ["tick", "time", "burst", "kill"]), st.integers(0, 9)),
    min_size=5,
    max_size=60,
)


@PROPERTY
@given(steps, st.integers(1, 4), st.integers(1, 90), st.integers(1, 30), st.integers(0, 999))
def test_no_interleaving_passes_a_rate_or_a_number_of_places(plan, workers, rpm, places, seed) -> None:
    async def run() -> None:
        fleet = Fleet(Town(seed, turns=2), Limit("l", "tenant", requests_per_minute=rpm, concurrent=places), workers)
        for _ in range(workers):
            await fleet.hire()
        for what, n in plan:
            if what == "enter":
                await fleet.enter(n)
            elif what == "leave":
                fleet.leave(n)
            elif what == "tick":
                await fleet.tick(n)
            elif what == "time":
                fleet.town.now += random.Random(n).choice([S // 10, S, 20 * S, MINUTE_NS])
            elif what == "kill":
                await fleet.kill(n)
            else:
                await asyncio.gather(*(fleet.enter(n + i) for i in range(6)))
            assert fleet.most <= places
            assert max(fleet.begun.values(), default=0) <= rpm

    asyncio.run(run())


@PROPERTY
@given(steps, st.integers(1, 4), st.integers(1, 200), st.integers(0, 999))
def test_what_is_refused_is_at_most_the_idle_shares_of_the_others(plan, workers, places, seed) -> None:
    async def run() -> None:
        fleet = Fleet(Town(seed, turns=2), Limit("l", "tenant", concurrent=places), workers)
        for _ in range(workers):
            await fleet.hire()
        for what, n in plan:
            if what in {"enter", "burst"}:
                await asyncio.gather(*(fleet.enter(n + i) for i in range(1 if what == "enter" else 9)))
            elif what == "leave":
                fleet.leave(n)
            elif what == "kill":
                await fleet.kill(n)
        await fleet.settle_down()
        fleet.town.now += S
        share = places // (IDLE_SHARE * workers)
        while await fleet.enter(0):
            pass
        assert places - (workers - 1) * share <= sum(map(len, fleet.inside.values())) <= places

    asyncio.run(run())


@PROPERTY
@given(st.integers(1, 4), st.integers(200, 5000), st.integers(0, 999))
def test_tokens_set_aside_and_not_used_are_free_for_the_other_workers(workers, tpm, seed) -> None:
    async def run() -> None:
        town = Town(seed, turns=2)
        fleet = Fleet(town, Limit("l", "tenant", tokens_per_minute=tpm), workers)
        for _ in range(workers):
            await fleet.hire()
        used, need = 0, 0
        pace = random.Random(seed)
        for _ in range(3):
            while await fleet.enter(pace.randrange(9)):
                need = next(c.bound.estimate for inside in fleet.inside.values() for c, _ in inside)
                if pace.random() < 0.5:
                    for name in list(fleet.inside):
                        used += 7 * len(fleet.inside[name])
                        while fleet.inside[name]:
                            fleet.inside[name].pop()[0].settle(None, Usage(3, 4))
                await asyncio.sleep(0)
            await fleet.settle_down()
            town.now += S
        aside = sum(c.bound.estimate for inside in fleet.inside.values() for c, _ in inside)
        share = tpm // (IDLE_SHARE * workers)
        assert used + aside <= tpm
        assert used + aside > tpm - need - workers * share

    asyncio.run(run())


async def test_a_place_that_is_given_back_after_the_minute_is_not_one_more_in_the_next() -> None:
    """A request entered one limit, waited for another over the end of the minute, and was refused there."""
    town = Town()
    limits = [
        Limit("rate", "tenant", requests_per_minute=5),
        Limit("line", "app:a", concurrent=1, queue_seconds=0.05),
    ]
    worker = await town.worker(limits=limits)
    town.now += 59 * S
    await worker.enter(ask(), [])
    waiting = asyncio.create_task(worker.enter(ask(), []))
    await asyncio.sleep(0.01)
    town.now += 2 * S
    other = asyncio.create_task(worker.enter(ask(), []))  # turns the gate to the new minute
    for task in (waiting, other):
        with pytest.raises(LimitExceeded):
            await task
    rate = worker._by_scope["tenant"][0]
    assert rate.requests.left + await town.counter.read("local", "nothing", now_ns=town.now) <= rate.requests.taken
    assert rate.requests.taken - rate.requests.left == 0


async def test_a_renewal_that_the_keeper_sees_after_the_minute_is_still_held_to_its_limit() -> None:
    town = Town()
    worker = await town.worker(limits=[Limit("l", "tenant", requests_per_minute=3)])
    late = await town.worker("late", limits=[Limit("l", "tenant", requests_per_minute=3)])
    before = town.now
    for _ in range(3):
        await worker.enter(ask(), [])
    gate = late._by_scope["tenant"][0]
    gate.at(before)
    town.now = before + MINUTE_NS  # on its way to the keeper, the minute ends
    assert not await gate.requests.fill(1, before)


async def test_a_worker_that_used_all_places_does_not_keep_them_from_the_others() -> None:
    """Under light traffic of its own it used to hold on to whatever it had held in its busiest moment."""
    town = Town()
    limit = [Limit("l", "tenant", concurrent=8)]
    busy, other = await town.worker("busy", workers=2, limits=limit), await town.worker("other", workers=2, limits=limit)
    for claim in [await busy.enter(ask(), []) for _ in range(8)]:
        claim.settle(0, Usage())
    for _ in range(10):
        await asyncio.sleep(0)
    (await busy.enter(ask(), [])).settle(0, Usage())
    assert len([await other.enter(ask(), []) for _ in range(7)]) == 7


async def test_a_slice_that_rested_long_goes_on_where_it_stopped() -> None:
    """It was forgotten after 15 minutes, and the keeper took the new one's first operations for old ones: 429s for nothing."""
    town = Town()
    worker = await town.worker(limits=[Limit("l", "tenant", concurrent=1)])
    for _ in range(5):
        (await worker.enter(ask(), [])).settle(0, Usage())
        await asyncio.sleep(0.001)
    for _ in range(1000):
        town.now += S
        await worker.tick()
    assert await worker.enter(ask(), []) is not None


async def test_tokens_used_beyond_the_estimate_are_leased_afterwards() -> None:
    town = Town()
    limit = [Limit("l", "tenant", tokens_per_minute=1000)]
    worker, other = await town.worker("w", workers=2, limits=limit), await town.worker("o", workers=2, limits=limit)
    claim = await worker.enter(ask(), [])
    await worker.reserve(claim, ask(max_tokens=20))
    claim.settle(None, Usage(400, 550))
    await worker.tick()
    for _ in range(10):
        await asyncio.sleep(0)
    with pytest.raises(LimitExceeded):
        await other.reserve(await other.enter(ask(), []), ask(max_tokens=100))


async def test_while_the_keeper_is_slow_to_fail_only_the_first_request_waits() -> None:
    town = Town()
    limits = await town.worker(limits=[Limit("l", "tenant", requests_per_minute=100)])
    failing = asyncio.Event()

    async def hang() -> None:
        await failing.wait()
        await asyncio.sleep(lease.LATE * 2)
        raise StoreError("It did not answer.", code="keeper_away")

    async def back() -> None:
        return

    limits.slices._leases._pause = hang
    first = asyncio.create_task(limits.enter(ask(), []))
    await asyncio.sleep(0)
    failing.set()
    await first
    began = asyncio.get_running_loop().time()
    for _ in range(50):
        await limits.enter(ask(), [])
    assert asyncio.get_running_loop().time() - began < lease.LATE, "none of them waited"
    assert limits.unchecked == 51
    limits.slices._leases._pause = back
    limits.slices.reach._retry_at = 0.0
    await limits.enter(ask(), [])  # asks again, with nobody waiting
    for _ in range(5):
        await asyncio.sleep(0)
    await limits.enter(ask(), [])
    assert limits.unchecked == 52
