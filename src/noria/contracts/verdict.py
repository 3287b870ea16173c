"""What a check says. Checks observe; what follows from a Verdict is the guard's business."""

from __future__ import annotations

from typing import Literal

import msgspec

Field = Literal["input", "output", "context", "expected"]
Cost = Literal["cpu", "model"]
Scope = Literal["span", "sentence", "answer"]
Action = Literal["allow", "flag", "mask", "block"]


class Finding(msgspec.Struct, frozen=True, array_like=True):
    """One thing found: `[start, end)` in characters (Python indices) of the text that was judged."""

    label: str
    start: int
    end: int
    score: float = 1.0


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """Judgement of one check on one text. `score` is in [0, 1], higher = more of what it looks for."""

    check: str
    passed: bool
    score: float = 0.0
    findings: tuple[Finding, ...] = ()
    reason: str = ""

    @classmethod
    def of(cls, check: str, findings: tuple[Finding, ...]) -> Verdict:
        """The verdict of a check that passes when it finds nothing."""
        score = max((f.score for f in findings), default=0.0)
        return cls(check, not findings, score, findings)


class Ruling(msgspec.Struct, frozen=True, array_like=True):
    """A Verdict and what was done about it, where: the row that a trace keeps.

    `place` names the text: `input.2.0` is part 0 of message 2, `output.0.content` the content of
    choice 0. Spans are of the text *before* any action. `took_ns` is the time of the check alone.
    """

    verdict: Verdict
    action: Action
    place: str
    took_ns: int = 0
