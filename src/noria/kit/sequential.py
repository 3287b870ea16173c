"""Two streams of scores in [0, 1] compared at any time, as often as one likes, without a word of it being worth less.

What is looked at again and again until it crosses a line crosses it by chance sooner or later: a p-value promises its error
rate for one look. An e-process promises it for all of them: under the null it reaches 1/alpha at any time with probability at
most alpha (Ville 1939; Ramdas, Grünwald, Vovk, Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference").

For one stream, with sum S of n scores, and a mean m that it is said to have at least, the mixture

    E(m) = sum_j w_j (t_j / m)^S ((1 - t_j) / (1 - m))^(n - S),   t_j < m

is such a process: each factor has expectation at most 1, for scores in {0, 1} by arithmetic, for scores between them because
it is convex in the score (Hoeffding 1963, eq. 4.3). It depends on S and n alone, so that late and unordered scores do no harm.
For two streams whose means differ by d, nobody knows the means themselves: the product of both processes at the least
favourable pair of means is at most the product at the true pair, hence an e-process too (Wasserman, Ramdas, Balakrishnan 2020,
"Universal inference", applied to test martingales).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

_STEPS = (0.01, 0.02, 0.035, 0.06, 0.1, 0.15, 0.25, 0.45)
"""How far from the claimed mean the alternatives lie, on the scale of the mean's own spread (see `_alternatives`)."""
_MEANS = 241
"""Claimed means that are looked at; between the two best ones the least favourable is sought again."""
_EDGE = 1e-9
_FINEST = 1e-3
"""Nearest to -1 that a difference is looked for."""


class Arm(NamedTuple):
    """What one stream has given: how many scores, each in [0, 1], and their sum."""

    n: int
    total: float

    @property
    def mean(self) -> float:
        """The average; 0.5 before the first score."""
        return self.total / self.n if self.n else 0.5


def evidence_of_drop(base: Arm, other: Arm, margin: float = 0.0) -> float:
    """E-value against "the mean of `other` is at least that of `base` minus `margin`"; act where it reaches 1/alpha.

    It may be computed after every score. Raises ValueError where sums are outside of [0, n].
    """
    import numpy as np

    _check(base)
    _check(other)
    return float(np.exp(_least(base, other, -margin, below=True)))


def interval(base: Arm, other: Arm, alpha: float = 0.05) -> tuple[float, float]:
    """Bounds of mean(other) - mean(base) that hold at all times together with probability at least 1 - alpha."""
    _check(base)
    _check(other)
    wanted = math.log(2 / alpha)
    return _lower(base, other, wanted), -_lower(other, base, wanted)


def _lower(base: Arm, other: Arm, wanted: float) -> float:
    """The largest d for which "other - base <= d" is refuted, by bisection: the evidence falls as d rises."""
    low, high = _EDGE - 1.0 + _FINEST, other.mean - base.mean
    if _least(base, other, low, below=False) < wanted:
        return -1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _least(base, other, middle, below=False) >= wanted else (low, middle)
    return low


def _least(base: Arm, other: Arm, d: float, *, below: bool) -> float:
    """Log of the product of both processes at the least favourable means (m, m + d).

    `below`: against other - base >= d, else against other - base <= d.
    """
    import numpy as np

    low, high = max(0.0, -d) + _EDGE, min(1.0, 1.0 - d) - _EDGE
    if low >= high:
        return 0.0
    found = 0.0
    for _ in range(3):
        means = np.linspace(low, high, _MEANS)
        logs = _log_evidence(other, means + d, below=below) + _log_evidence(base, means, below=not below)
        at = int(np.argmin(logs))
        found = float(logs[at])
        low, high = float(means[max(0, at - 1)]), float(means[min(_MEANS - 1, at + 1)])
    return found


def _log_evidence(arm: Arm, means: Any, *, below: bool) -> Any:
    """Log e-value against "the mean is at least m" (`below`) or "at most m", for each m."""
    import numpy as np

    claimed = np.clip(means, _EDGE, 1 - _EDGE)[:, None]
    other = _alternatives(claimed, below=below)
    rest = arm.n - arm.total
    logs = arm.total * (np.log(other) - np.log(claimed)) + rest * (np.log1p(-other) - np.log1p(-claimed))
    logs = np.concatenate([logs, np.zeros_like(claimed)], axis=1)  # one part of the stake is not laid
    peak = logs.max(axis=1)
    return peak + np.log(np.exp(logs - peak[:, None]).mean(axis=1))


def _alternatives(claimed: Any, *, below: bool) -> Any:
    """Means on the other side of the claimed one; equally far apart for a mean near 0 or 1 as in the middle (arcsine scale)."""
    import numpy as np

    angle = np.arcsin(np.sqrt(claimed))
    moved = np.clip(angle - _STEPS if below else angle + _STEPS, 1e-4, np.pi / 2 - 1e-4)
    other = np.sin(moved) ** 2
    return np.minimum(other, claimed) if below else np.maximum(other, claimed)


def _check(arm: Arm) -> None:
    if not 0 <= arm.total <= arm.n:
        raise ValueError(f"{arm.n} scores in [0, 1] cannot sum up to {arm.total}")
