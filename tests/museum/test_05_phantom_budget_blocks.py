"""Museum 5: callers refused for money that nobody spent.

A counter had drifted above what was really spent, and keys with money left were turned away (litellm#36926, #27735).

Here the recorded exchanges are the truth and counters follow them: one that is too high comes down, and what a dead worker had
set aside is free again. Whoever is refused can see why: the answer has the limit, what is used, what is reserved, and when the
window begins anew.
"""

from __future__ import annotations

import pytest
from tests.museum.test_04_budget_races import NEED, spend
from tests.unit.gateway.test_limits import Town, ask

from noria.contracts.error import LimitExceeded
from noria.contracts.exchange import Usage
from noria.contracts.release import Budget
from noria.dialects.openai_error import error_answer

POLICY = [Budget("b", "tenant", 4 * NEED)]


async def test_a_counter_that_is_too_high_is_put_right_from_the_ledger() -> None:
    town = Town()
    limits = await town.worker(budgets=POLICY)
    assert await spend(limits, ask(max_tokens=10))
    await limits.give_back()
    town.paid["budget:b|tenant@0"] = NEED
    await town.counter.take(
        "local", "budget:b|tenant@0", want=3 * NEED, least=1, ceiling=9 * NEED, expires_ns=0, now_ns=town.now
    )
    assert not await spend(limits, ask(max_tokens=10))
    town.bank.suspect("local")
    await town.bank.mend()
    town.now += 200_000_000
    assert await spend(limits, ask(max_tokens=10))


async def test_what_a_dead_worker_held_blocks_nobody() -> None:
    town = Town()
    dying = await town.worker("dying", budgets=POLICY)
    claims = []
    for _ in range(4):
        claims.append(await dying.enter(ask(max_tokens=10), []))
        await dying.reserve(claims[-1], ask(max_tokens=10))
    other = await town.worker("other", budgets=POLICY)
    assert not await spend(other, ask(max_tokens=10))
    town.alive.discard("dying")
    town.bank.ended("dying")
    await town.bank.mend()
    town.now += 200_000_000
    assert await spend(other, ask(max_tokens=10))


async def test_the_refusal_shows_limit_used_reserved_and_reset() -> None:
    town = Town()
    limits = await town.worker(budgets=[Budget("b", "tenant", NEED, "month")])
    held = await limits.enter(ask(max_tokens=10), [])
    await limits.reserve(held, ask(max_tokens=10))
    claim = await limits.enter(ask(max_tokens=10), [])
    with pytest.raises(LimitExceeded) as e:
        await limits.reserve(claim, ask(max_tokens=10))
    status, headers, body = error_answer(e.value)
    assert (status, dict(headers)["x-should-retry"]) == (429, "false")
    for part in (
        b'"limit_usd":',
        b'"used_usd":0.0',
        b'"reserved_usd":',
        b'"resets":"1970-02-01T00:00:00Z"',
        b"insufficient_quota",
    ):
        assert part in body, body
    held.settle(0, Usage())
