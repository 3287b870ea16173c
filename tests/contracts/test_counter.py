"""The guarantees of `Counter`, on every engine that serves it. Times are the test's own: a second is 10**9."""

import asyncio
import itertools
from importlib import import_module

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from noria.contracts.port import Counter

PORT = Counter
S = 1_000_000_000
T0 = 1_800_000_000 * S


@pytest.fixture
async def counter(make):
    return make(Counter)


async def take(counter, want, *, least=1, ceiling=100, expires=0, at=T0, tenant="a", key="k"):
    return await counter.take(tenant, key, want=want, least=least, ceiling=ceiling, expires_ns=expires, now_ns=at)


async def test_a_counter_never_seen_is_zero(counter):
    assert await counter.read("a", "k", now_ns=T0) == 0


async def test_takes_add_up_to_the_ceiling_and_the_last_one_gets_the_rest(counter):
    assert await take(counter, 60) == 60
    assert await counter.read("a", "k", now_ns=T0) == 60
    assert await take(counter, 60) == 40
    assert await take(counter, 60) == 0
    assert await counter.read("a", "k", now_ns=T0) == 100


async def test_nothing_is_granted_where_less_than_least_is_left(counter):
    await take(counter, 90)
    assert await take(counter, 20, least=11) == 0
    assert await counter.read("a", "k", now_ns=T0) == 90
    assert await take(counter, 20, least=10) == 10


@pytest.mark.parametrize(("want", "ceiling"), [(0, 100), (-5, 100), (5, 0), (5, -1)])
async def test_a_take_of_nothing_or_under_no_ceiling_changes_nothing(counter, want, ceiling):
    assert await take(counter, want, least=0, ceiling=ceiling) == 0
    assert await counter.read("a", "k", now_ns=T0) == 0


async def test_the_ceiling_is_that_of_each_take(counter):
    await take(counter, 80)
    assert await take(counter, 10, ceiling=50) == 0, "a lowered ceiling takes nothing back and grants nothing"
    assert await take(counter, 90, ceiling=120) == 40


async def test_amounts_may_be_as_large_as_int64_allows(counter):
    large = 2**62
    assert await take(counter, large, ceiling=large) == large
    assert await counter.read("a", "k", now_ns=T0) == large


async def test_what_is_given_back_can_be_taken_again(counter):
    await take(counter, 100)
    await counter.give("a", "k", 30, now_ns=T0)
    assert await counter.read("a", "k", now_ns=T0) == 70
    assert await take(counter, 100) == 30


async def test_give_never_goes_below_zero(counter):
    await take(counter, 10)
    await counter.give("a", "k", 11, now_ns=T0)
    assert await counter.read("a", "k", now_ns=T0) == 0
    assert await take(counter, 1000) == 100, "no credit beyond the ceiling"
    await counter.give("a", "never taken", 5, now_ns=T0)
    assert await counter.read("a", "never taken", now_ns=T0) == 0


async def test_a_counter_past_its_expiry_counts_from_zero(counter):
    end = T0 + 60 * S
    await take(counter, 100, expires=end)
    assert await take(counter, 1, expires=end, at=end - 1) == 0
    assert await counter.read("a", "k", now_ns=end - 1) == 100
    assert await counter.read("a", "k", now_ns=end) == 0
    assert await take(counter, 70, expires=end + 60 * S, at=end) == 70
    assert await counter.read("a", "k", now_ns=end + 60 * S - 1) == 70
    assert await counter.read("a", "k", now_ns=end + 60 * S) == 0


async def test_steady_traffic_does_not_push_the_expiry_away(counter):
    for second in range(60):
        await take(counter, 1, expires=T0 + (60 + second) * S, at=T0 + second * S)
    assert await counter.read("a", "k", now_ns=T0 + 60 * S) == 0


async def test_a_counter_without_expiry_stays(counter):
    await take(counter, 7)
    assert await counter.read("a", "k", now_ns=T0 + 10**8 * S) == 7


async def test_giving_to_an_expired_counter_leaves_the_next_window_alone(counter):
    await take(counter, 50, expires=T0 + S)
    await counter.give("a", "k", 20, now_ns=T0 + S)
    assert await counter.read("a", "k", now_ns=T0 + S) == 0
    assert await take(counter, 50, ceiling=60, expires=T0 + 9 * S, at=T0 + S) == 50


async def test_long_expired_counters_in_numbers_do_not_disturb_the_living(counter):
    for n in range(150):
        await take(counter, 1, key=f"old{n}", expires=T0 + S)
    await take(counter, 3, key="living", expires=T0 + 10**6 * S)
    await take(counter, 4, key="forever")
    days_later = T0 + 3 * 86_400 * S
    for n in range(3):
        assert await take(counter, 5, key=f"new{n}", expires=days_later + S, at=days_later) == 5
    assert await counter.read("a", "living", now_ns=days_later) == 3
    assert await counter.read("a", "forever", now_ns=days_later) == 4
    assert await counter.read("a", "old0", now_ns=days_later) == 0


