"""Items are asked once, whatever happens in between."""

from __future__ import annotations

import asyncio

import pytest

from noria.contracts.dataset import Row
from noria.contracts.error import Unavailable
from noria.contracts.evaluation import Scored, Suite
from noria.contracts.stage import Check
from noria.evaluate.run import GIVE_UP, Answered, run
from noria.evaluate.suite import Item, Judge
from noria.kit import extension

JUDGE = Judge(Suite("s", "d1:x"), lambda name: extension.load("checks", name, Check))
ITEMS = [Item(f"{n:02}", Row(({"role": "user", "content": str(n)},), str(n))) for n in range(12)]


class Kept:
    """A journal in memory."""

    def __init__(self) -> None:
        self.items: dict[str, Scored] = {}

    def seen(self) -> dict[str, Scored]:
        return dict(self.items)

    def append(self, scored: Scored) -> None:
        self.items[scored.row] = scored


class Model:
    """Repeats what it is asked; fails on some rows, stops for good at one."""

    def __init__(self, fails: set[str] = frozenset(), stuck_at: int = 1000) -> None:
        self.asked: list[str] = []
        self.fails = fails
        self.stuck_at = stuck_at
        self.now = self.most = 0
        self.stuck = asyncio.Event()

    async def __call__(self, item: Item) -> Answered:
        self.asked.append(item.id)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        if len(self.asked) > self.stuck_at:
            self.stuck.set()
            await asyncio.Event().wait()
        self.now -= 1
        return Answered(error="HTTP 500") if item.id in self.fails else Answered(item.row.answer, "x", 3.0, 5, "m")


async def test_every_item_is_asked_once_in_bounds_and_told() -> None:
    model, told = Model(), []
    scored, tally = await run(ITEMS, JUDGE, model, Kept(), concurrency=3, tell=lambda t, s: told.append((t.done, s.row)))
    assert [s.row for s in scored] == [i.id for i in ITEMS]
    assert sorted(model.asked) == [i.id for i in ITEMS]
    assert model.most == 3
    assert [n for n, _ in told] == list(range(1, 13))
    assert (tally.done, tally.failed, tally.cached) == (12, 0, 0)
    assert {(s.scores["exact"], s.latency_ms, s.cost_nanousd, s.served_model) for s in scored} == {(1.0, 3.0, 5, "m")}


async def test_a_run_that_was_ended_goes_on_where_it_was() -> None:
    kept, first = Kept(), Model(stuck_at=5)
    task = asyncio.create_task(run(ITEMS, JUDGE, first, kept, concurrency=2))
    await first.stuck.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    known = set(kept.items)
    assert 0 < len(known) < 12
    second = Model()
    scored, tally = await run(ITEMS, JUDGE, second, kept, concurrency=2)
    assert set(second.asked) == {i.id for i in ITEMS} - known
    assert tally.cached == len(known)
    assert len(scored) == 12


async def test_failures_count_and_are_asked_again() -> None:
    kept = Kept()
    scored, tally = await run(ITEMS, JUDGE, Model(fails={"03", "07"}), kept)
    assert tally.failed == 2
    assert [s.scores["exact"] for s in scored if s.error] == [0.0, 0.0]
    again = Model()
    scored, _ = await run(ITEMS, JUDGE, again, kept)
    assert sorted(again.asked) == ["03", "07"]
    assert all(s.scores["exact"] == 1.0 for s in scored)


async def test_where_nothing_answers_the_run_gives_up() -> None:
    many = [Item(f"{n:03}", ITEMS[0].row) for n in range(200)]
    model = Model(fails={i.id for i in many})
    with pytest.raises(Unavailable, match="HTTP 500"):
        await run(many, JUDGE, model, Kept(), concurrency=1)
    assert len(model.asked) == GIVE_UP
    late = Model(fails={i.id for i in many[1:]})
    _, tally = await run(many, JUDGE, late, Kept(), concurrency=1)
    assert (tally.done, tally.failed) == (200, 199)
