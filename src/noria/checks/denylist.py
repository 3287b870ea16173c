"""Terms that must not occur: whole words in spaced scripts, anywhere in Chinese, Japanese, Thai text.

Text and terms are folded alike before they are compared: NFKC and case folding, runs of white space to
one space, invisible format characters dropped; findings are mapped back to the text as it came.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import ahocorasick

from noria.contracts.error import ConfigError
from noria.contracts.stage import Check, Options, Sample
from noria.contracts.verdict import Finding, Verdict

_LONGEST = 128
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Myanmar, Khmer, Hangul (particles join its words), kana, Han: no space marks where a word ends."""
_LETTERS_IN_ONE = re.compile("[\u3200-\u33ff\uff66-\uffdc]")
"""Characters that stand for several, or for half of one: where their text may be cut does not show in what it is folded to."""


class DenylistOptions(Options, frozen=True):
    """`terms`: words and phrases. `file`: one more a line, UTF-8, `#` begins a comment line."""

    terms: list[str] = []
    file: str = ""


@lru_cache(maxsize=4096)
def _fold_char(c: str) -> str:
    if c.isspace():
        return " "
    c = _INVISIBLE.sub("", c)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", c).casefold())


def _extends(c: str) -> bool:
    """Whether a character is written onto the one before it: combining marks and conjoining jamo."""
    return unicodedata.category(c)[0] == "M" or "\u1160" <= c <= "\u11ff"


def fold(text: str) -> tuple[str, list[int] | None]:
    """The folded text and, for each of its characters, where that begins in `text` (None: the same place)."""
    if text.isascii() and "  " not in text and not _ODD_SPACE.search(text):
        return text.lower(), None
    out: list[str] = []
    at: list[int] = []
    i = 0
    while i < len(text):
        j = i + 1
        while j < len(text) and not text[j].isascii() and _extends(text[j]) and j - i < 8:
            j += 1
        piece = _fold_char(text[i:j])
        if piece.startswith(" ") and out and out[-1] == " ":
            piece = piece.lstrip(" ")
        out.extend(piece)
        at.extend([i] * len(piece))
        i = j
    at.append(len(text))
    return "".join(out), at


