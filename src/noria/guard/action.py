"""What follows from a judgement: replace spans, or refuse. Checks observe; here is where text changes.

Overlapping findings become one span under the label of the longest (then strongest, first, alphabetical)
of them: nothing that any check found is left over beside a narrower mask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from noria.contracts.error import Blocked
from noria.contracts.release import GuardRule
from noria.contracts.verdict import Finding, Verdict

Replace = Callable[[str, str], str]
"""(label, original) → what stands in its place."""

_NOT_LABEL = re.compile(r"[^A-Z0-9]+")


def word_of(label: str) -> str:
    """A label as it stands in a placeholder.

    >>> word_of("openai_key")
    'OPENAI_KEY'
    """
    return _NOT_LABEL.sub("_", label.upper()).strip("_") or "MASKED"


def findings_of(verdict: Verdict, length: int) -> tuple[Finding, ...]:
    """What a failed verdict found; the whole text where it names no span (fail closed)."""
    if verdict.passed:
        return ()
    return verdict.findings or (Finding(verdict.check, 0, length, verdict.score),)


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """Disjoint findings that cover exactly what the given ones cover, in order."""
    merged: list[Finding] = []
    group: list[Finding] = []
    end = -1
    for f in sorted(findings, key=lambda f: (f.start, f.end, f.label)):
        if group and f.start >= end:
            merged.append(_as_one(group, end))
            group, end = [], -1
        if f.end > f.start:
            group.append(f)
            end = max(end, f.end)
    if group:
        merged.append(_as_one(group, end))
    return merged


def _as_one(group: Sequence[Finding], end: int) -> Finding:
    first = min(group, key=lambda f: (f.start - f.end, -f.score, f.start, f.label))
    return Finding(first.label, group[0].start, end, max(f.score for f in group))


def replace(text: str, findings: Iterable[Finding], by: Replace) -> str:
    """The text with each (merged) finding replaced."""
    out: list[str] = []
    at = 0
    for f in merge(findings):
        out += (text[at : f.start], by(f.label, text[f.start : f.end]))
        at = f.end
    out.append(text[at:])
    return "".join(out)


def erased(label: str, _original: str) -> str:
    """An irreversible placeholder: `[EMAIL]`."""
    return f"[{word_of(label)}]"


def scrub(text: str, findings: Iterable[Finding]) -> str:
    """The text with its findings replaced irreversibly, for what is stored.

    >>> scrub("to a@b.io", (Finding("email", 3, 9),))
    'to [EMAIL]'
    """
    return replace(text, findings, erased)


class Vault:
    """Reversible placeholders of one exchange: `[EMAIL_1]`, the same original always by the same one.

    A placeholder that already stands somewhere in `texts`, all text of the exchange, is never given
    out, so putting the originals back is exact. `[` and `]` stand only at its ends, so it cannot come
    about by chance where two texts meet.
    """

    def __init__(self, texts: Callable[[], Iterable[str]], pairs: Sequence[tuple[str, str]] = ()) -> None:
        self._texts = texts
        self._taken: str | None = None
        self._last: dict[str, int] = {}
        self._by_original = {original: placeholder for placeholder, original in pairs}

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(placeholder, original), in the order in which they were given out."""
        return tuple((p, o) for o, p in self._by_original.items())

    def placeholder(self, label: str, original: str) -> str:
        """What stands for `original`; the first label that it was found under names it."""
        known = self._by_original.get(original)
        if known is not None:
            return known
        if self._taken is None:
            self._taken = "\n".join((*self._texts(), *self._by_original.values()))
        word = word_of(label)
        n = self._last.get(word, 0) + 1
        while f"[{word}_{n}]" in self._taken:
            n += 1
        self._last[word] = n
        self._by_original[original] = f"[{word}_{n}]"
        return self._by_original[original]


def refusal(rule: GuardRule, verdict: Verdict, side: str) -> Blocked:
    """The error of a `block`: it names the check and the labels, never what was matched."""
    labels = ", ".join(sorted({f.label for f in verdict.findings}))
    found = f" ({labels})" if labels else ""
    text = rule.message or f"The {side} was refused by the guard {rule.check!r}{found}."
    return Blocked(text, check=rule.check, side=side)
