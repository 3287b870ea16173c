"""Hedging: where the first endpoint is late, a second is asked too, and whoever brings content first answers.

It buys tail latency with money (Dean and Barroso, "The tail at scale", 2013): both attempts are accounted for, the
second counts against the retry budget, and only calls without side effects are hedged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from noria.contracts.error import NoriaError
from noria.contracts.exchange import Dialect, ModelCall, ModelReply
from noria.dialects.openai_stream import is_content
from noria.dialects.sse import FrameSplitter, event_of


class Gate(Protocol):
    """Where the answer goes in the end."""

    committed: bool

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream."""
        ...


class Lane:
    """The gate of one attempt of a race: holds its stream back until it has content, and the race is won."""

    __slots__ = ("_dialect", "_held", "_race", "_splitter", "lost", "task")

    def __init__(self, race: Race, dialect: Dialect) -> None:
        self._race = race
        self._dialect = dialect
        self.task: asyncio.Task[ModelReply] | None = None
        self.lost = False
        self._held: list[bytes] = []
        self._splitter = FrameSplitter()

    @property
    def committed(self) -> bool:
        """Whether content of this attempt has left for the caller."""
        return self._race.winner is self and self._race.gate.committed

    def feed(self, data: bytes) -> None:
        """The next bytes of this attempt's stream. Those of a loser are dropped."""
        if self._race.winner is self:
            self._race.gate.feed(data)
        elif not self.lost:
            self._held.append(data)
            if any(begins(frame, self._dialect) for frame in self._splitter.feed(data)):
                self._race.won_by(self)
                held, self._held = self._held, []
                self._race.gate.feed(b"".join(held))

    def restart(self) -> None:
        """Forget what has come."""
        self._held = []
        self._splitter = FrameSplitter()

    def rest(self) -> bytes:
        """What is still held of a stream that ended without content."""
        held, self._held = self._held, []
        return b"".join(held)


class Race:
    """Two attempts, or more, for one call; `won(n)` hears whose answer it is before any of it leaves. The first content, or the first whole answer, wins; the others are cancelled."""

    def __init__(self, gate: Gate, call: ModelCall, won: Callable[[int], None]) -> None:
        self.gate = gate
        self._won = won
        self.winner: Lane | None = None
        self._dialect = call.dialect
        self._lanes: list[Lane] = []

    def lane(self) -> Lane:
        """A further lane."""
        lane = Lane(self, self._dialect)
        self._lanes.append(lane)
        return lane

    def won_by(self, lane: Lane) -> None:
        """`lane` answers; the others are cancelled at once."""
        self.winner = lane
        self._won(self._lanes.index(lane))
        for other in self._lanes:
            if other is not lane:
                other.lost = True
                if other.task is not None:
                    other.task.cancel()

    async def run(
        self, attempts: list[Callable[[Lane], Coroutine[Any, Any, ModelReply]]], after: float, may: Callable[[], bool]
    ) -> ModelReply:
        """The winner's reply. Attempt n+1 starts `after` seconds after attempt n, if `may()` and nothing has come.

        Raises what the last attempt raised where all that were begun failed; what comes then is the caller's business.
        """
        running: set[asyncio.Task[ModelReply]] = set()
        waiting = list(attempts)
        failure: BaseException | None = None
        try:
            running.add(self._start(waiting.pop(0)))
            while running:
                more = bool(waiting) and self.winner is None
                done, running = await asyncio.wait(
                    running, timeout=after if more else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if self._finished(task):
                        return task.result()
                    failure = self._worse(task, failure)
                if not done and more and self.winner is None:
                    if not may():
                        waiting.clear()
                        continue
                    running.add(self._start(waiting.pop(0)))
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)
                for task in running:
                    self._worse(task, None)
        assert failure is not None, "a race without attempts"
        raise failure

    def _start(self, attempt: Callable[[Lane], Coroutine[Any, Any, ModelReply]]) -> asyncio.Task[ModelReply]:
        lane = self.lane()
        lane.task = asyncio.ensure_future(attempt(lane))
        return lane.task

    def _finished(self, task: asyncio.Task[ModelReply]) -> bool:
        """Whether a task ended with the answer; the first that does is the winner."""
        if task.cancelled() or task.exception() is not None:
            return False
        lane = next(lane for lane in self._lanes if lane.task is task)
        if self.winner is None:
            self.won_by(lane)
            if rest := lane.rest():
                self.gate.feed(rest)
        return self.winner is lane

    def _worse(self, task: asyncio.Task[ModelReply], known: BaseException | None) -> BaseException | None:
        """What a task failed with, where it counts: that a loser was cancelled does not, the winner's failure outranks all."""
        if task.cancelled():
            return known
        error = task.exception()
        lost = any(lane.task is task and lane.lost for lane in self._lanes)
        return known if error is None or (lost and isinstance(error, NoriaError)) else error


def begins(frame: bytes, dialect: Dialect) -> bool:
    """Whether content begins with this frame, in the dialect of the stream."""
    if dialect == "openai":
        return is_content(frame)
    return dialect == "gemini" or "delta" in (event_of(frame) or "")


def idempotent(call: ModelCall) -> bool:
    """Whether a call may be made twice: nothing is stored by it, here or there."""
    return bytes(call.body.get("store", b"")) != b"true" and call.kind != "passthrough" and "background" not in call.body
