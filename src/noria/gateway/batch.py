"""The low-priority lane of batches: a bounded window over lines, which shrinks where it is pushed back.

Growth and back-off are those of TCP (additive increase, multiplicative decrease: Chiu & Jain 1989): a 429 or 503 halves
the window and holds everybody for as long as `Retry-After` says. While callers are being served, each takes one place
of the window, down to one: a batch is slowed, never starved.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec

from noria.contracts.batch import Line, LineResult

FIRST_HOLD, LAST_HOLD = 0.25, 30.0
"""Seconds of back-off where no `Retry-After` came, doubled with each push-back in a row."""
LONGEST_HOLD = 120.0
"""Seconds that a `Retry-After` is obeyed at most before the next look."""
LOOK = 0.1
"""Seconds between looks whether there is room again, or the batch has been ended."""
MOST_TRIES = 3
"""Attempts of a line that fails by no fault of its own (5xx)."""
PUSHED_BACK = (429, 503)
WORTH_ANOTHER = (408, 409, 500, 502, 504)


class Reply(msgspec.Struct, frozen=True):
    """What came of asking one line. `final`: our own word that no retry can mend it (`x-should-retry: false`)."""

    result: LineResult
    retry_after: float | None = None
    final: bool = False


Ask = Callable[[Line], Awaitable[Reply]]
Take = Callable[[LineResult], None]


class Pace:
    """How many lines of one batch may be in flight. `busy` counts callers being served now, `shared` has a place for each
    line that all batches of the node may have in flight.
    """

    def __init__(
        self, most: int, busy: Callable[[], int], shared: asyncio.Semaphore, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._busy = busy
        self._shared = shared
        self._clock = clock
        self._size = float(most)
        self._hold_until = 0.0
        self._pushes = 0
        self.running = 0
        self.pushed_back = 0
        """429 and 503 in all."""
        self.given_way = 0
        """Looks that found no room for callers' sake."""

    @property
    def room(self) -> int:
        """Lines that may be in flight now."""
        if self._clock() < self._hold_until:
            return 0
        return max(1, int(self._size) - self._busy())

    @asynccontextmanager
    async def slot(self, stopped: Callable[[], bool]) -> AsyncIterator[bool]:
        """A place in the window; False where the batch ended before there was one."""
        while self.running >= self.room and not stopped():
            if self._busy() and self.running >= 1:
                self.given_way += 1
            await asyncio.sleep(LOOK)
        if stopped():
            yield False
            return
        self.running += 1
        try:
            async with self._shared:
                yield not stopped()
        finally:
            self.running -= 1

    def push_back(self, retry_after: float | None) -> None:
        """An endpoint, or a limit, wants less."""
        self.pushed_back += 1
        now = self._clock()
        if now < self._hold_until:  # several lines of one window are told the same thing
            return
        self._pushes += 1
        self._size = max(1.0, self._size / 2)
        wait = min(FIRST_HOLD * 2.0 ** (self._pushes - 1), LAST_HOLD) if retry_after is None else min(retry_after, LONGEST_HOLD)
        self._hold_until = now + wait * random.uniform(1.0, 1.1)  # noqa: S311  spread, not secrecy

    def answered(self) -> None:
        """A line came through."""
        self._pushes = 0
        self._size = min(float(self._most), self._size + 1.0 / self._size)


async def run(lines: Sequence[Line], ask: Ask, take: Take, *, pace: Pace, most: int, stopped: Callable[[], bool]) -> None:
    """Ask every line once, at most `most` at a time; each result goes to `take`. Lines begun when `stopped` are finished,
    the others are left. Cancelling ends at once; what `ask` raises ends everything.
    """
    places = asyncio.Semaphore(most)
    try:
        async with asyncio.TaskGroup() as group:
            for line in lines:
                await places.acquire()
                if stopped():
                    break
                task = group.create_task(_one(line, ask, take, pace=pace, stopped=stopped))
                task.add_done_callback(lambda _: places.release())
    except ExceptionGroup as e:  # one failure ends them all: it is what callers know how to take
        raise e.exceptions[0] from None


async def _one(line: Line, ask: Ask, take: Take, *, pace: Pace, stopped: Callable[[], bool]) -> None:
    tries = 0
    while True:
        async with pace.slot(stopped) as mine:
            if not mine:
                return
            reply = await ask(line)
        status = reply.result.status
        if status in PUSHED_BACK and not reply.final:
            pace.push_back(reply.retry_after)
            continue
        if status in WORTH_ANOTHER and not reply.final and tries + 1 < MOST_TRIES:
            tries += 1
            await asyncio.sleep(FIRST_HOLD * 2**tries)
            continue
        pace.answered()
        take(reply.result)
        return
