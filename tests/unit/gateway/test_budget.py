"""Money: set aside under every budget or none, paid once, never passed, and nothing of it lost."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.gateway.test_limits import Town, ask

from noria.contracts.error import LimitExceeded, Unavailable
from noria.contracts.exchange import Usage
from noria.contracts.release import Budget, Key, Snapshot
from noria.gateway.budget import Open, orphan_row
from noria.gateway.limits import Limits
from noria.kit import slots

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
X = ask(max_tokens=10)
NEED = sum(len(v) for v in X.body.values()) * 1000 + 10 * 2000


def budget(nanousd: int, scope: str = "tenant", **more) -> Budget:
    return Budget(more.pop("id", scope), scope, nanousd, **more)


async def reserve(limits: Limits, x=X):
    claim = await limits.enter(x, [])
    await limits.reserve(claim, x)
    return claim


async def total(town: Town, name: str = "tenant@0") -> int:
    return await town.counter.read("local", f"budget:{name}", now_ns=town.now)


async def test_an_exchange_reserves_the_most_that_it_can_cost_and_pays_what_it_did() -> None:
    town = Town()
    limits = await town.worker(budgets=[budget(10 * NEED)])
    claim = await reserve(limits)
    assert claim.amount == NEED
    claim.settle(700, Usage(1, 1))
    claim.settle(9_999, Usage(1, 1))
    await limits.give_back()
    assert await total(town) == 700


async def test_an_unknown_cost_pays_the_whole_reservation() -> None:
    town = Town()
    limits = await town.worker(budgets=[budget(10 * NEED)])
    (await reserve(limits)).settle(None, Usage())
    await limits.give_back()
    assert await total(town) == NEED


async def test_every_budget_pays_or_none_does() -> None:
    town = Town()
    limits = await town.worker(budgets=[budget(10 * NEED), budget(10 * NEED, "app:a"), budget(NEED - 1, "tag:env=prod")])
    with pytest.raises(LimitExceeded, match="tag:env=prod"):
        await reserve(limits, ask(max_tokens=10, tags={"env": "prod"}))
    await limits.give_back()
    assert [await total(town, n) for n in ("tenant@0", "app:a@0", "tag:env=prod@0")] == [0, 0, 0]
    (await reserve(limits)).settle(5, Usage(1, 1))
    await limits.give_back()
    assert [await total(town, n) for n in ("tenant@0", "app:a@0", "tag:env=prod@0")] == [5, 5, 0]


async def test_a_keys_own_budget_needs_no_configuration() -> None:
    town = Town()
    limits = await town.worker()
    key = Key("k", "h", budget_nanousd=NEED)
    (await reserve(limits, ask(key, max_tokens=10))).settle(None, Usage())
    with pytest.raises(LimitExceeded, match="this key") as e:
        await reserve(limits, ask(key, max_tokens=10))
    assert e.value.code == "insufficient_quota"
    await reserve(limits, ask(Key("k", "h", budget_nanousd=3 * NEED), max_tokens=10))


async def test_a_refusal_says_limit_used_reserved_and_when_it_begins_anew() -> None:
    town = Town()
    town.now = 1_774_742_400_000_000_000  # 2026-03-29 00:00 UTC: the clocks go forward in Berlin at 01:00
    limits = await town.worker(budgets=[budget(2 * NEED, window="day", zone="Europe/Berlin")])
    x = ask(max_tokens=10, at=town.now)
    (await reserve(limits, x)).settle(NEED, Usage())
    await reserve(limits, x)
    with pytest.raises(LimitExceeded) as e:
        await reserve(limits, x)
    details = e.value.details
    assert (details["limit_usd"], details["needed_usd"]) == (2 * NEED / 1e9, NEED / 1e9)
    assert details["used_usd"] + details["reserved_usd"] == pytest.approx(2 * NEED / 1e9)
    assert details["resets"] == "2026-03-29T22:00:00Z"
    assert "2026-03-29T22:00:00Z" in e.value.text


async def test_a_new_window_begins_with_nothing_spent() -> None:
    town = Town()
    day = 86_400_000_000_000
    town.now = 100 * day
    limits = await town.worker(budgets=[budget(NEED, window="day")])
    (await reserve(limits, ask(max_tokens=10, at=town.now))).settle(None, Usage())
    with pytest.raises(LimitExceeded):
        await reserve(limits, ask(max_tokens=10, at=town.now))
    town.now += day
    await reserve(limits, ask(max_tokens=10, at=town.now))


async def test_what_was_spent_before_a_budget_was_there_counts_in_its_window() -> None:
    town = Town()
    town.paid["budget:tenant@0"] = 2 * NEED
    limits = await town.worker(budgets=[budget(3 * NEED)])
    await reserve(limits)
    with pytest.raises(LimitExceeded):
        await reserve(limits)


async def test_an_unknown_price_is_not_free() -> None:
    limits = await Town().worker(budgets=[budget(10**15)])
    with pytest.raises(LimitExceeded) as e:
        await reserve(limits, ask(price=None, max_tokens=1))
    assert (e.value.code, e.value.lasting) == ("price_unknown", True)


async def test_money_is_never_spent_unchecked() -> None:
    town = Town()
    limits = await town.worker(budgets=[budget(10**15)])
    town.away = True
    with pytest.raises(Unavailable) as e:
        await reserve(limits)
    assert (e.value.status, e.value.code) == (503, "budget_unavailable")


async def test_a_lost_answer_of_the_keeper_is_found_and_taken_back() -> None:
    town = Town()
    limits = await town.worker(budgets=[budget(10 * NEED)])
    leases = limits.slices._leases
    real = leases.take

    async def lost(want):
        await real(want)
        town.away = True
        await leases._pause()

    leases.take = lost
    with pytest.raises(Unavailable):
        await reserve(limits)
    assert await total(town) == NEED
    leases.take, town.away = real, False
    await limits.tick()
    assert await total(town) == 0


async def test_an_idle_slice_goes_back_within_seconds() -> None:
    town = Town()
    limits = await town.worker(budgets=[budget(1000 * NEED)])
    for _ in range(20):
        (await reserve(limits)).settle(0, Usage(0, 0))
    for _ in range(4):
        town.now += 1_000_000_000
        await limits.tick()
    assert await total(town) == 0


async def test_a_killed_worker_leaves_an_orphan_that_is_charged_what_was_reserved(tmp_path) -> None:
    town = Town()
    made = await town.worker(budgets=[budget(10 * NEED)])
    kept = slots.Slots(tmp_path, "w0", 7)
    made.budgets._journal = kept
    done = await reserve(made)
    await reserve(made, ask(Key("k", "h", org="acme"), max_tokens=10, tags={"env": "prod"}))
    done.settle(3, Usage(1, 1))
    (left,) = slots.every(tmp_path)
    assert left.alive
    assert left.holder == "w0.7"
    kept.close(keep=True)
    (left,) = slots.every(tmp_path)
    assert not left.alive
    (row,) = [orphan_row(p, left.name) for p in slots.payloads(left.path)]
    assert (row.cost_nanousd, row.cost_status, row.error_code) == (NEED, "estimated", "orphaned")
    assert (row.key, row.org, row.tags, row.worker) == ("k", "acme", {"env": "prod"}, "w0")
    assert orphan_row(b"nonsense", "w0") is None
    assert Open.__struct_fields__[-1] == "nanousd"


@PROPERTY
@given(
    ceiling=st.integers(0, 12),
    costs=st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=25),
    workers=st.integers(1, 3),
    leavers=st.sets(st.integers(0, 24)),
    dies=st.integers(-1, 2),
    seed=st.integers(0, 99),
)
def test_no_interleaving_passes_a_budget_and_every_nano_dollar_is_accounted_for(
    ceiling, costs, workers, leavers, dies, seed
) -> None:
    """Workers share a budget, callers leave, one worker dies with all it holds: what remains is what was paid."""
    name = "budget:tenant@0"

    async def one(town: Town, limits: Limits, share: float | None, pause: int) -> None:
        claim = await limits.enter(X, [])
        cost: int | None = 0
        try:
            await limits.reserve(claim, X)
            cost = None if share is None else int(NEED * share)
            for _ in range(pause):
                await asyncio.sleep(0)
        finally:
            if claim.amount is not None:
                town.paid[name] = town.paid.get(name, 0) + (NEED if cost is None else cost)  # the row comes first
            claim.settle(cost, Usage(1, 1))

    async def run() -> None:
        town = Town(seed, turns=3)
        pace = random.Random(seed)
        policy = [budget(ceiling * NEED)]
        team = [await town.worker(f"w{i}", workers=workers, budgets=policy) for i in range(workers)]
        tasks = [asyncio.create_task(one(town, team[i % workers], c, pace.randint(0, 4))) for i, c in enumerate(costs)]
        for turn in range(12):
            await asyncio.sleep(0)
            assert await total(town) <= ceiling * NEED
            for i in leavers:
                if i < len(tasks) and i % 12 == turn:
                    tasks[i].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(r is None or isinstance(r, LimitExceeded | asyncio.CancelledError) for r in results), results
        for _ in range(30):
            await asyncio.sleep(0)
        for i, limits in enumerate(team):
            if i == dies:
                town.alive.discard(f"w{i}")
                town.bank.ended(f"w{i}")
            else:
                await limits.give_back()
        town.bank.suspect("local")
        await town.bank.mend()
        assert await total(town) == town.paid.get(name, 0) <= ceiling * NEED

    asyncio.run(run())


async def test_the_governance_of_a_request_asks_nobody_and_starts_no_task() -> None:
    town = Town()
    limits = await town.worker(budgets=[budget(10**15)])
    for _ in range(3):
        (await reserve(limits)).settle(1, Usage(1, 1))
        await limits.tick()
    for _ in range(2000):
        (await reserve(limits)).settle(1, Usage(1, 1))
    await limits.tick()
    (await reserve(limits)).settle(1, Usage(1, 1))
    town.takes = 0
    tasks = len(asyncio.all_tasks())
    for _ in range(200):
        (await reserve(limits)).settle(1, Usage(1, 1))
    assert town.takes <= 2
    assert len(asyncio.all_tasks()) <= tasks + 1
    limits.adopt(Snapshot("c1:z", "local", 3, {}, {}))
    assert await limits.enter(X, []) is None


# -- more than was set aside ----------------------------------------------------------------------------------


async def overdrawn(town: Town, limits: Limits, cost: int) -> None:
    """An exchange that cost more than was set aside for it, its row in the ledger."""
    claim = await reserve(limits)
    town.paid["budget:tenant@0"] = town.paid.get("budget:tenant@0", 0) + cost
    claim.settle(cost, Usage(1, 1))


@pytest.mark.parametrize("told", [False, True])
async def test_what_was_paid_beyond_the_reservation_is_counted_once(told: bool) -> None:
    """The bank looks at the ledger before the worker leases what it has overdrawn: `told` or not, it must not count it as well."""
    town = Town()
    limits = await town.worker(budgets=[budget(100 * NEED)])
    await overdrawn(town, limits, 3 * NEED)
    if told:
        await limits.slices.tell()
    town.bank.suspect("local")
    await town.bank.mend()
    for _ in range(3):
        town.now += 2_000_000_000
        await limits.tick()
        await asyncio.sleep(0)
        await town.bank.mend()
    await limits.give_back()
    assert await total(town) == 3 * NEED


async def test_a_counter_that_is_too_low_rises_once_every_worker_has_told() -> None:
    """What the keeper itself spent, or a counter from a backup: found by what the ledger said before the workers spoke last."""
    town = Town()
    limits = await town.worker(budgets=[budget(100 * NEED)])
    (await reserve(limits)).settle(NEED, Usage(1, 1))
    town.paid["budget:tenant@0"] = 5 * NEED  # four of them by nobody that leases
    await limits.give_back()
    await town.bank.mend()
    assert await total(town) == NEED
    town.now += 3_000_000_000
    await town.bank.mend()
    assert await total(town) == 5 * NEED


async def test_what_a_worker_had_overdrawn_when_it_died_is_not_forgotten() -> None:
    town = Town()
    policy = [budget(100 * NEED)]
    dying, other = await town.worker("w0", budgets=policy), await town.worker("w1", budgets=policy)
    (await reserve(other)).settle(0, Usage(0, 0))
    await overdrawn(town, dying, 7 * NEED)
    await town.bank.mend()
    town.alive.discard("w0")
    town.bank.ended("w0")
    for _ in range(2):
        await town.bank.mend()
        town.now += 3_000_000_000
        await other.tick()
    await other.give_back()
    assert await total(town) == 7 * NEED
