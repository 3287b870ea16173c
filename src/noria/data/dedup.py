"""Rows that say the same: exactly, by BLAKE3 of their normalised text, and nearly, by MinHash (rensa).

Shingles are words in threes (Broder 1997), or characters in threes where a text is mostly Chinese, Japanese or Korean, which has
no spaces to cut at. Bands of the signature find candidates (locality-sensitive hashing, Indyk & Motwani 1998); whether two rows
are near is then decided by the Jaccard similarity of the shingles themselves, so no row is lost to an estimate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from noria.contracts.dataset import Rejection, Row
from noria.contracts.error import ConfigError
from noria.data.row import normal, prompt_of
from noria.kit.ids import digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PERMUTATIONS = 128
SEED = 42
MARGIN = 0.2
"""How far an estimate by signature may be below the truth, which is then not computed: more than five standard errors of 128."""
BATCH = 512
"""Rows whose signatures are made together."""
_WORDS = re.compile(r"\w+")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")


class Likeness(msgspec.Struct, frozen=True):
    """What counts as the same."""

    near: float | None = 0.8
    """Jaccard similarity of shingles from which on two rows are near; None = only exact duplicates count."""
    words: int = 3
    chars: int = 3
    """Words, or characters, of a shingle."""
    whole: bool = False
    """Compare answer and label too: two rows that ask the same and are answered otherwise then both stay."""

    def recipe(self, step: str) -> dict[str, Any]:
        """As a version's recipe tells of it."""
        return {"step": step, **msgspec.to_builtins(self), "permutations": PERMUTATIONS, "seed": SEED}


class Hit(NamedTuple):
    """A row that is like one that was kept."""

    id: str
    of: str
    rule: str
    """`exact` or `near`."""
    similarity: float


def check(likeness: Likeness) -> None:
    """Raises `ConfigError` for settings that cannot be meant."""
    if likeness.near is not None and not 0.3 <= likeness.near <= 1:
        raise ConfigError(f"The similarity must be between 0.3 and 1, not {likeness.near}.")
    if not 1 <= likeness.words <= 8 or not 1 <= likeness.chars <= 16:
        raise ConfigError("A shingle has 1 to 8 words, or 1 to 16 characters.")


def text_for(row: Row, likeness: Likeness) -> str:
    """The text that is compared, normalised."""
    text = normal(prompt_of(row))
    return f"{text}\n{normal(row.answer)}\n{row.label}" if likeness.whole else text


def shingles(text: str, likeness: Likeness) -> list[str]:
    """The shingles of a normalised text; a text shorter than one is its own.

    >>> shingles("how do i reset it", Likeness())
    ['how do i', 'do i reset', 'i reset it']
    """
    if len(_CJK.findall(text)) * 3 > len(text):
        plain = "".join(_WORDS.findall(text))
        return [plain[i : i + likeness.chars] for i in range(max(1, len(plain) - likeness.chars + 1))]
    words = _WORDS.findall(text)
    n = likeness.words
    if len(words) < n:
        return [" ".join(words) or text]
    return list(map(" ".join, zip(*(words[i:] for i in range(n)), strict=False)))


class Made(NamedTuple):
    """What is needed of a text to compare it: its digest, its shingles by their hashes, its signature."""

    key: str
    shingles: Any = None
    signature: Any = None


class Index:
    """Texts that were kept, to be asked for the first, or the most similar, that a new one is like."""

    def __init__(self, likeness: Likeness) -> None:
        from rensa import RMinHashLSH

        check(likeness)
        self._like = likeness
        self._exact: dict[str, int] = {}
        self._ids: list[str] = []
        self._kept: list[tuple[NDArray[np.uint64], Any]] = []
        """Shingles, by their hashes, and signatures."""
        self._near = likeness.near
        bands = 32 if (likeness.near or 1.0) >= 0.7 else 64
        """A pair at the threshold shares one of 32 bands of 4 with p > .999 at .7, one of 64 bands of 2 with p > .997 at .3."""
        self._lsh = RMinHashLSH(threshold=likeness.near or 1.0, num_perm=PERMUTATIONS, num_bands=bands)

    def prepare(self, texts: Sequence[str]) -> list[Made]:
        """What is needed of each text."""
        keys = [digest(t.encode()) for t in texts]
        if self._near is None:
            return [Made(key) for key in keys]
        import numpy as np
        from rensa import RMinHash

        cut = [shingles(t, self._like) for t in texts]
        hashed = [np.fromiter(set(h), np.uint64) for h in RMinHash.hash_token_sets(cut)]
        signed = RMinHash.from_token_sets(cut, num_perm=PERMUTATIONS, seed=SEED)
        return [Made(*each) for each in zip(keys, hashed, signed, strict=True)]

    def find(self, id: str, made: Made) -> Hit | None:
        """The kept text that this one is like, if any: the same, else the most similar, the first of equals."""
        if (n := self._exact.get(made.key)) is not None:
            return Hit(id, self._ids[n], "exact", 1.0)
        if self._near is None:
            return None
        best = (0.0, 0)
        for n in self._lsh.query(made.signature):
            shingles, signature = self._kept[n]
            if signature.jaccard(made.signature) >= self._near - MARGIN:
                best = max(best, (_jaccard(made.shingles, shingles), -n))
        return Hit(id, self._ids[-best[1]], "near", best[0]) if best[0] >= self._near else None

    def keep(self, id: str, made: Made) -> None:
        """Add a text."""
        n = len(self._ids)
        self._exact.setdefault(made.key, n)
        self._ids.append(id)
        if self._near is not None:
            self._kept.append((made.shingles, made.signature))
            self._lsh.insert(n, made.signature)


def _jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    import numpy as np

    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _worth(id: str, row: Row) -> tuple[bool, bool, bool, str]:
    """Which of rows that say the same stays: one with a label, with an answer, not written by a model; then the lowest id."""
    return (not row.label, not row.answer, bool(row.source.release), id)


def duplicates(rows: Iterable[tuple[str, Row]], likeness: Likeness) -> Iterator[Rejection]:
    """Rows to leave out, each with the row that stays in its stead. The same for the same rows in any order."""
    index = Index(likeness)
    facts = sorted((_worth(name, row), text_for(row, likeness), row.label) for name, row in rows)
    labels: dict[str, str] = {}
    source = iter(facts)
    while part := list(islice(source, BATCH)):
        for (worth, _, label), made in zip(part, index.prepare([t for _, t, _ in part]), strict=True):
            name = worth[-1]
            labels[name] = label
            hit = index.find(name, made)
            if hit is None:
                index.keep(name, made)
                continue
            differ = label and labels[hit.of] and label != labels[hit.of]
            detail = f"labels differ: {label[:80]} here, {labels[hit.of][:80]} there" if differ else ""
            threshold = 1.0 if hit.rule == "exact" else likeness.near
            yield Rejection(name, "dedup", hit.rule, round(hit.similarity, 4), threshold, hit.of, detail)
