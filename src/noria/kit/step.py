"""The wrapper around every stage: it times, so that stages contain no telemetry.

A `Stopwatch` belongs to one exchange. `run(stage, x)` calls the stage and notes its name, its start and
its duration in nanoseconds; an absent stage (None) costs one comparison.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter_ns
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Named(Protocol):
    """Anything with a `name`."""

    name: str


class Step(Named, Protocol[T]):
    """A synchronous stage."""

    def __call__(self, x: T, /) -> T:
        """The value as this stage leaves it."""
        ...


class Wait(Named, Protocol[T]):
    """An asynchronous stage."""

    def __call__(self, x: T, /) -> Awaitable[T]:
        """The value as this stage leaves it."""
        ...


class Stopwatch:
    """Times of the stages of one exchange: (name, start after the beginning, duration), in ns."""

    __slots__ = ("began", "times")

    def __init__(self, began: int | None = None) -> None:
        self.began = perf_counter_ns() if began is None else began
        self.times: list[tuple[str, int, int]] = []

    def run(self, stage: Step[T] | None, x: T) -> T:
        """`stage(x)`, timed; `x` itself where there is no such stage. A failing stage is timed too."""
        if stage is None:
            return x
        start = perf_counter_ns()
        try:
            return stage(x)
        finally:
            self.times.append((stage.name, start - self.began, perf_counter_ns() - start))

    async def wait(self, stage: Wait[T] | None, x: T) -> T:
        """As `run`, for a stage that waits."""
        if stage is None:
            return x
        start = perf_counter_ns()
        try:
            return await stage(x)
        finally:
            self.times.append((stage.name, start - self.began, perf_counter_ns() - start))

    def note(self, name: str, start: int, took: int | None = None) -> None:
        """Add a time measured elsewhere; `start` is a `perf_counter_ns` reading."""
        self.times.append((name, start - self.began, perf_counter_ns() - start if took is None else took))

    def elapsed(self) -> int:
        """Nanoseconds since the beginning."""
        return perf_counter_ns() - self.began


def timed(name: str, add: Callable[[str, int], None], call: Callable[..., T]) -> Callable[..., T]:
    """`call`, whose accumulated time goes to `add(name, ns)`: for what runs many times in one exchange."""

    def run(*args: Any) -> T:
        start = perf_counter_ns()
        try:
            return call(*args)
        finally:
            add(name, perf_counter_ns() - start)

    return run
