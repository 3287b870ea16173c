"""Museum 4: requests that run at the same time spend the same money twice.

Gateways looked at a counter, called the model and added the cost afterwards, so whoever came in between was let through as
well (litellm#34732); others did not hold the first request of a caller whom they had never seen (litellm#40095).

Here money is set aside before the call. Of sixty requests at once, on one worker or on three, exactly as many pass as the budget
pays for; a new key is held from its first request on; an exchange is paid from the window in which it began.
`tests/service/test_money_proof.py` shows the same for random interleavings and for processes that are killed in between.
"""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.gateway.test_limits import Town, ask

from noria.contracts.error import LimitExceeded
from noria.contracts.exchange import Usage
from noria.contracts.release import Budget, Key

NEED = sum(len(v) for v in ask(max_tokens=10).body.values()) * 1000 + 10 * 2000


async def spend(limits, x) -> bool:
    claim = await limits.enter(x, [])
    try:
        await limits.reserve(claim, x)
    except LimitExceeded:
        return False
    await asyncio.sleep(0)
    claim.settle(None, Usage())
    return True


@pytest.mark.parametrize("workers", [1, 3])
async def test_parallel_requests_do_not_overspend(workers: int) -> None:
    town = Town(seed=workers, turns=5)
    policy = [Budget("b", "tenant", 7 * NEED)]
    team = [await town.worker(f"w{i}", workers=workers, budgets=policy) for i in range(workers)]
    results = await asyncio.gather(*(spend(team[i % workers], ask(max_tokens=10)) for i in range(60)))
    assert sum(results) == 7


async def test_the_first_request_of_a_key_never_seen_is_held_too() -> None:
    limits = await Town().worker()
    key = Key("fresh", "h", budget_nanousd=NEED - 1)
    assert not await spend(limits, ask(key, max_tokens=10))


async def test_a_window_whose_end_passes_during_an_exchange_is_paid_by_the_exchange_that_began_in_it() -> None:
    town = Town()
    day = 86_400_000_000_000
    town.now = 100 * day - 1
    limits = await town.worker(budgets=[Budget("b", "tenant", NEED, "day")])
    old = ask(max_tokens=10, at=town.now)
    claim = await limits.enter(old, [])
    await limits.reserve(claim, old)
    town.now += 2
    assert await spend(limits, ask(max_tokens=10, at=town.now)), "the new day has its own money"
    claim.settle(None, Usage())
    assert not await spend(limits, ask(max_tokens=10, at=town.now))
