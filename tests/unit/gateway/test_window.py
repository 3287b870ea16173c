"""Windows follow the calendar of their zone, also where the clocks change."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noria.contracts.release import Budget
from noria.gateway.window import window_of


def window(kind: str, zone: str, at: str):
    ns = int(datetime.fromisoformat(at).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 10**9
    found = window_of(Budget("b", "tenant", 1, kind, zone), ns)
    return [datetime.fromtimestamp(t // 10**9, UTC).strftime("%m-%dT%H:%M") for t in found]


@pytest.mark.parametrize(
    ("kind", "zone", "at", "start", "end"),
    [
        ("day", "UTC", "2026-11-22T12:00", "11-22T00:00", "11-23T00:00"),
        ("day", "Europe/Berlin", "2026-03-29T12:00", "03-28T23:00", "03-29T22:00"),  # 23 hours
        ("day", "Europe/Berlin", "2026-10-25T12:00", "10-24T22:00", "10-25T23:00"),  # 25 hours
        ("day", "America/Havana", "2026-03-08T12:00", "03-08T05:00", "03-09T04:00"),  # midnight does not exist
        ("week", "Asia/Shanghai", "2026-11-22T12:00", "11-15T16:00", "11-22T16:00"),
        ("month", "America/New_York", "2026-02-28T23:59", "02-01T05:00", "03-01T05:00"),
        ("month", "UTC", "2026-12-31T23:59", "12-01T00:00", "01-01T00:00"),
    ],
)
def test_windows_begin_and_end_at_local_midnight(kind, zone, at, start, end) -> None:
    assert window(kind, zone, at) == [start, end]


@given(
    st.integers(1_600_000_000, 2_100_000_000),
    st.sampled_from(["day", "week", "month"]),
    st.sampled_from(["Europe/Berlin", "America/Havana", "Asia/Beirut", "Africa/Cairo", "Australia/Lord_Howe", "Pacific/Apia"]),
)
def test_windows_leave_no_gap_and_do_not_overlap(at_s, kind, zone) -> None:
    budget = Budget("b", "tenant", 1, kind, zone)
    found = window_of(budget, at_s * 10**9)
    assert found.start <= at_s * 10**9 < found.end
    assert window_of(budget, found.end).start == found.end
    assert window_of(budget, found.start) == found
    assert window_of(budget, found.end - 10**9) == found


def test_a_budget_without_windows_never_begins_anew() -> None:
    assert window_of(Budget("b", "tenant", 1), 5).resets == ""
