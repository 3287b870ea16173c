"""Texts as vectors by a table of words, without a model: fast, coarse, for English and Chinese (DESIGN §3a.16).

The vector of a text is the sum of its words' rows, scaled to length 1: Chinese counts by characters and known pairs of them, a
word that the table lacks by the longest known beginnings of its parts. The table is distilled from multilingual-e5-small
(`bench/distill.py`; what it is good for and what not: docs/reference/static-vectors.md). It is mapped, not read: processes share
its pages, and opening it costs a dictionary of the words.

File: 8 bytes `NSV1` + dimensions (uint16) + 0, uint32 n and length of the words; the words, one a line; int8 rows (n × dimensions);
float32 scales (n). Little-endian, each part padded to 64 bytes.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterable, Sequence
from functools import cache
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

NUMBER = "0"
"""Stands for every number: which one it is says little of what a text is about."""
TABLE = Path(__file__).with_name("static_vectors.bin")
LONGEST = 20_000
"""Characters of a text that are read; what a text is about shows before."""
_TOKENS = re.compile(r"[a-z]+(?:'[a-z]+)?|[\u3400-\u9fff]+|\d+")
_WORDS = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+")
_FIRST, _LAST = 0x3400, 0x9FFF
_KINDS = _LAST - _FIRST + 1
_HEAD = struct.Struct("<4sHHII")
_ALIGN = 64
_BEGINNING = 3
"""Letters that a known beginning of an unknown word has at least."""
_LONGEST_WORD = 48
"""Letters of an unknown word that are read: what is longer is no word, and looking at it costs their square."""


def split(text: str) -> list[str]:
    """The words, characters, pairs of characters and numbers of a text.

    >>> split("Reset my 2 routers"), split("重置密码")
    (['reset', 'my', '0', 'routers'], ['重', '置', '密', '码', '重置', '置密', '密码'])
    """
    found: list[str] = []
    for token in _TOKENS.findall(text[:LONGEST].lower()):
        if token[0] > "\u33ff":
            found += token
            found += map(add, token, token[1:])
        else:
            found.append(NUMBER if token[0].isdecimal() else token)
    return found


def pack(tokens: Sequence[str], vectors: Any) -> bytes:
    """The file of a table; `vectors` has shape (len(tokens), dimensions)."""
    import numpy as np

    rows = np.asarray(vectors, np.float64)
    scales = np.maximum(np.abs(rows).max(axis=1), 1e-12) / 127
    words = "\n".join(tokens).encode()
    parts = [words, np.rint(rows / scales[:, None]).astype(np.int8).tobytes(), scales.astype("<f4").tobytes()]
    head = _HEAD.pack(b"NSV1", rows.shape[1], 0, len(tokens), len(words))
    return b"".join(p + b"\0" * (-len(p) % _ALIGN) for p in [head, *parts])


class StaticVectors:
    """A table, open. Safe to use from several threads."""

    def __init__(self, path: Path = TABLE) -> None:
        """Raises OSError where it cannot be read, ValueError where it is no table."""
        import numpy as np

        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(data) < _HEAD.size or data[:4] != b"NSV1":
            raise ValueError(f"{path} is no table of static vectors.")
        _, self.dimensions, _, count, size = _HEAD.unpack_from(data)
        at = _ALIGN
        self._places = {t: n for n, t in enumerate(data[at : at + size].decode().split("\n"))}
        at = _padded(at + size)
        end = _padded(at + count * self.dimensions)
        if len(self._places) != count or len(data) < end + 4 * count:
            raise ValueError(f"{path} is cut off.")
        self._rows = np.frombuffer(data, np.int8, count * self.dimensions, at).reshape(count, self.dimensions)
        self._scales = np.frombuffer(data, "<f4", count, end)
        self._parts: dict[str, tuple[int, ...]] = {}
        self._index_chinese()

    def embed(self, texts: Iterable[str]) -> Vectors:
        """One vector a text, of length 1, shape (n, dimensions); all zero where nothing of a text is known."""
        import numpy as np

        rows = [self._sum(text[:LONGEST].lower()) for text in texts]
        out = np.stack(rows) if rows else np.zeros((0, self.dimensions), np.float32)
        return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12), np.float32)

    def _sum(self, text: str) -> Any:
        """The sum of the rows of a text's tokens (those of `split`)."""
        import numpy as np

        places = np.array(self._words_in(text), np.int64)
        if not text.isascii():
            places = np.concatenate([places, *self._chinese_in(np.frombuffer(text.encode("utf-32-le", "replace"), "<u4"))])
        return self._scales[places] @ self._rows[places].astype("f4")

    def _words_in(self, text: str) -> list[int]:
        """Where the words and numbers of a text are in the table."""
        found: list[int] = []
        get = self._places.get
        for token in _WORDS.findall(text):
            place = get(NUMBER if token[0].isdecimal() else token)
            if place is not None:
                found.append(place)
            elif len(token) > _BEGINNING:
                found += self._beginnings(token)
        return found

    def _chinese_in(self, points: Any) -> tuple[Any, Any]:
        """Where the characters and pairs of a text are, from its code points: a page has thousands, so without a loop."""
        import numpy as np

        chinese = (points >= _FIRST) & (points <= _LAST)
        near = np.where(chinese, points - _FIRST, 0)
        single = self._single[near][chinese]
        keys = (near[:-1].astype(np.int64) * _KINDS + near[1:])[chinese[:-1] & chinese[1:]]
        at = np.minimum(np.searchsorted(self._pairs, keys), max(0, len(self._pairs) - 1))
        pairs = self._pair_places[at[self._pairs[at] == keys]] if len(self._pairs) else at[:0]
        return single[single >= 0], pairs

    def _index_chinese(self) -> None:
        """Places of characters by code point, and of pairs by a sorted key of both."""
        import numpy as np

        self._single = np.full(_KINDS, -1, np.int64)
        pairs = []
        for token, place in self._places.items():
            codes = [ord(c) - _FIRST for c in token]
            if not all(0 <= c < _KINDS for c in codes):
                continue
            if len(codes) == 1:
                self._single[codes[0]] = place
            else:
                pairs.append((codes[0] * _KINDS + codes[1], place))
        ordered = np.array(sorted(pairs), np.int64).reshape(-1, 2)
        self._pairs, self._pair_places = ordered[:, 0].copy(), ordered[:, 1].copy()

    def _beginnings(self, word: str) -> tuple[int, ...]:
        """Of a word that the table lacks: the longest known beginning, and the same of what is left."""
        word = word[:_LONGEST_WORD]
        known = self._parts.get(word)
        if known is not None:
            return known
        found: list[int] = []
        at = 0
        while len(word) - at >= _BEGINNING:
            end = next((e for e in range(len(word), at + _BEGINNING - 1, -1) if word[at:e] in self._places), 0)
            if end:
                found.append(self._places[word[at:end]])
            at = end or at + 1
        if len(self._parts) >= 50_000:
            self._parts.clear()
        self._parts[word] = made = tuple(found)
        return made


def _padded(size: int) -> int:
    return size + -size % _ALIGN


@cache
def shipped() -> StaticVectors:
    """The table that comes with Noria."""
    return StaticVectors()
