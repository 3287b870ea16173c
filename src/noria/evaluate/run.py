"""Ask every item of a suite once. What was answered is in the journal before it counts: a run that was killed asks only what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from noria.contracts.error import Unavailable
from noria.contracts.evaluation import Scored
from noria.evaluate.suite import Item, Judge

GIVE_UP = 20
"""Failures, with nothing answered before them, after which nobody is asked any more."""


class Answered(msgspec.Struct, frozen=True):
    """What came of one request. `error` is empty where it succeeded."""

    text: str = ""
    exchange: str = ""
    latency_ms: float = 0.0
    cost_nanousd: int | None = None
    served_model: str = ""
    error: str = ""


class Tally(msgspec.Struct):
    """How far a run has come."""

    total: int
    done: int = 0
    cached: int = 0
    failed: int = 0


class Journal(Protocol):
    """Scored items of one suite and release, by row id; survives kill -9."""

    def seen(self) -> dict[str, Scored]:
        """What was answered before."""
        ...

    def append(self, scored: Scored) -> None:
        """Keep one, whole or not at all. Raises `OSError`."""
        ...


Ask = Callable[[Item], Awaitable[Answered]]
Tell = Callable[[Tally, Scored], None]


def unheard(tally: Tally, scored: Scored) -> None:
    """Nobody listens."""


async def run(
    items: Sequence[Item], judge: Judge, ask: Ask, journal: Journal, *, concurrency: int = 4, tell: Tell = unheard
) -> tuple[list[Scored], Tally]:
    """Every item, scored, in their order; at most `concurrency` are under way at once.

    A failed request scores 0, counts as an error and is asked again by the next run. Cancelling leaves what is answered in the
    journal. Raises `Unavailable` where nothing answers at all.
    """
    seen = journal.seen()
    found = {item.id: seen[item.id] for item in items if item.id in seen}
    tally = Tally(len(items), done=len(found), cached=len(found))
    left = iter([item for item in items if item.id not in found])

    async def work() -> None:
        for item in left:  # shared by all workers: each takes the next
            scored = _scored(judge, item, await ask(item))
            if not scored.error:
                await asyncio.to_thread(journal.append, scored)
            found[item.id] = scored
            tally.done += 1
            tally.failed += bool(scored.error)
            tell(tally, scored)
            if tally.failed >= GIVE_UP and tally.failed == tally.done:
                raise Unavailable(
                    f"The first {tally.failed} requests all failed: {scored.error}", code="nothing_answers",
                    hint="Look at the release's model, then run the evaluation again.",
                )  # fmt: skip

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, concurrency)):
                group.create_task(work())
    except ExceptionGroup as e:  # one failure ends them all: it is what callers know how to take
        raise e.exceptions[0] from None
    return [found[item.id] for item in items], tally


def _scored(judge: Judge, item: Item, answer: Answered) -> Scored:
    scored = judge.failed(item, answer.error) if answer.error else judge.score(item, answer.text)
    return replace(
        scored,
        exchange=answer.exchange,
        latency_ms=answer.latency_ms,
        cost_nanousd=answer.cost_nanousd,
        served_model=answer.served_model,
    )