def _folded(text: str) -> str:
    """The folded text without a way back, white space as it was: at the speed of the C library."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold())


_INVISIBLE = re.compile(
    "[\u00ad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0001-\U000e007f]"
)
_ODD_SPACE = re.compile(r"[\t\n\r\f\v\x1c-\x1f]")


def _automaton(words: Iterable[str]) -> ahocorasick.Automaton:
    automaton = ahocorasick.Automaton()
    for word in sorted(words):
        automaton.add_word(word, len(word))
    automaton.make_automaton()
    return automaton


def _is_word(c: str) -> bool:
    return (c.isalnum() or c == "_") and not _UNSPACED.match(c)


class Denylist(Check):
    """Finds listed terms; every finding has the label `term`, so that no ruling repeats the list."""

    id = "denylist"
    needs = frozenset({"input", "output"})
    reach = 256
    lookback = 1
    Config = DenylistOptions

    @classmethod
    def pin(cls, options: dict[str, Any]) -> dict[str, Any]:
        """The terms of `file` become `terms`."""
        if not options.get("file"):
            return options
        return {
            **{k: v for k, v in options.items() if k != "file"},
            "terms": [*options.get("terms", ()), *_lines(options["file"])],
        }

    def __init__(self, config: DenylistOptions) -> None:
        super().__init__(config)
        terms = {fold(t)[0].strip() for t in (*config.terms, *_lines(config.file))} - {""}
        for term in terms:
            if len(term) > _LONGEST:
                raise ConfigError(
                    f"A denylist term has {len(term)} characters; at most {_LONGEST} are possible.", where="denylist.terms"
                )
        self._firsts = frozenset(t[0] for t in terms)
        self._phrases = any(" " in t for t in terms)
        self._longest = max(map(len, terms), default=0)
        self._one_word = not any(" " in t or _UNSPACED.search(t) for t in terms)
        self._automaton = _automaton(terms)
        self._first_words = _automaton(word for t in terms if (word := t.partition(" ")[0]).isascii())
        self._first_pieces = _automaton(t[: _first_piece(t)] for t in terms)

    def judge(self, sample: Sample) -> Verdict:
        """All listed terms, the longest where several begin or overlap."""
        text = sample.input or sample.output
        if not self._longest:
            return Verdict(self.id, True)
        if not self.suspects(text):
            return Verdict(self.id, True)
        folded, at = fold(text)
        spans = []
        for last, length in self._automaton.iter(folded):
            start, end = last + 1 - length, last + 1
            if _whole(folded, start, end):
                spans.append((start, end))
        if not spans:
            return Verdict(self.id, True)
        return Verdict.of(self.id, tuple(Finding("term", *_back(at, s, e, len(text))) for s, e in _longest_first(spans)))

    def quiet(self, text: str) -> bool:
        """Whether the text may be cut between any two words: neither it nor any piece of it holds a finding or begins one."""
        if not self._longest:
            return True
        if text.isascii():
            return not self._first_words or next(self._first_words.iter(text.lower()), None) is None
        if _LETTERS_IN_ONE.search(text):
            return False
        return next(self._first_pieces.iter(_folded(text)), None) is None

    def suspects(self, text: str) -> bool:
        """False only where neither the text nor any piece of it can hold a finding."""
        if not self._longest:
            return False
        folded = _folded(text)
        return next(self._automaton.iter(" ".join(folded.split()) if self._phrases else folded), None) is not None

    def settled(self, text: str) -> int:
        """How many characters of `text` no continuation can draw into a finding, or out of one."""
        if not self._longest:
            return len(text)
        if text.isascii() and not self._phrases and text[-1:].isspace():
            return len(text)
        cut = max(0, len(text) - 4 * self._longest - 8)
        ending = text[cut:]
        if not self._firsts.isdisjoint(unicodedata.normalize("NFKC", ending).casefold()):
            folded, at = fold(ending)
            first = max(0, len(folded) - self._longest)
            if self._one_word:  # only the last word can go on
                first = max(first, folded.rfind(" ") + 1)
            for i in range(first, len(folded)):
                if folded[i] in self._firsts and self._automaton.match(folded[i:]) and _begins(folded, i):
                    return cut + (at[i] if at else i)
        if not text or not _is_word(text[-1]):
            return len(text)
        return cut + max(_last_word(ending), len(ending) - 2 * self._longest)


def _first_piece(term: str) -> int:
    """How much of a term stands before the first place where a text that has it may be cut, whatever was folded to it."""
    return next((i for i, c in enumerate(term) if not _is_word(c)), len(term)) or 1


def _last_word(text: str) -> int:
    i = len(text)
    while i and _is_word(text[i - 1]):
        i -= 1
    return i


def _lines(file: str) -> list[str]:
    if not file:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(
            f"The denylist {file!r} cannot be read: {e}.", where="denylist.file", hint="Give the path of a UTF-8 text file."
        ) from e
    return [line for line in lines if not line.startswith("#")]


def _whole(folded: str, start: int, end: int) -> bool:
    """Whether no edge of the span cuts a word of a spaced script."""
    return _begins(folded, start) and not (end < len(folded) and _is_word(folded[end - 1]) and _is_word(folded[end]))


def _begins(folded: str, i: int) -> bool:
    return i == 0 or not (_is_word(folded[i]) and _is_word(folded[i - 1]))


def _longest_first(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda s: (s[0], -s[1])):
        if kept and start < kept[-1][1]:
            if end > kept[-1][1]:  # overlapping terms are one finding
                kept[-1] = (kept[-1][0], end)
            continue
        kept.append((start, end))
    return kept


def _back(at: list[int] | None, start: int, end: int, length: int) -> tuple[int, int]:
    if at is None:
        return start, end
    stop = end
    while at[stop] == at[end - 1] and at[stop] < length:
        stop += 1
    return at[start], at[stop]
