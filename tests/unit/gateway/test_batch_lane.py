"""The lane of batches: bounded, giving way, backing off."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from noria.contracts.batch import Line, LineResult
from noria.contracts.error import StoreError
from noria.gateway import batch as lane
from noria.gateway.batch import Pace, Reply, run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "LOOK", 0.001)
    monkeypatch.setattr(lane, "FIRST_HOLD", 0.001)


def lines(many: int) -> list[Line]:
    return [Line(n, f"c{n}", msgspec.Raw(b"{}")) for n in range(1, many + 1)]


class Endpoint:
    def __init__(self, *statuses: int, seconds: float = 0.001) -> None:
        self.statuses = list(statuses)
        self.seconds = seconds
        self.running = self.most = self.asked = 0

    async def ask(self, line: Line) -> Reply:
        self.asked += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        return Reply(LineResult(line.number, self.statuses.pop(0) if self.statuses else 200))


async def work(
    endpoint: Endpoint, many: int, *, busy: int = 0, most: int = 4, shared: int = 100, stop_after: int = 10**9
) -> list[LineResult]:
    took: list[LineResult] = []
    pace = Pace(most, lambda: busy, asyncio.Semaphore(shared))
    await run(lines(many), endpoint.ask, took.append, pace=pace, most=most, stopped=lambda: len(took) >= stop_after)
    return took


async def test_every_line_is_asked_once_within_the_window() -> None:
    endpoint = Endpoint()
    took = await work(endpoint, 50)
    assert sorted(r.line for r in took) == list(range(1, 51))
    assert (endpoint.asked, endpoint.most) == (50, 4)


async def test_callers_take_places_but_one_is_left() -> None:
    endpoint = Endpoint()
    await work(endpoint, 10, busy=100)
    assert endpoint.most == 1


async def test_batches_share_the_places_of_a_node() -> None:
    endpoint = Endpoint()
    await work(endpoint, 10, most=8, shared=2)
    assert endpoint.most == 2


async def test_what_is_pushed_back_is_asked_again_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noria.gateway.batch.FIRST_HOLD", 0.001)
    monkeypatch.setattr("noria.gateway.batch.LAST_HOLD", 0.01)
    endpoint = Endpoint(*[429, 503] * 10)
    took = await work(endpoint, 20)
    assert len(took) == 20
    assert all(r.status == 200 for r in took)
    assert endpoint.asked == 40


async def test_a_push_back_halves_the_window_and_holds_everybody() -> None:
    now = 0.0
    pace = Pace(8, lambda: 0, asyncio.Semaphore(8), clock=lambda: now)
    pace.push_back(5.0)
    assert pace.room == 0
    pace.push_back(5.0)  # the rest of the same window says the same thing
    now = 10.0
    assert pace.room == 4
    for _ in range(100):
        pace.answered()
    assert pace.room == 8


async def test_a_failure_by_nobodys_fault_is_tried_three_times() -> None:
    endpoint = Endpoint(500, 500, 500)
    (took,) = await work(endpoint, 1)
    assert (took.status, endpoint.asked) == (500, 3)


async def test_a_stop_finishes_what_was_begun_and_leaves_the_rest() -> None:
    endpoint = Endpoint()
    took = await work(endpoint, 100, stop_after=10)
    assert 10 <= len(took) < 20
    assert endpoint.asked == len(took)


async def test_an_error_of_the_asking_ends_everything_as_itself() -> None:
    class Broken(Endpoint):
        async def ask(self, line: Line) -> Reply:
            raise StoreError("the keeper's secret is away")

    with pytest.raises(StoreError):
        await work(Broken(), 10)
