"""The leak gate: no row that a model is judged by may have been learned, word for word or nearly."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import msgspec

from noria.contracts.dataset import Row
from noria.data.dedup import BATCH, Index, Likeness, Made, text_for


class Pair(msgspec.Struct, frozen=True):
    """A row of the evaluation and the row of the training set that it is like."""

    evaluation: str
    train: str
    rule: str
    similarity: float


class Leaks(msgspec.Struct, frozen=True):
    """What the gate found. `passed` where at most `allowed` of the evaluation's rows leak."""

    passed: bool
    train: int
    evaluation: int
    exact: int
    near: int
    share: float
    allowed: float
    pairs: tuple[Pair, ...]
    likeness: dict[str, Any]


def leaks(
    train: Iterable[tuple[str, Row]], evaluation: Iterable[tuple[str, Row]], likeness: Likeness, *, allowed: float = 0.0
) -> Leaks:
    """Look each row of the evaluation up among those of the training set; `allowed` is a share. An empty evaluation fails: it
    proves nothing.
    """
    index = Index(likeness)
    count = 0
    for name, made in _each(index, train, likeness):
        index.keep(name, made)
        count += 1
    pairs, asked = [], 0
    for name, made in _each(index, evaluation, likeness):
        asked += 1
        if hit := index.find(name, made):
            pairs.append(Pair(name, hit.of, hit.rule, round(hit.similarity, 4)))
    exact = sum(p.rule == "exact" for p in pairs)
    share = len(pairs) / asked if asked else 0.0
    return Leaks(
        bool(asked and share <= allowed), count, asked, exact, len(pairs) - exact, round(share, 6), allowed,
        tuple(sorted(pairs, key=lambda p: (p.rule, -p.similarity, p.evaluation))), likeness.recipe("leak"),
    )  # fmt: skip


def _each(index: Index, rows: Iterable[tuple[str, Row]], likeness: Likeness) -> Iterable[tuple[str, Made]]:
    source = iter(rows)
    while part := list(islice(source, BATCH)):
        made = index.prepare([text_for(row, likeness) for _, row in part])
        yield from zip([name for name, _ in part], made, strict=True)
