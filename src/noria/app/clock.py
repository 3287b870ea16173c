"""The machine's clock, behind the port that tests replace."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's clock."""

    def now_ns(self) -> int:
        """Wall clock, int64 ns UTC."""
        return time.time_ns()
