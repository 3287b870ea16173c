"""Museum 6: a limit that each copy of the gateway counts for itself.

With three copies, three times the tokens (litellm#40291) or the money (bifrost#3547) went through.

Here workers lease slices of one counter. Together they never pass the limit; what they may fall short of it is at most the slices
that the other workers hold unused. These are three workers whose calls interleave at random; `tests/service/test_money_proof.py`
does it with processes.
"""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.gateway.test_limits import Town, ask

from noria.contracts.error import LimitExceeded
from noria.contracts.exchange import Usage
from noria.contracts.release import Limit

WORKERS = 3


@pytest.mark.parametrize("seed", range(5))
async def test_three_workers_share_requests_and_tokens_a_minute(seed: int) -> None:
    town = Town(seed, turns=4)
    policy = [Limit("l", "tenant", requests_per_minute=40, tokens_per_minute=60_000)]
    team = [await town.worker(f"w{i}", workers=WORKERS, limits=policy) for i in range(WORKERS)]
    tokens = 0

    async def one(i: int) -> bool:
        nonlocal tokens
        x = ask(max_tokens=1000)
        try:
            claim = await team[i % WORKERS].enter(x, [])
            await team[i % WORKERS].reserve(claim, x)
        except LimitExceeded:
            return False
        tokens += claim.bound.estimate
        claim.settle(None, Usage(claim.bound.estimate - 1000, 1000))
        return True

    results = await asyncio.gather(*(one(i) for i in range(200)))
    slice_ = 40 // (8 * WORKERS)
    assert 40 - (WORKERS - 1) * max(1, slice_) <= sum(results) <= 40
    assert tokens <= 60_000


async def test_concurrency_is_one_number_for_all_workers() -> None:
    town = Town()
    policy = [Limit("l", "tenant", concurrent=2)]
    team = [await town.worker(f"w{i}", workers=WORKERS, limits=policy) for i in range(WORKERS)]
    inside = [await team[0].enter(ask(), []), await team[1].enter(ask(), [])]
    with pytest.raises(LimitExceeded):
        await team[2].enter(ask(), [])
    inside[0].settle(0, Usage())
    for _ in range(3):
        town.now += 1_000_000_000
        await team[0].tick()
    await team[2].enter(ask(), [])
