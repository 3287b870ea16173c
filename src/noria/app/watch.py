"""Tells a keeper that hangs from one that is busy: only the first is killed (museum 14).

It must have been silent for the whole time that the configuration names, and have done next to nothing meanwhile: a
keeper that seals a day or replays a spool is late, not ill. One that works without ever answering gets ten times as long.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from time import monotonic

BUSY = 0.05
"""CPU-seconds a second, over the silence, from which on a process counts as working."""
PATIENCE = 10
"""How many times longer a silent one that works is left alone."""
PER_HOUR = 3


class Watch:
    """Fed with whether the process answered; `verdict` says why it must be killed, or nothing."""

    def __init__(self, silent: float) -> None:
        self._silent = silent
        self._since = 0.0
        self._cpu = 0.0
        self._pid = 0
        self._killed: deque[float] = deque(maxlen=PER_HOUR)
        self.told = False
        """Whether it was said that nothing more will be done this hour."""

    def answered(self) -> None:
        """It lives and answers."""
        self._since = 0.0

    def verdict(self, pid: int, now: float | None = None) -> str:
        """It did not answer: why it is to be killed now, else empty."""
        now = monotonic() if now is None else now
        if not self._since or pid != self._pid:
            self._since, self._cpu, self._pid = now, cpu_seconds(pid), pid
            return ""
        silent = now - self._since
        if silent < self._silent:
            return ""
        used = cpu_seconds(pid) - self._cpu
        state = process_state(pid)
        if state == "D" or (used / silent >= BUSY and silent < PATIENCE * self._silent):
            return ""
        if len(self._killed) == PER_HOUR and now - self._killed[0] < 3600:
            return ""
        self._killed.append(now)
        self._since = 0.0
        word = {"T": "stopped by a signal", "t": "stopped by a debugger"}.get(state, "alive")
        return f"process {pid} is {word} but has not answered for {silent:.0f} s and used {used:.2f} s of CPU meanwhile"

    @property
    def exhausted(self) -> bool:
        """Whether the hour's kills are used up."""
        return len(self._killed) == PER_HOUR and monotonic() - self._killed[0] < 3600


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far; 0 where there is none."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def process_state(pid: int) -> str:
    """The state letter of proc(5); empty where there is no such process."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
