"""The stopwatch around every stage."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from noria.kit.step import Stopwatch, timed


class Double:
    name = "double"

    def __call__(self, x: int) -> int:
        return 2 * x


class Late:
    name = "late"

    def __init__(self, fail: bool = False) -> None:
        self.fail = fail

    async def __call__(self, x: int) -> int:
        await asyncio.sleep(0)
        if self.fail:
            raise ValueError("late")
        return x + 1


class Failing:
    name = "failing"

    def __call__(self, x: int) -> int:
        raise ValueError("no")


async def test_stages_are_noted_in_the_order_in_which_they_ran() -> None:
    watch = Stopwatch()
    x = watch.run(Double(), 21)
    x = await watch.wait(Late(), x)
    assert x == 43
    assert [name for name, _, _ in watch.times] == ["double", "late"]
    (_, first, took), (_, second, _) = watch.times
    assert 0 <= first <= first + took <= second <= watch.elapsed()


async def test_an_absent_stage_changes_nothing_and_is_not_noted() -> None:
    watch, value = Stopwatch(), object()
    nothing: Any = None
    assert watch.run(nothing, value) is value
    assert await watch.wait(nothing, value) is value
    assert watch.times == []


async def test_a_failing_stage_is_noted_too() -> None:
    watch = Stopwatch()
    with pytest.raises(ValueError, match="no"):
        watch.run(Failing(), 1)
    with pytest.raises(ValueError, match="late"):
        await watch.wait(Late(fail=True), 1)
    assert [name for name, _, _ in watch.times] == ["failing", "late"]


def test_a_time_measured_elsewhere_is_noted_from_the_beginning() -> None:
    watch = Stopwatch(began=1000)
    watch.note("guard.out", 1500, 77)
    assert watch.times == [("guard.out", 500, 77)]
    watch.note("more", watch.began)
    assert watch.times[1][2] > 0


def test_calls_that_run_many_times_add_up() -> None:
    spent: dict[str, int] = {}

    def add(name: str, ns: int) -> None:
        spent[name] = spent.get(name, 0) + ns

    def shout(text: str) -> str:
        if not text:
            raise ValueError
        return text.upper()

    run = timed("shout", add, shout)
    assert run("a") == "A"
    once = spent["shout"]
    with pytest.raises(ValueError):
        run("")
    assert spent["shout"] > once
