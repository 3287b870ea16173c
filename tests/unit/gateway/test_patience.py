"""The wait for the first content of a stream."""

from __future__ import annotations

import asyncio
from time import perf_counter_ns
from types import SimpleNamespace

import pytest

from noria.gateway.patience import Patience


async def attempt(patience: Patience, gate: SimpleNamespace, seconds: float) -> str:
    wait = patience.begin(gate, perf_counter_ns())
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if not wait.absorb():
            raise
        return "expired"
    finally:
        patience.waits.discard(wait)
    return "done"


async def test_what_has_no_content_in_time_is_given_up_and_the_task_lives_on() -> None:
    patience, gate = Patience(0.08), SimpleNamespace(committed=False)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await attempt(patience, gate, 5) == "expired"
    assert 0.07 < loop.time() - began < 0.5
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert await attempt(patience, gate, 0) == "done"


async def test_what_has_content_may_take_its_time() -> None:
    patience, gate = Patience(0.04), SimpleNamespace(committed=False)
    asyncio.get_running_loop().call_later(0.01, setattr, gate, "committed", True)
    assert await attempt(patience, gate, 0.2) == "done"


async def test_a_caller_who_leaves_is_not_taken_for_a_late_endpoint() -> None:
    patience, gate = Patience(0.05), SimpleNamespace(committed=False)
    task = asyncio.ensure_future(attempt(patience, gate, 5))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    both = asyncio.ensure_future(attempt(patience, gate, 5))
    await asyncio.sleep(0)
    wait = next(iter(patience.waits))
    wait.expired = True
    both.cancel()  # the endpoint is late,
    both.cancel()  # and the caller leaves
    with pytest.raises(asyncio.CancelledError):
        await both


async def test_no_timer_runs_while_nobody_waits() -> None:
    patience, gate = Patience(0.04), SimpleNamespace(committed=False)
    assert await attempt(patience, gate, 0) == "done"
    await asyncio.sleep(0.05)
    assert patience._sweep._timer is None
