"""Overlap of the words of answer and expectation: the harmonic mean of precision and recall (SQuAD, Rajpurkar et al. 2016).

Chinese, Japanese and Thai are compared by character. Punctuation and case do not count.
"""

from __future__ import annotations

from collections import Counter

from noria.contracts.stage import Check, Options, Sample
from noria.contracts.verdict import Verdict
from noria.kit.words import folded, tokens, without_articles, without_punctuation


class F1Options(Options, frozen=True):
    """`articles`: a, an, the count (SQuAD's scorer leaves them out). `pass_at`: from which score on it passes."""

    articles: bool = False
    pass_at: float = 0.5


class F1(Check):
    """Score in [0, 1]; 1 = the same words as often."""

    id = "f1"
    needs = frozenset({"output", "expected"})
    either = False
    scope = "answer"
    Config = F1Options
    config: F1Options

    def judge(self, sample: Sample) -> Verdict:
        """The verdict on one answer; two empty texts are the same."""
        said, wanted = self._words(sample.output), self._words(sample.expected)
        if not said or not wanted:
            score = float(said == wanted)
        else:
            common = sum((Counter(said) & Counter(wanted)).values())
            score = 2 * common / (len(said) + len(wanted))
        return Verdict(self.id, score >= self.config.pass_at, score)

    def _words(self, text: str) -> list[str]:
        plain = without_punctuation(folded(text))
        return tokens(plain if self.config.articles else without_articles(plain))
