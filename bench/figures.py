"""The arithmetic of the benchmarks: percentiles, medians of rounds, figures paired with a baseline."""

from __future__ import annotations

import itertools
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
    stem = f"{name}_p" if name else "p"
    return {f"{stem}{p}_ms": percentile(ordered, p) / 1e6 if ordered else None for p in (50, 90, 99)}


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


CELL = ("part", "cell", "target")
LATENCIES = ("p50_ms", "p90_ms", "p99_ms", "ttft_p50_ms", "ttft_p99_ms")


def summary(rows: Sequence[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """One row a cell and target: medians over the rounds of every figure, and the comparison with the baseline target.

    `rows` are measurements with `part`, `cell`, `target`, `round` and figures. Comparisons are made round by round, and
    their median is taken after: that cancels what the machine did to a whole round.
    """
    of = {(*(m[k] for k in CELL), m["round"]): m for m in rows}
    told = []
    for key in dict.fromkeys(tuple(m[k] for k in CELL) for m in rows):
        mine = [m for m in rows if tuple(m[k] for k in CELL) == key]
        pairs = [(m, base) for m in mine if (base := of.get((*key[:2], baseline, m["round"])))]
        row: dict[str, Any] = dict(zip(CELL, key, strict=True)) | {"rounds": len(mine)}
        for name in dict.fromkeys(n for m in mine for n, v in m.items() if n != "round" and _is_number(v)):
            row[name] = median(m.get(name) for m in mine)
            row[f"{name}_range"] = [f(v for m in mine if (v := m.get(name)) is not None) for f in (min, max)]
        if any("rps" in m for m in mine):
            row["rps_ratio"] = median(ratio(m.get("rps"), base.get("rps")) for m, base in pairs)
        for name in LATENCIES:
            if row.get(name) is not None:
                row[f"added_{name}"] = median(difference(m.get(name), base.get(name)) for m, base in pairs)
        told.append(row)
    return told


def paired(rows: Sequence[dict[str, Any]], name: str, one: str, other: str) -> dict[str, dict[str, float | None]]:
    """Of each cell: the median over the rounds of figure `name` of target `one` less that of `other`, and its range."""
    of = {(m["part"], m["cell"], m["target"], m["round"]): m for m in rows}
    found: dict[str, list[float]] = {}
    for (part, cell, target, number), m in of.items():
        base = of.get((part, cell, other, number))
        if target == one and base and m.get(name) is not None and base.get(name) is not None:
            found.setdefault(cell, []).append(m[name] - base[name])
    return {cell: {"median": median(v), "least": min(v), "most": max(v)} for cell, v in found.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def slope(points: Sequence[tuple[float, float]], *, deviations: float = 1.96) -> tuple[float, float]:
    """Least-squares slope of y over x, and half the width of its interval (of 95 %: 1.96 standard errors).

    The residuals of a process's memory are correlated (it grows in steps), so that their number is divided by what
    their lag-1 autocorrelation r leaves of them, n (1 - r) / (1 + r) (Bayley & Hammersley 1946).

    >>> slope([(0, 1), (1, 3), (2, 5)])
    (2.0, 0.0)
    """
    n = len(points)
    if n < 3:
        raise ValueError("a slope with an interval needs three points")
    mean_x, mean_y = (sum(p[i] for p in points) / n for i in (0, 1))
    spread_x = sum((x - mean_x) ** 2 for x, _ in points)
    found = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread_x
    rest = [y - mean_y - found * (x - mean_x) for x, y in points]
    power = sum(r * r for r in rest)
    if power < 1e-12:
        return found, 0.0
    lag = max(0.0, min(0.95, sum(a * b for a, b in itertools.pairwise(rest)) / power))
    effective = max(3.0, n * (1 - lag) / (1 + lag))
    error = (power / (n - 2) / spread_x) ** 0.5 * (n / effective) ** 0.5
    return found, deviations * error
