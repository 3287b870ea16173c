"""The answer has a given form: a regular expression (Python's) occurs in it, or matches the whole of it."""

from __future__ import annotations

import re

from noria.contracts.error import ConfigError
from noria.contracts.stage import Check, Options, Sample
from noria.contracts.verdict import Verdict


class RegexOptions(Options, frozen=True):
    """`whole`: nothing may stand around it but white space. `ignore_case`: capitals do not count. `absent`: it must not occur."""

    pattern: str
    whole: bool = False
    ignore_case: bool = False
    absent: bool = False


class Regex(Check):
    """Score 1 where the answer has the form, else 0."""

    id = "regex"
    needs = frozenset({"output"})
    either = False
    scope = "answer"
    Config = RegexOptions
    config: RegexOptions

    def __init__(self, config: RegexOptions) -> None:
        super().__init__(config)
        try:
            self._pattern = re.compile(config.pattern, re.IGNORECASE if config.ignore_case else 0)
        except re.error as e:
            raise ConfigError(f"{config.pattern!r} is no regular expression: {e}.", where="regex.pattern") from e

    def judge(self, sample: Sample) -> Verdict:
        """The verdict on one answer."""
        text = sample.output
        found = self._pattern.fullmatch(text.strip()) if self.config.whole else self._pattern.search(text)
        right = (found is None) == self.config.absent
        return Verdict(self.id, right, float(right))