async def test_keys_are_apart(counter):
    await take(counter, 100, key="one")
    assert await take(counter, 5, key="two") == 5
    await counter.give("a", "two", 5, now_ns=T0)
    assert await counter.read("a", "one", now_ns=T0) == 100


async def test_concurrent_takes_and_gives_never_pass_the_ceiling(crowd):
    counters = crowd(Counter, 4)

    async def work(counter, seed):
        held = 0
        for n in range(12):
            got = await take(counter, 3 + (seed + n) % 5, ceiling=50)
            held += got
            assert await counter.read("a", "k", now_ns=T0) <= 50
            if n % 4 == 3 and got:
                await counter.give("a", "k", got, now_ns=T0)
                held -= got
        return held

    held = sum(await asyncio.gather(*(work(c, seed) for seed, c in enumerate(counters * 2))))
    assert held <= 50
    assert await counters[0].read("a", "k", now_ns=T0) == held


async def test_the_first_takes_of_a_new_window_share_one_ceiling(crowd):
    counters = crowd(Counter, 4)
    await take(counters[0], 100, expires=T0 + S)
    grants = await asyncio.gather(*(take(c, 30, expires=T0 + 9 * S, at=T0 + S) for c in counters * 2))
    assert sorted(grants) == [0, 0, 0, 0, 10, 30, 30, 30]


async def test_takers_in_other_processes_share_one_ceiling(make, spawn):
    counter = make(Counter)
    await take(counter, 0)
    code = f"""
        from noria.contracts.port import Counter
        say("up")
        sys.stdin.readline()
        async def main():
            counter, held = make(Counter), 0
            while got := await counter.take("a", "k", want=7, least=1, ceiling=500, expires_ns=0, now_ns={T0}):
                held += got
            say(held)
            await counter.close()
        asyncio.run(main())
    """
    takers = [spawn(code) for _ in range(3)]
    for t in takers:
        assert t.line() == "up"
    for t in takers:
        t.tell("go")
    ends = [t.end() for t in takers]
    assert [code for _, code, _ in ends] == [0] * 3, ends
    assert sum(int(lines[0]) for lines, _, _ in ends) == 500
    assert await counter.read("a", "k", now_ns=T0) == 500


def test_any_sequence_of_calls_agrees_with_a_plain_count(engine, url):
    amounts = st.integers(0, 120)
    keys = (f"k{n}" for n in itertools.count())

    class Steps(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.runner = asyncio.Runner()
            self.counter = import_module(f"noria.engines.{engine}").ENGINE.serves[Counter](url)
            self.key, self.now = next(keys), T0
            self.count = None  # (amount, end) of the counter while it lives

        def amount(self):
            if self.count and 0 < self.count[1] <= self.now:
                self.count = None
            return self.count[0] if self.count else 0

        @rule(want=amounts, least=amounts, ceiling=amounts, lasts=st.sampled_from([0, 5, 50]))
        def take(self, want, least, ceiling, lasts):
            expires = self.now + lasts if lasts else 0
            amount, end = self.amount(), self.count[1] if self.count else expires
            grant = max(0, min(want, ceiling - amount)) if ceiling - amount >= least else 0
            call = take(self.counter, want, least=least, ceiling=ceiling, expires=expires, at=self.now, key=self.key)
            assert self.runner.run(call) == grant
            self.count = (amount + grant, end)

        @rule(given=amounts)
        def give(self, given):
            self.runner.run(self.counter.give("a", self.key, given, now_ns=self.now))
            if amount := self.amount():
                self.count = (max(0, amount - given), self.count[1])

        @rule(by=st.integers(1, 60))
        def pass_time(self, by):
            self.now += by

        @invariant()
        def agrees(self):
            assert self.runner.run(self.counter.read("a", self.key, now_ns=self.now)) == self.amount()

        def teardown(self):
            if close := getattr(self.counter, "close", None):
                self.runner.run(close())
            self.runner.close()

    limits = settings(
        max_examples=12, stateful_step_count=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(Steps, settings=limits)


async def test_tenant_b_cannot_read_spend_refill_or_infer_the_counters_of_a(counter):
    await take(counter, 90, expires=T0 + 60 * S)
    for other in ("b", "", "A", "a ", "a%", "_"):
        assert await counter.read(other, "k", now_ns=T0) == 0
        await counter.give(other, "k", 50, now_ns=T0)
        assert await take(counter, 200, tenant=other) == 100, "B has a whole ceiling of its own"
    assert await counter.read("a", "k", now_ns=T0) == 90
    assert await take(counter, 50) == 10
    # What expires and is swept of B, by a clock far ahead, is not A's counter of the same name.
    far = T0 + 10**7 * S
    await take(counter, 5, tenant="a", key="same", expires=0)
    await take(counter, 5, tenant="b", key="same", expires=T0 + S)
    assert await take(counter, 1, tenant="b", key="new", expires=far + S, at=far) == 1
    assert await counter.read("a", "same", now_ns=far) == 5
    assert await counter.read("a", "k", now_ns=T0) == 100
