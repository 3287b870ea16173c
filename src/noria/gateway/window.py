"""Calendar windows of a budget in an IANA zone: days begin at local midnight, weeks on Monday, months on the 1st."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from noria.contracts.release import Budget

FOREVER = 2**63 - 1


class Window(NamedTuple):
    """Int64 ns UTC: from `start` on, before `end`."""

    start: int
    end: int

    @property
    def name(self) -> str:
        """What sets it apart from the budget's other windows."""
        return str(self.start // 1_000_000_000)

    @property
    def resets(self) -> str:
        """When it ends, for people: ISO 8601 UTC; empty where it never does."""
        return "" if self.end == FOREVER else _at(self.end).strftime("%Y-%m-%dT%H:%M:%SZ")


def window_of(budget: Budget, at_ns: int) -> Window:
    """The window of `budget` in which a moment lies.

    A day whose midnight the clocks skip begins when they have skipped it; one that has two midnights begins at the first.

    >>> window_of(Budget("b", "tenant", 1, "day", "Europe/Berlin"), 1_774_738_800_000_000_000).resets
    '2026-03-29T22:00:00Z'
    """
    return Window(0, FOREVER) if budget.window == "total" else _calendar(budget.window, budget.zone, at_ns // 1_000_000_000)


@lru_cache(maxsize=8192)
def _calendar(kind: str, zone: str, at_s: int) -> Window:
    tz = ZoneInfo(zone)
    local = datetime.fromtimestamp(at_s, tz).date()
    if kind == "day":
        first, last = local, local + timedelta(days=1)
    elif kind == "week":
        first = local - timedelta(days=local.weekday())
        last = first + timedelta(days=7)
    else:
        first = local.replace(day=1)
        last = (first + timedelta(days=31)).replace(day=1)
    return Window(*(int(datetime(d.year, d.month, d.day, tzinfo=tz).timestamp()) * 1_000_000_000 for d in (first, last)))


def _at(ns: int) -> datetime:
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC)
