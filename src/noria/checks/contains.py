"""The answer mentions what it should: the expected text, or given terms, and none that it must not. Case and width do not count."""

from __future__ import annotations

from noria.contracts.stage import Check, Options, Sample
from noria.contracts.verdict import Verdict
from noria.kit.words import folded


class ContainsOptions(Options, frozen=True):
    """`all`: each must occur. `any`: one at least. `none`: none may. Without `all` and `any`, the row's expected text must."""

    all: list[str] = []
    any: list[str] = []
    none: list[str] = []


class Contains(Check):
    """Score: which share of what must occur does; 0 where a term of `none` does."""

    id = "contains"
    needs = frozenset({"output", "expected"})
    either = False
    scope = "answer"
    Config = ContainsOptions
    config: ContainsOptions

    def judge(self, sample: Sample) -> Verdict:
        """The verdict on one answer."""
        text = folded(sample.output)
        wanted = self.config.all or ([] if self.config.any else [sample.expected])
        met = [folded(term) in text for term in wanted]
        if self.config.any:
            met.append(any(folded(term) in text for term in self.config.any))
        if any(folded(term) in text for term in self.config.none):
            return Verdict(self.id, False, 0.0, reason="a term that must not occur does")
        score = sum(met) / len(met)
        return Verdict(self.id, score == 1.0, score)
