"""What differs between two versions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from noria.contracts.dataset import Member, Row
from noria.data.row import prompt_key


class Moved(msgspec.Struct, frozen=True):
    """A row that went from one split to another."""

    row: str
    before: str
    after: str


class Relabelled(msgspec.Struct, frozen=True):
    """What is asked stayed, and its label changed: another row of the same content but for that."""

    before_row: str
    after_row: str
    before: str
    after: str


class Difference(msgspec.Struct, frozen=True):
    """All of it. A row that changed its label is among `added` and `removed` as well: it is another row."""

    added: tuple[Member, ...]
    removed: tuple[Member, ...]
    moved: tuple[Moved, ...]
    relabelled: tuple[Relabelled, ...]

    @property
    def none(self) -> bool:
        """Whether the versions are the same."""
        return not (self.added or self.removed or self.moved)


def compare(before: Iterable[Member], after: Iterable[Member]) -> Difference:
    """Added, removed and moved rows of two lists that rise by row id. Labels need the rows themselves: see `relabelled`."""
    added, removed, moved = [], [], []
    for old, new in _beside(before, after):
        if new is None:
            removed.append(old)
        elif old is None:
            added.append(new)
        elif old.split != new.split:
            moved.append(Moved(old.row, old.split, new.split))
    return Difference(tuple(added), tuple(m for m in removed if m), tuple(moved), ())


def _beside(before: Iterable[Member], after: Iterable[Member]) -> Iterator[tuple[Member | None, Member | None]]:
    """Two rising lists side by side; None where one lacks what the other has."""
    olds, news = iter(before), iter(after)
    old, new = next(olds, None), next(news, None)
    while old or new:
        if new is None or (old is not None and old.row < new.row):
            yield old, None
            old = next(olds, None)
        elif old is None or new.row < old.row:
            yield None, new
            new = next(news, None)
        else:
            yield old, new
            old, new = next(olds, None), next(news, None)


def relabelled(removed: Mapping[str, Row], added: Mapping[str, Row]) -> tuple[Relabelled, ...]:
    """Rows that ask the same and have another label, of those that went and those that came. Where several ask the same, they
    are paired in the order of their ids.
    """
    came: defaultdict[str, list[str]] = defaultdict(list)
    for new in sorted(added, reverse=True):
        came[prompt_key(added[new])].append(new)
    found = []
    for old in sorted(removed):
        if same := came.get(prompt_key(removed[old])):
            new = same.pop()
            if added[new].label != removed[old].label:
                found.append(Relabelled(old, new, removed[old].label, added[new].label))
    return tuple(found)
