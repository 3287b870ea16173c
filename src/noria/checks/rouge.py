"""ROUGE-L (Lin 2004): the longest common subsequence of the words of answer and expectation, as an F-measure.

Chinese, Japanese and Thai are compared by character. The subsequence is found by bits (Hyyrö 2004), so that 10,000 words take
some milliseconds; of a longer text the first 20,000 words count.
"""

from __future__ import annotations

from noria.contracts.stage import Check, Options, Sample
from noria.contracts.verdict import Verdict
from noria.kit.words import folded, tokens

MOST = 20_000


class RougeOptions(Options, frozen=True):
    """`pass_at`: from which score on it passes."""

    pass_at: float = 0.5


class Rouge(Check):
    """Score in [0, 1]; 1 = the same words in the same order."""

    id = "rouge"
    needs = frozenset({"output", "expected"})
    either = False
    scope = "answer"
    Config = RougeOptions
    config: RougeOptions

    def judge(self, sample: Sample) -> Verdict:
        """The verdict on one answer."""
        said, wanted = (tokens(folded(text))[:MOST] for text in (sample.output, sample.expected))
        score = 2 * common(said, wanted) / (len(said) + len(wanted)) if said and wanted else float(said == wanted)
        return Verdict(self.id, score >= self.config.pass_at, score)


def common(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence.

    >>> common(list("kitten"), list("sitting"))
    4
    """
    at: dict[str, int] = {}
    for i, word in enumerate(first):
        at[word] = at.get(word, 0) | 1 << i
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        met = row & at.get(word, 0)
        row = (row + met | row - met) & every
    return len(first) - row.bit_count()
