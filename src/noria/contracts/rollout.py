"""A candidate on its way to production: gates before it sees traffic, an always-valid verdict while it does (DESIGN §1).

Every decision is kept with the evidence that it was made on.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Verdict = Literal["pass", "fail", "inconclusive"]


class GateRule(msgspec.Struct, frozen=True):
    """One declared threshold. What is not declared is not asked."""

    kind: Literal["quality", "latency", "cost", "leak", "equivalence", "dataset", "signature", "files", "pins"]
    """The last three are asked of every candidate, declared or not."""
    metric: str = ""
    suite: str = ""
    margin: float = 0.0
    """quality: the candidate may be worse by less than this (non-inferiority, absolute)."""
    ratio: float = 0.0
    """latency, cost: at most so many times the current release's; equivalence: least agreement."""
    version: str = ""
    """dataset: the version that the candidate must have been trained on."""


class Finding(msgspec.Struct, frozen=True):
    """What a gate rule found."""

    rule: GateRule
    verdict: Verdict
    says: str
    """In a sentence, with the numbers."""
    evidence: dict[str, Any] = {}
    more: int = 0
    """Items that are missing for a verdict."""


class RolloutPolicy(msgspec.Struct, frozen=True):
    """How a candidate gets traffic (`apps.<app>.rollout`)."""

    steps: tuple[float, ...] = (1.0, 10.0, 50.0)
    """Percent of the app's traffic; after the last one it is promoted."""
    metric: str = "thumbs_up"
    """Feedback metric, or the name of a check that scores answers."""
    max_regression: float = 0.02
    """Promotion needs an always-valid interval that excludes a drop larger than this."""
    min_answers: int = 200
    """Judged answers of the candidate that each step needs."""
    alpha: float = 0.01
    """Of harm (rollback) and of promotion, each."""
    error_rate: float = 0.05
    """The share of failed requests may not exceed the current release's by more than this."""
    patience_hours: float = 72.0
    """After this without a verdict: `inconclusive`, and the candidate waits at its step for a person."""


State = Literal["gated", "running", "paused", "promoted", "rolled_back", "rejected", "inconclusive", "retired"]


class Rollout(msgspec.Struct, frozen=True):
    """One candidate's way. Ids of releases, and their names within the app."""

    id: str
    app: str
    stable: str
    candidate: str
    stable_id: str
    candidate_id: str
    policy: RolloutPolicy
    state: State
    step: int = 0
    """Place in `policy.steps`."""
    began_ns: int = 0
    step_began_ns: int = 0
    """0 = the candidate has no traffic yet: its model is still being loaded."""
    ended_ns: int = 0
    findings: tuple[Finding, ...] = ()
    waived: str = ""
    """Who let it pass a failed gate, and why."""
    reason: str = ""
    by: str = ""
    """Who began it: `file`, `cli`, `refresh:<id>`."""
    before: dict[str, float] = {}
    """The app's shares of traffic when it began: what a rollback restores."""
    decisions: int = 0
    """How many decisions other than to hold there were."""


class Decision(msgspec.Struct, frozen=True):
    """One evaluation of a running rollout."""

    rollout: str
    at_ns: int
    action: Literal["hold", "advance", "promote", "roll_back", "give_up"]
    says: str
    evidence: dict[str, Any]
    """Counts of both arms, the estimate, the always-valid interval, the e-value."""


class Look(msgspec.Struct, frozen=True):
    """What was known of a rollout at one time, for whoever wants to see how it became sure. Decisions are not made on it."""

    at_ns: int
    step: int
    stable_judged: int
    stable_mean: float
    judged: int
    """Answers of the candidate that were judged since it began."""
    mean: float
    low: float
    high: float
    """Always-valid interval of the candidate's mean minus the current release's, at the policy's alpha."""
    harm: float
    """E-value."""
