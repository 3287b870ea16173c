"""The answer is neither too short nor too long, in characters or in words (characters of scripts without spaces)."""

from __future__ import annotations

from typing import Literal

from noria.contracts.error import ConfigError
from noria.contracts.stage import Check, Options, Sample
from noria.contracts.verdict import Verdict
from noria.kit.words import folded, tokens


class LengthOptions(Options, frozen=True):
    """`least`, `most`: bounds, both included; `most` 0 = none. `unit`: what is counted."""

    least: int = 0
    most: int = 0
    unit: Literal["characters", "words"] = "characters"


class Length(Check):
    """Score 1 within the bounds, else 0."""

    id = "length"
    needs = frozenset({"output"})
    either = False
    scope = "answer"
    Config = LengthOptions
    config: LengthOptions

    def __init__(self, config: LengthOptions) -> None:
        super().__init__(config)
        if config.least < 0 or config.most < 0 or 0 < config.most < config.least:
            raise ConfigError(f"No length is at least {config.least} and at most {config.most}.", where="length")

    def judge(self, sample: Sample) -> Verdict:
        """The verdict on one answer."""
        text = sample.output.strip()
        n = len(text) if self.config.unit == "characters" else len(tokens(folded(text)))
        right = n >= self.config.least and (self.config.most == 0 or n <= self.config.most)
        return Verdict(self.id, right, float(right), reason="" if right else f"{n} {self.config.unit}")
