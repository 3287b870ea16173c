"""Curves for the demo's report, as inline SVG in the style of `evaluate.plots`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 720, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 20, 12, 40
TICKS = 4


class Line(NamedTuple):
    """Points in order of x. `series` chooses the colour."""

    points: Sequence[tuple[float, float]]
    series: int = 0


class Axes(NamedTuple):
    """What is written at the axes; `mark`: a dashed line at this y, with a word."""

    x: str
    y: str
    mark: float | None = None
    word: str = ""


def curves(lines: Sequence[Line], title: str, axes: Axes) -> str:
    """Lines on common axes. An empty text where there is no point at all."""
    points = [p for line in lines for p in line.points]
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points] + ([axes.mark] if axes.mark is not None else [])
    low_x, high_x, low_y, high_y = min(xs), max(xs), *_round(min(ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        wide, high = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
        return (
            _LEFT + wide * ((x - low_x) / (high_x - low_x) if high_x > low_x else 0.5),
            _TOP + high * (1 - (y - low_y) / (high_y - low_y)),
        )

    parts = []
    for i in range(TICKS + 1):
        y = low_y + (high_y - low_y) * i / TICKS
        left, height = at(low_x, y)
        parts.append(f'<line class="grid" x1="{left:.1f}" y1="{height:.1f}" x2="{WIDTH - _RIGHT}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x, anchor in ((low_x, "start"), (high_x, "end")):
        parts.append(f'<text class="tick" x="{at(x, low_y)[0]:.1f}" y="{HEIGHT - 22}" text-anchor="{anchor}">{x:g}</text>')
    if axes.mark is not None:
        _, height = at(low_x, axes.mark)
        parts.append(f'<line class="mark" x1="{_LEFT}" y1="{height:.1f}" x2="{WIDTH - _RIGHT}" y2="{height:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{WIDTH - _RIGHT}" y="{height - 5:.1f}" text-anchor="end">{escape(axes.word)}</text>'
        )
    for line in lines:
        placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in line.points))
        parts.append(f'<polyline class="curve s{line.series}" points="{placed}"/>')
    middle = _LEFT + (WIDTH - _LEFT - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(axes.x)}</text>')
    parts.append(
        f'<text class="tick" transform="translate(12,{HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(axes.y)}</text>'
    )
    said = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}"><title>{said}</title>{"".join(parts)}</svg>'


def _round(low: float, high: float) -> tuple[float, float]:
    """Ends that read well, around what is to be shown.

    >>> _round(0.13, 2.4), _round(-0.4, 0.85)
    ((0.0, 2.5), (-0.5, 1.0))
    """
    if low == high:
        low, high = low - 0.5, high + 0.5
    span = high - low
    unit = 10.0 ** math.floor(math.log10(span))
    unit *= next(f for f in (0.5, 1.0) if span / (unit * f) <= 10 or f == 1.0)
    return math.floor(low / unit) * unit, math.ceil(high / unit) * unit
