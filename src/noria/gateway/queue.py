"""A short line before a limit: by priority, then in order of arrival; bounded, and left without trace by whoever gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

from noria.contracts.error import LimitExceeded, StoreError
from noria.contracts.exchange import Priority

RANK: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}
LOOK = 0.1
"""Seconds after which room is looked for again where nobody in this worker has left: another worker's caller may have."""


class Place(Protocol):
    """What is waited for."""

    def undo(self) -> None:
        """Give it back: nobody came to use it."""
        ...


P = TypeVar("P", bound=Place)


class Line(Generic[P]):
    """Who waits. `enter` tries to get in, for whoever is first."""

    def __init__(self, enter: Callable[[], Awaitable[P | None]], *, size: int) -> None:
        self._enter = enter
        self._size = size
        self._heap: list[tuple[int, int, asyncio.Future[P]]] = []
        self._order = count()
        self._freed = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return sum(not f.done() for _, _, f in self._heap)

    def freed(self) -> None:
        """Somebody has left: the first may try again."""
        if self._heap:
            self._freed.set()

    async def wait(self, priority: Priority, within: float) -> P | None:
        """One's place, where one's turn came within so many seconds. Cancelling leaves the line. Raises `LimitExceeded` where it
        is full, `StoreError` where the limit cannot be asked.
        """
        if len(self) >= self._size:
            raise LimitExceeded("too many wait already", code="queue_full")
        turn: asyncio.Future[P] = asyncio.get_running_loop().create_future()
        heappush(self._heap, (RANK[priority], next(self._order), turn))
        if self._pump is None:
            self._pump = asyncio.ensure_future(self._serve())
        try:
            async with asyncio.timeout(within):
                return await asyncio.shield(turn)
        except TimeoutError:
            return turn.result() if self._came(turn) else None  # at the last moment, perhaps
        except asyncio.CancelledError:
            if self._came(turn):
                turn.result().undo()
            raise
        finally:
            turn.cancel()

    @staticmethod
    def _came(turn: asyncio.Future[P]) -> bool:
        return turn.done() and not turn.cancelled() and turn.exception() is None

    async def _serve(self) -> None:
        try:
            while self._first() is not None:
                self._freed.clear()
                try:
                    place = await self._enter()
                except StoreError as e:
                    if (turn := self._first()) is not None:
                        turn.set_exception(e)
                    continue
                if place is None:
                    try:
                        await asyncio.wait_for(self._freed.wait(), LOOK)
                    except TimeoutError:
                        continue
                elif (turn := self._first()) is None:
                    place.undo()
                else:
                    turn.set_result(place)
        finally:
            self._pump = None

    def _first(self) -> asyncio.Future[P] | None:
        """The first that still waits."""
        while self._heap and self._heap[0][2].done():
            heappop(self._heap)
        return self._heap[0][2] if self._heap else None
