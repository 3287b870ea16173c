"""The answer is the expected one, after both were brought into the same form.

The form after SQuAD's official scorer (Rajpurkar et al. 2016) without its loss of articles, which is an option: NFKC, case, white
space and, unless said otherwise, punctuation do not count.
"""

from __future__ import annotations

from noria.contracts.stage import Check, Options, Sample
from noria.contracts.verdict import Verdict
from noria.kit.words import folded, without_articles, without_punctuation


class ExactOptions(Options, frozen=True):
    """`case`: capitals count. `punctuation`: it counts. `articles`: a, an, the count. `normalize` false: every character counts."""

    normalize: bool = True
    case: bool = False
    punctuation: bool = False
    articles: bool = True


class Exact(Check):
    """Score 1 where answer and expectation are the same, else 0."""

    id = "exact"
    needs = frozenset({"output", "expected"})
    either = False
    scope = "answer"
    Config = ExactOptions
    config: ExactOptions

    def judge(self, sample: Sample) -> Verdict:
        """The verdict on one answer."""
        same = self._form(sample.output) == self._form(sample.expected)
        return Verdict(self.id, same, float(same))

    def _form(self, text: str) -> str:
        if not self.config.normalize:
            return text
        form = " ".join(text.split()) if self.config.case else folded(text)
        if not self.config.punctuation:
            form = without_punctuation(form)
        if not self.config.articles:
            form = without_articles(form)
        return " ".join(form.split())
