"""What workers counted, read back: attempts and times of endpoints, what caches spared."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.unit.observe.test_metrics import ROW

from noria.observe.metrics import Metrics
from noria.observe.tally import Histogram, by_endpoint, spared


def test_the_workers_of_a_node_are_added_up(tmp_path: Path) -> None:
    for slot, took in (("0", 100_000_000), ("1", 3_000_000_000)):
        metrics = Metrics(lambda _: True, tmp_path, slot)
        metrics.count(replace(ROW, duration_ns=took, ttft_ns=None))
        metrics.count(replace(ROW, duration_ns=9_000_000_000, outcome="error", error_code="upstream_failed", ttft_ns=None))
        metrics.routing({}, {("gpt", "ok"): 2, ("gpt", "failed"): 1, ("spare", "busy"): 1}, {})
        metrics.cache({"hit": 3}, 5_000, 10)
    seen = by_endpoint(tmp_path)
    assert seen["gpt"].attempts == {"ok": 4, "failed": 2}
    assert seen["spare"].attempts == {"busy": 2}
    assert sum(seen["gpt"].took.counts) == 2, "what failed says nothing of how long an answer takes"
    assert seen["gpt"].took.quantile(0.5) == 0.16
    assert 2.56 < (seen["gpt"].took.quantile(0.95) or 0) <= 5.12
    assert seen["gpt"].first.quantile(0.5) is None
    told = spared(tmp_path)
    assert (told.events["hit"], told.nanousd) == (6, 10_000)


def test_nothing_counted_is_nothing_known(tmp_path: Path) -> None:
    assert by_endpoint(tmp_path) == {}
    assert spared(tmp_path).nanousd == 0


@pytest.mark.parametrize(
    ("values", "share", "seconds"),
    [([0, 0, 0], 0.5, None), ([4, 0, 0], 0.5, 0.5), ([0, 4, 0], 0.25, 1.25), ([1, 1, 0], 1.0, 2.0), ([0, 0, 5], 0.5, 2.0)],
)
def test_a_quantile_lies_within_its_bucket_and_never_beyond_the_last_bound(
    values: list[int], share: float, seconds: float | None
) -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.add([*values, 999])  # the sum, which is no bucket
    assert histogram.quantile(share) == seconds
