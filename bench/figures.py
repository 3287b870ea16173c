"""The arithmetic of the benchmarks: percentiles, medians of rounds, figures paired with a baseline."""

from __future__ import annotations

import statistics
import struct
from collections.abc import Iterable, Sequence
from typing import Any

Figures = dict[str, float | None]


def percentile(ordered: Sequence[int], percent: float) -> float:
    """The nearest-rank percentile of ascending values: the smallest that `percent` of them do not exceed.

    >>> percentile([10, 20, 30, 40], 50), percentile([10, 20, 30, 40], 99)
    (20, 40)
    """
    if not ordered:
        raise ValueError("no values")
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def read_samples(data: bytes) -> tuple[list[int], list[int]]:
    """Ascending ns to the last byte, and to the first byte of the body, from a file of a load generator."""
    values = struct.unpack(f"<{len(data) // 8}Q", data)
    return sorted(values[::2]), sorted(values[1::2])


def spread(name: str, ordered: Sequence[int]) -> Figures:
    """p50, p90, p99 of ascending ns, in ms; None where there are no values."""
    return {f"{name}_p{p}_ms": percentile(ordered, p) / 1e6 if ordered else None for p in (50, 90, 99)}


def median(values: Iterable[float | None]) -> float | None:
    """The median of the known values, or None."""
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def ratio(value: float | None, base: float | None) -> float | None:
    """value / base, or None where that is not known."""
    return None if value is None or not base else value / base


def difference(value: float | None, base: float | None) -> float | None:
    """value - base, or None where that is not known."""
    return None if value is None or base is None else value - base


CELL = ("shape", "connections")


def summary(rounds: Sequence[dict[str, Any]], baseline: str, figures: Sequence[str]) -> list[dict[str, Any]]:
    """One row a cell: medians over the rounds, and, paired round by round, the comparison with the baseline mode.

    `rounds` are measurements with `mode`, `shape`, `connections`, `round` and the figures. Pairing first and
    taking the median after cancels what the machine did to a whole round.
    """
    of = {(*(m[k] for k in CELL), m["mode"], m["round"]): m for m in rounds}
    rows = []
    for key in dict.fromkeys((*(m[k] for k in CELL), m["mode"]) for m in rounds):
        mine = [m for m in rounds if (*(m[k] for k in CELL), m["mode"]) == key]
        pairs = [(m, base) for m in mine if (base := of.get((*key[:-1], baseline, m["round"])))]
        row = dict(zip((*CELL, "mode"), key, strict=True)) | {"rounds": len(mine)}
        row |= {name: median(m.get(name) for m in mine) for name in figures}
        row |= {f"{name}_range": [f(v) if v else None for f in (min, max)] for name in figures if (v := _known(mine, name))}
        row["rps_ratio"] = median(ratio(m["rps"], base["rps"]) for m, base in pairs)
        for name in ("p50_ms", "p99_ms", "ttft_p50_ms", "ttft_p99_ms"):
            row[f"added_{name}"] = median(difference(m.get(name), base.get(name)) for m, base in pairs)
        rows.append(row)
    return rows


def _known(rounds: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [m[name] for m in rounds if m.get(name) is not None]
