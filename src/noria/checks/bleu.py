"""BLEU (Papineni et al. 2002) as sacrebleu 2.6 computes it: tokenised by `13a`, Chinese by `zh`, exponential smoothing.

`judge` gives the sentence's score (effective order). A corpus has a score of its own, which is no mean of theirs: `counts` of an
answer add up, and `pooled` makes the score of the sums.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from noria.contracts.stage import Check, Options, Sample
from noria.contracts.verdict import Verdict
from noria.kit.words import is_chinese

ORDER = 4
_SPLIT = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
"""mteval-v13a's, after sacrebleu's `tokenizer_re`."""
# From U+2001 on: sacrebleu compares one character with "\u20000", which Python reads as U+2000 and a zero. Kept, for its scores' sake.
_ZH = re.compile(
    "([\u2001-\u2a6d\u2e80-\u2fdf\u2ff0-\u303f\u3100-\u312f\u31a0-\u31ef\u3200-\u4db5\u4e00-\u9fbb"
    "\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef])"
)


class BleuOptions(Options, frozen=True):
    """`tokenize`: `auto` takes `zh` where the expected text has Han characters, else `13a`. `pass_at`: from which score on it passes."""

    tokenize: Literal["auto", "13a", "zh"] = "auto"
    lowercase: bool = False
    pass_at: float = 0.3


class Bleu(Check):
    """Score in [0, 1] (sacrebleu's divided by 100)."""

    id = "bleu"
    needs = frozenset({"output", "expected"})
    either = False
    scope = "answer"
    Config = BleuOptions
    config: BleuOptions

    def judge(self, sample: Sample) -> Verdict:
        """The verdict on one answer."""
        score = min(1.0, _score(self.counts(sample), effective=True))  # ten 1.0s multiplied by logarithms may pass 1 by an ulp
        return Verdict(self.id, score >= self.config.pass_at, score)

    def counts(self, sample: Sample) -> tuple[float, ...]:
        """Words said, words expected, then matches and totals of 1- to 4-grams."""
        said, wanted = (self._words(text, sample.expected) for text in (sample.output, sample.expected))
        matches, totals = [], []
        for n in range(1, ORDER + 1):
            grams = Counter(zip(*(said[i:] for i in range(n)), strict=False))
            sought = Counter(zip(*(wanted[i:] for i in range(n)), strict=False))
            matches.append(float(sum((grams & sought).values())))
            totals.append(float(max(0, len(said) - n + 1)))
        return (float(len(said)), float(len(wanted)), *matches, *totals)

    def pooled(self, totals: Sequence[float]) -> float:
        """The corpus's score, from the sums of `counts`."""
        return min(1.0, _score(totals, effective=False))

    def _words(self, text: str, expected: str) -> list[str]:
        text = text.rstrip()
        if self.config.lowercase:
            text = text.lower()
        chinese = is_chinese(expected) if self.config.tokenize == "auto" else self.config.tokenize == "zh"
        return split_zh(text) if chinese else split_13a(text)


def split_13a(text: str) -> list[str]:
    """As mteval-v13a.

    >>> split_13a("Hello, world 3.5-4!")
    ['Hello', ',', 'world', '3.5', '-', '4', '!']
    """
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for name, c in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(name, c)
    return _split(f" {text} ")


def split_zh(text: str) -> list[str]:
    """Chinese by character, the rest as `13a`.

    >>> split_zh("你好 world.")
    ['你', '好', 'world', '.']
    """
    return _split(_ZH.sub(r" \1 ", text.strip()))


def _split(text: str) -> list[str]:
    for pattern, by in _SPLIT:
        text = pattern.sub(by, text)
    return text.split()


def _score(counts: Sequence[float], *, effective: bool) -> float:
    said, wanted, matches, totals = counts[0], counts[1], counts[2 : 2 + ORDER], counts[2 + ORDER :]
    if not any(matches):
        return 0.0
    logs, smooth, order = [0.0] * ORDER, 1.0, ORDER
    for n, (hit, most) in enumerate(zip(matches, totals, strict=True)):
        if most == 0:
            # sacrebleu: an order nobody could fill has precision 0, whose logarithm it sets to -9999999999
            logs[n:] = [-9999999999.0] * (ORDER - n)
            break
        if effective:
            order = n + 1
        if hit == 0:
            smooth *= 2
        logs[n] = math.log(hit / most if hit else 1 / (smooth * most))
    brevity = 1.0 if said >= wanted else math.exp(1 - wanted / said)
    return brevity * math.exp(sum(logs[:order]) / order)
