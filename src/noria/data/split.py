"""Which rows a model learns from and which it is judged by: decided by a hash, so that a row stays where it was."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from noria.contracts.error import ConfigError
from noria.kit.ids import digest

_WHOLE = 1 << 64


class Ratios(msgspec.Struct, frozen=True):
    """Splits with their shares, in order; they add up to 1."""

    shares: tuple[tuple[str, float], ...]
    seed: str = ""
    """Another seed gives another split."""
    stratify: bool = False
    """Give every label these shares, as exactly as whole groups allow; without it a row's place depends on nothing but itself."""

    def recipe(self) -> dict[str, Any]:
        """As a version's recipe tells of it."""
        return {"step": "split", "shares": dict(self.shares), "seed": self.seed, "stratify": self.stratify}


class Placed(NamedTuple):
    """What a split looks at. `unit` is what must stay together: the group, else what the row asks."""

    row: str
    unit: str
    label: str


def read_ratios(text: str, *, seed: str = "", stratify: bool = False) -> Ratios:
    """Shares as people write them. Raises `ConfigError`.

    >>> read_ratios("train=0.8,test=0.2").shares
    (('train', 0.8), ('test', 0.2))
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, sign, value = part.strip().partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not sign or not name or "/" in name or not 0 < share <= 1 or name in shares:
            raise ConfigError(f"{part.strip()!r} is no share.", hint="Write train=0.8,validation=0.1,test=0.1.")
        shares[name] = share
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(f"The shares add up to {sum(shares.values()):g}, not to 1.")
    return Ratios(tuple(shares.items()), seed, stratify)


def point(unit: str, seed: str) -> float:
    """Where a unit falls, in [0, 1): the same on every machine and for ever."""
    return int(digest(f"{seed}\0{unit}".encode())[:16], 16) / _WHOLE


def assign(rows: Iterable[Placed], ratios: Ratios, *, kept: Mapping[str, str] | None = None) -> dict[str, str]:
    """The split of each row id. Rows of one unit get the same one. `kept`: units that have a split already keep it."""
    placed = list(rows)
    at = {unit: point(unit, ratios.seed) for unit in {p.unit for p in placed}}
    if ratios.stratify:
        at = _stratified(placed, at)
    kept = kept or {}
    of = {unit: kept.get(unit) or _at(ratios, where) for unit, where in at.items()}
    return {p.row: of[p.unit] for p in placed}


def _at(ratios: Ratios, where: float) -> str:
    reached = 0.0
    for name, share in ratios.shares:
        reached += share
        if where < reached:
            return name
    return ratios.shares[-1][0]


def _stratified(placed: list[Placed], at: dict[str, float]) -> dict[str, float]:
    """Units of one label, in the order of their points, spread evenly over [0, 1), each as wide as it has rows. A unit of
    several labels counts as its most frequent one.
    """
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for p in placed:
        labels[p.unit][p.label] += 1
    strata: defaultdict[str, list[str]] = defaultdict(list)
    for unit, counts in labels.items():
        strata[min(counts, key=lambda label: (-counts[label], label))].append(unit)
    spread: dict[str, float] = {}
    for units in strata.values():
        total = sum(labels[u].total() for u in units)
        before = 0
        for unit in sorted(units, key=lambda u: (at[u], u)):
            size = labels[unit].total()
            spread[unit] = (before + size / 2) / total
            before += size
    return spread
