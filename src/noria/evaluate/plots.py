"""Pictures of a report as inline SVG, without scripts: colours come from the page's style, so that they follow light and dark.

Each figure has a title for those who cannot see it; text stays text. Sizes are in pixels of a viewBox that the page scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH = 720
_ROW, _LEFT, _RIGHT = 26, 190, 84
_LONGEST = 26
"""Characters of a name in a picture; the whole name is its tooltip."""


class Bar(NamedTuple):
    """A figure with its interval. `series` chooses the colour."""

    name: str
    value: float
    low: float
    high: float
    shown: str
    series: int = 0


def intervals(bars: Sequence[Bar], title: str, *, most: float = 1.0) -> str:
    """Points with whiskers on a common axis from 0 to `most`."""
    inner = WIDTH - _LEFT - _RIGHT

    def at(v: float) -> float:
        return _LEFT + inner * min(max(v / most if most else 0.0, 0.0), 1.0)

    parts = [_line(at(most * i / 4), 8, at(most * i / 4), 12 + _ROW * len(bars), "grid") for i in range(5)]
    parts += [_text(at(most * i / 4), 28 + _ROW * len(bars), f"{most * i / 4:g}", "tick", "middle") for i in range(5)]
    for i, b in enumerate(bars):
        y = 10 + _ROW * i + _ROW / 2
        parts += [
            _name(b.name, y),
            _line(at(b.low), y, at(b.high), y, f"whisker s{b.series}"),
            f'<circle class="point s{b.series}" cx="{at(b.value):.1f}" cy="{y:.1f}" r="5"/>',
            _text(WIDTH - _RIGHT + 10, y + 4, b.shown, "value", "start"),
        ]
    return _figure("".join(parts), 36 + _ROW * len(bars), title)


def bars(rows: Sequence[tuple[str, Sequence[float | None], str]], title: str) -> str:
    """Bars from 0 to 1: (name, a value for each series, what is written behind)."""
    inner, parts, y = WIDTH - _LEFT - _RIGHT, [], 6.0
    for name, values, shown in rows:
        thick = 14.0 if len(values) == 1 else 9.0
        height = thick * len(values) + 8
        parts.append(_name(name, y + height / 2))
        for i, value in enumerate(values):
            if value is not None:
                parts.append(
                    f'<rect class="bar s{i}" x="{_LEFT}" y="{y + 4 + i * thick:.1f}" width="{max(1.0, inner * value):.1f}" '
                    f'height="{thick - 2:.1f}" rx="2"/>'
                )
        parts.append(_text(WIDTH - _RIGHT + 10, y + height / 2 + 4, shown, "value", "start"))
        y += height
    return _figure("".join(parts), y + 6, title)


def heat(counts: Mapping[str, Mapping[str, int]], rows: Sequence[str], columns: Sequence[str], nothing: str, title: str) -> str:
    """A confusion matrix: rows are what was right, columns what was said; each row shaded by its own sum."""
    cell = max(14.0, min(34.0, (WIDTH - _LEFT - 90) / max(1, len(columns))))
    top, parts = 118.0, []
    for j, name in enumerate(columns):
        x = _LEFT + j * cell + cell / 2
        parts.append(
            f'<text class="tick" transform="translate({x + 4:.1f},{top - 6:.1f}) rotate(-55)">{_short(name or nothing, 20)}</text>'
        )
    for i, right in enumerate(rows):
        y = top + i * cell
        parts.append(_name(right, y + cell / 2))
        whole = sum(counts.get(right, {}).values())
        for j, said in enumerate(columns):
            n = counts.get(right, {}).get(said, 0)
            x = _LEFT + j * cell
            kind = "right" if right == said else "wrong"
            strength = math.sqrt(n / whole) if whole else 0.0  # a square root, so that few mistakes show
            parts.append(
                f'<rect class="cell {kind}" x="{x:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" height="{cell - 1:.1f}" '
                f'fill-opacity="{strength:.3f}"><title>{escape(right)} → {escape(said or nothing)}: {n}</title></rect>'
            )
            if n and cell >= 20:
                parts.append(_text(x + cell / 2, y + cell / 2 + 4, str(n), "count", "middle"))
    return _figure("".join(parts), top + len(rows) * cell + 8, title, width=max(WIDTH, int(_LEFT + len(columns) * cell + 90)))


def steps(series: Sequence[Sequence[float]], title: str, unit: str) -> str:
    """The cumulative distribution of each series: which share of its values is at most so large."""
    top = 4 * _round_up(max((v for s in series for v in s), default=0.0) / 4)
    left, right, height = 48, WIDTH - 20, 210

    def x(v: float) -> float:
        return left + (right - left) * v / top

    parts = []
    for i in range(5):
        y = 10 + height * (1 - i / 4)
        parts += [_line(left, y, right, y, "grid"), _text(left - 8, y + 4, f"{25 * i} %", "tick", "end")]
        value = top * i / 4
        parts.append(
            _text(
                x(value), height + 30, f"{value:,.0f}" + (f" {unit}" if i == 4 else ""), "tick", "end" if i == 4 else "middle"
            )
        )
    for n, values in enumerate(series):
        ordered = sorted(values)
        points = [f"{x(ordered[0]) if ordered else left:.1f},{10 + height:.1f}"]
        for k, v in enumerate(ordered, 1):
            points.append(f"{x(v):.1f},{10 + height * (1 - k / len(ordered)):.1f}")
        parts.append(f'<polyline class="curve s{n}" points="{" ".join(points)}"/>')
    return _figure("".join(parts), height + 42, title)


def _round_up(v: float) -> float:
    """The next number that reads well.

    >>> _round_up(5181.2), _round_up(0.0)
    (6000.0, 1.0)
    """
    if v <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(v))
    return next(k * unit for k in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if k * unit >= v)


def _figure(inside: str, height: float, title: str, *, width: int = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{inside}</svg>"
    )


def _name(name: str, y: float) -> str:
    return f'<text class="name" x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{_short(name, _LONGEST)}<title>{escape(name)}</title></text>'


def _short(name: str, most: int) -> str:
    return escape(name if len(name) <= most else name[: most - 1] + "…")


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
