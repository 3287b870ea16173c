"""The questions that were asked, as vectors: exact search within a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from noria.gateway.wording import Wording

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]

NEAREST = 8
"""Questions whose wording is compared, nearest first."""
MOST_IN_BUCKET = 1000
"""Questions of one bucket, the latest ones: comparing a vector with them takes 0.3 ms."""


class Probe(msgspec.Struct, frozen=True):
    """One question, ready to be compared."""

    bucket: bytes
    vector: Any
    """float32, of length 1, shape (dimensions,)."""
    wording: Wording


class Index:
    """Vectors in one ring of `entries` rows; the oldest makes room. Rows are found by bucket."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._vectors: Vector | None = None
        self._rows: dict[bytes, dict[int, None]] = {}
        self._held: list[tuple[bytes, bytes, Wording]] = []
        """(bucket, key of the answer, wording) of each row."""
        self._next = 0

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._rows.values())

    def near(self, probe: Probe, threshold: float) -> list[tuple[int, bytes, Wording]]:
        """(row, key, wording) of the bucket's questions at least as near as `threshold`, nearest first, `NEAREST` at most."""
        import numpy as np

        rows = list(self._rows.get(probe.bucket, ()))
        if not rows or self._vectors is None:
            return []
        cosines = self._vectors[rows] @ probe.vector
        order = np.argsort(-cosines)[:NEAREST]
        return [(rows[i], *self._held[rows[i]][1:]) for i in order if cosines[i] >= threshold]

    def add(self, probe: Probe, key: bytes) -> None:
        """Take a question in."""
        import numpy as np

        if self._vectors is None:
            self._vectors = np.empty((min(self._entries, 256), len(probe.vector)), np.float32)
        row = self._next
        if row >= len(self._vectors):
            grown = np.empty((min(self._entries, 2 * len(self._vectors)), len(probe.vector)), np.float32)
            grown[: len(self._vectors)] = self._vectors
            self._vectors = grown
        if row < len(self._held):
            self.drop(row)
            self._held[row] = (probe.bucket, key, probe.wording)
        else:
            self._held.append((probe.bucket, key, probe.wording))
        self._vectors[row] = probe.vector
        bucket = self._rows.setdefault(probe.bucket, {})
        bucket[row] = None
        if len(bucket) > MOST_IN_BUCKET:
            self.drop(next(iter(bucket)))
        self._next = (row + 1) % self._entries

    def drop(self, row: int) -> None:
        """Forget one question; its row is used again when its turn comes."""
        bucket = self._held[row][0]
        rows = self._rows.get(bucket, {})
        rows.pop(row, None)
        if not rows:
            self._rows.pop(bucket, None)
