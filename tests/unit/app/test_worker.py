"""A worker's rows and the money of their exchanges: nothing is paid that the spool does not know of."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.unit.gateway.test_budget import NEED, X, budget
from tests.unit.observe.test_metrics import ROW

from noria.app.worker import Worker
from noria.contracts.error import StoreError
from noria.contracts.release import Limit, Snapshot
from noria.gateway.lease import Grant, Want
from noria.kit import slots
from noria.kit.spool import SpoolReader


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    made = Worker(tmp_path, 0)

    async def granted(want: Want) -> Grant:
        return Grant(want.want, want.ceiling)

    monkeypatch.setattr(made.link, "take", granted)
    made.limits.adopt(Snapshot("c1:x", "local", 1, {}, {}, budgets=(budget(10**12),)))
    yield made
    made.spool.close()
    made.open.close()
    made.journal.close()


def under_way(worker: Worker) -> int:
    """Reservations that the keeper would charge if the worker died now."""
    (left,) = slots.every(worker.home / "inflight")
    return len(list(slots.payloads(left.path)))


def recorded(worker: Worker) -> int:
    """Rows in the page cache."""
    reader = SpoolReader(worker.home / "spool")
    return sum(len(reader.read(replace(reader.tail(s), segment=0, offset=0))[0]) for s in reader.spools())


async def claimed(worker: Worker) -> Any:
    claim = await worker.limits.enter(X, [])
    await worker.limits.reserve(claim, X)
    return claim


async def test_a_whole_answers_money_is_paid_once_its_row_is_in_the_spool(worker: Worker) -> None:
    """Between the two, whoever finds the worker dead must find its reservation, and a report must not say that it is paid."""
    (slice_,) = [*await opened(worker)]
    claim = await claimed(worker)
    worker._record(replace(ROW, stream=False, cost_nanousd=700), claim)
    assert (recorded(worker), under_way(worker), slice_.paid) == (0, 1, 0)
    await asyncio.sleep(0)
    assert (recorded(worker), under_way(worker), slice_.paid) == (1, 0, 700)


async def test_a_streams_row_and_money_are_settled_at_once_with_those_that_wait(worker: Worker) -> None:
    (slice_,) = [*await opened(worker)]
    first, second = await claimed(worker), await claimed(worker)
    worker._record(replace(ROW, id="a", stream=False, cost_nanousd=700), first)
    worker._record(replace(ROW, id="b", stream=True, cost_nanousd=None), second)
    assert (recorded(worker), under_way(worker), slice_.paid) == (2, 0, 700 + NEED)
    worker._record(replace(ROW, id="c", stream=True), None)
    assert recorded(worker) == 3


async def test_the_row_comes_first_even_within_the_turn(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    extend = worker.spool.extend

    def looked(payloads: Any) -> int:
        seen.append(under_way(worker))
        return extend(payloads)

    monkeypatch.setattr(worker.spool, "extend", looked)
    worker._record(replace(ROW, stream=True), await claimed(worker))
    assert (seen, under_way(worker)) == ([1], 0)


async def test_what_was_let_through_unchecked_says_so_in_its_trace(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(want: Want) -> Grant:
        raise StoreError("The keeper is away.", code="keeper_away")

    monkeypatch.setattr(worker.link, "take", away)
    limit = Limit("every app", "tenant", requests_per_minute=1, tokens_per_minute=10_000)
    worker._adopt(Snapshot("c1:y", "local", 1, {}, {}, limits=(limit,)))
    assert worker.house is not None
    claim = await worker.limits.enter(X, [])
    await worker.limits.reserve(claim, X)
    row = worker.house.close(X, worker.house.open(X), claim)
    assert row.warnings == ("The rate limit 'every app' was not checked: the keeper did not answer.",)
    assert worker.limits.unchecked == 1


async def opened(worker: Worker) -> Any:
    """The worker's slices, once one has been drawn from."""
    (await claimed(worker)).settle(0, ROW.usage)
    return worker.limits.slices
