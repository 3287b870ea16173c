"""A dataset: content-addressed rows with provenance; a version of it is a Merkle root (ADR 23).

Rows are the unit of everything after them: of lineage, erasure, splitting, training and evaluation.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Origin = Literal["file", "trace", "feedback", "synthetic"]


class Source(msgspec.Struct, frozen=True):
    """Where a row comes from; enough to find it again."""

    origin: Origin
    ref: str
    """`<sha256 of the file>:<line>`, or the id of an exchange."""
    at_ns: int = 0
    """When it came about, int64 ns UTC; 0 = unknown."""
    app: str = ""
    release: str = ""
    """The release whose answer stands in the row: what a model said must not silently become its successor's truth."""


class Row(msgspec.Struct, frozen=True):
    """One example. `answer` is what should have been said (empty = not known yet), `label` its class where it has one."""

    messages: tuple[dict[str, Any], ...]
    """The prompt in OpenAI's chat form, ending with a user turn."""
    answer: str = ""
    label: str = ""
    lang: str = ""
    """ISO 639-1, or empty."""
    group: str = ""
    """Rows of one group (a conversation, a document) never stand on both sides of a split."""
    subject: str = ""
    """Keyed hash of the person it is about (DESIGN §3a.4); empty = nobody's."""
    source: Source = Source("file", "")
    tags: dict[str, str] = {}


class StoredRow(msgspec.Struct, frozen=True):
    """A row as it lies in the store: `data` is sealed under the key that `id` is keyed with."""

    id: str
    subject: str
    data: bytes


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A row's place in a version."""

    row: str
    split: str
    """`train`, `validation`, `test`, or a name of the user's."""


class Rejection(msgspec.Struct, frozen=True):
    """Why a row that was offered is not in the version. Rejected rows are kept, so that the reason can be checked."""

    row: str
    stage: str
    """`clean`, `dedup`, `leak`, `pii`, …"""
    rule: str
    """`exact`, `near`, `too_long`, …"""
    value: float | None = None
    threshold: float | None = None
    survivor: str = ""
    """The row that was kept in its stead."""
    detail: str = ""
    """For people; never text of the row, which may have been refused because of it."""
    source: str = ""
    """`Source.ref` of what was offered, where no row of it is stored."""


class Version(msgspec.Struct, frozen=True):
    """One immutable state of a dataset. `id` is `d1:` + the Merkle root over its members, sorted by row id."""

    id: str
    name: str
    """The dataset that it is a version of."""
    made_ns: int
    splits: dict[str, int]
    """Rows by split."""
    rejected: int = 0
    parents: tuple[str, ...] = ()
    """Versions that it was made from."""
    recipe: dict[str, Any] = {}
    """What was done, with every setting and seed: the same recipe over the same rows gives the same id."""
    note: str = ""

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(self.splits.values())
