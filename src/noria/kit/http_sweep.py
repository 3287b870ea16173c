"""One timer for many deadlines: connections hold a number, a sweep compares them all now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Sweep:
    """Calls `check(now)` every `interval` seconds for as long as it answers True; `start` sets it off again.

    A timer for each request costs two heap operations a request; comparing a few thousand floats once a
    second costs nothing that can be measured. Deadlines are late by at most one interval.
    """

    __slots__ = ("_check", "_interval", "_loop", "_timer")

    def __init__(self, interval: float, check: Callable[[float], bool]) -> None:
        self._interval = min(max(interval, 0.005), 1.0)
        self._check = check
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin sweeping on `loop`, unless it runs already."""
        if self._timer is None:
            self._loop = loop
            self._timer = loop.call_later(self._interval, self._tick)

    def stop(self) -> None:
        """No further checks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        loop, self._timer = self._loop, None
        if loop is not None and self._check(loop.time()):
            self.start(loop)
