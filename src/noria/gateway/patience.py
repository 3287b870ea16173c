"""The wait for the first content of streams: one timer an endpoint, however many streams wait.

An HTTP client knows the first byte; a stream may well send its head, a role and a comment each second, and never a
word. What has not brought content in time is given up while another endpoint can still be asked.
"""

from __future__ import annotations

import asyncio
from time import perf_counter_ns
from typing import Any, Protocol

from noria.kit.http_sweep import Sweep


class Gate(Protocol):
    """Where a stream goes."""

    @property
    def committed(self) -> bool:
        """Whether content has come."""
        ...


class Wait:
    """One attempt that waits. `expired` is set just before its task is cancelled."""

    __slots__ = ("deadline_ns", "expired", "gate", "task")

    def __init__(self, gate: Gate, task: asyncio.Task[Any] | None, deadline_ns: int) -> None:
        self.gate = gate
        self.task = task
        self.deadline_ns = deadline_ns
        self.expired = False

    def absorb(self) -> bool:
        """Take back the cancellation that `expired` stands for; False where the task is cancelled for another reason too."""
        return self.expired and (self.task is None or self.task.uncancel() == 0)


class Patience:
    """Cancels attempts whose first content does not come within `first` seconds (late by at most an eighth, or 1 s)."""

    __slots__ = ("_first_ns", "_sweep", "_sweeping", "waits")

    def __init__(self, first: float) -> None:
        self._first_ns = round(first * 1e9)
        self._sweep = Sweep(first / 8, self._check)
        self._sweeping = False
        self.waits: set[Wait] = set()
        """Who waits. An attempt that is over takes itself out."""

    def begin(self, gate: Gate, now_ns: int) -> Wait:
        """Watch the current task from `now_ns` (`perf_counter_ns`) on."""
        wait = Wait(gate, asyncio.current_task(), now_ns + self._first_ns)
        self.waits.add(wait)
        if not self._sweeping:
            self._sweeping = True
            self._sweep.start(asyncio.get_running_loop())
        return wait

    def _check(self, now: float) -> bool:  # noqa: ARG002  the loop's time; deadlines are readings of the finer clock
        now_ns = perf_counter_ns()
        for wait in [w for w in self.waits if w.gate.committed or w.deadline_ns < now_ns]:
            self.waits.discard(wait)
            if not wait.gate.committed and wait.task is not None:
                wait.expired = True
                wait.task.cancel()
        self._sweeping = bool(self.waits)
        return self._sweeping
