"""What follows from what a candidate's answers were worth so far: one pure function, asked as often as one likes.

Harm is an e-process (`kit.sequential.evidence_of_drop`), promotion an always-valid interval, so that looking every second
costs nothing of what they promise (docs/explanation/rollouts.md). Both arms are those of the same time: answers from before
the rollout are not the current release's, for traffic changes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.rollout import Decision, Look, Rollout, RolloutPolicy
from noria.kit.sequential import Arm, evidence_of_drop, interval

MOST_MORE = 1_000_000
"""Above so many further answers an estimate says no more than "more than that"."""
_HOUR_NS = 3600 * 1_000_000_000


class Tally(msgspec.Struct, frozen=True):
    """What one release has given since the rollout began: judged answers with the sum of their scores in [0, 1]; requests that
    were answered or failed by our fault, and how many failed.
    """

    judged: int = 0
    total: float = 0.0
    requests: int = 0
    failed: int = 0

    @property
    def scores(self) -> Arm:
        """The judged answers as a stream of scores."""
        return Arm(self.judged, min(self.total, float(self.judged)))

    @property
    def served(self) -> Arm:
        """The requests as a stream of 1 (answered) and 0 (failed)."""
        return Arm(self.requests, float(self.requests - self.failed))


class Seen(msgspec.Struct, frozen=True):
    """Everything that a decision is made on."""

    stable: Tally = Tally()
    candidate: Tally = Tally()
    step_judged: int = 0
    """Judged answers of the candidate since the step began."""


def decide(rollout: Rollout, seen: Seen, now_ns: int) -> Decision:
    """The decision on a running rollout. Its `evidence` holds every number that it rests on."""
    policy = rollout.policy
    base, other = seen.stable.scores, seen.candidate.scores
    harm = evidence_of_drop(base, other)
    failing = evidence_of_drop(seen.stable.served, seen.candidate.served, policy.error_rate)
    evidence: dict[str, Any] = {
        "stable": msgspec.to_builtins(seen.stable),
        "candidate": msgspec.to_builtins(seen.candidate),
        "step": rollout.step,
        "step_judged": seen.step_judged,
        "harm": _rounded(harm),
        "failing": _rounded(failing),
        "needed": 1 / policy.alpha,
    }
    if base.n and other.n:
        evidence["difference"] = round(other.mean - base.mean, 6)

    def so(action: Any, says: str) -> Decision:
        return Decision(rollout.id, now_ns, action, says, evidence)

    if failing >= 1 / policy.alpha:
        return so("roll_back", _failing(seen, policy, failing))
    if harm >= 1 / policy.alpha:
        drop = f"{policy.metric} is {_share(other.mean)} against {_share(base.mean)}"
        return so(
            "roll_back", f"{drop} ({other.n} and {base.n} judged): evidence of harm {_times(harm)}, {1 / policy.alpha:g} acts."
        )
    missing = policy.min_answers - seen.step_judged
    if missing > 0:
        waits = f"no harm seen; the step needs {missing} more judged answers of {rollout.candidate}"
        return _wait(so, rollout, now_ns, waits, {"more": missing})
    if rollout.step + 1 < len(policy.steps):
        onwards = f"{seen.step_judged} judged answers without evidence of harm ({_times(harm)})"
        return so("advance", f"{onwards}: on to {policy.steps[rollout.step + 1]:g} % of the traffic.")
    low, high = interval(base, other, policy.alpha)
    evidence["interval"] = [round(low, 6), round(high, 6)]
    bounds = f"{policy.metric} differs by {other.mean - base.mean:+.3f}, always-valid interval [{low:+.3f}, {high:+.3f}]"
    if low > -policy.max_regression:
        return so("promote", f"{bounds}: a drop above {policy.max_regression:g} is excluded.")
    more = answers_missing(base, other, policy)
    known = f"about {more} more judged answers" if more else "no number of answers will, if it stays like this"
    return _wait(so, rollout, now_ns, f"{bounds} does not exclude a drop of {policy.max_regression:g}; {known}", {"more": more})


def known_by(rollout: Rollout, seen: Seen, now_ns: int) -> Look:
    """What is known of the difference, whether or not anything follows from it."""
    base, other = seen.stable.scores, seen.candidate.scores
    low, high = interval(base, other, rollout.policy.alpha)
    harm = _rounded(evidence_of_drop(base, other))
    means = (round(base.mean, 6), round(other.mean, 6))
    return Look(now_ns, rollout.step, base.n, means[0], other.n, means[1], round(low, 6), round(high, 6), harm)


def answers_missing(base: Arm, other: Arm, policy: RolloutPolicy) -> int:
    """How many more judged answers of the candidate it would take to promote it, were both releases to go on as they did, in the
    proportion that they are judged in now; 0 where no number would (or more than a million).
    """
    if not base.n or not other.n or other.mean - base.mean <= -policy.max_regression:
        return 0

    def enough(times: float) -> bool:
        grown = [Arm(round(a.n * times), min(a.total * times, float(round(a.n * times)))) for a in (base, other)]
        return interval(grown[0], grown[1], policy.alpha)[0] > -policy.max_regression

    high = 2.0
    while not enough(high):
        high *= 2
        if other.n * high > MOST_MORE:
            return 0
    low = high / 2
    for _ in range(5):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return max(1, round(other.n * (high - 1)))


def _wait(so: Any, rollout: Rollout, now_ns: int, why: str, more: dict[str, Any]) -> Decision:
    """Hold; past the policy's patience give up and leave it to a person."""
    waited = (now_ns - rollout.step_began_ns) / _HOUR_NS
    late = waited > rollout.policy.patience_hours
    decision: Decision = (
        so("give_up", f"Inconclusive after {waited:.1f} h: {why}.") if late else so("hold", why[0].upper() + why[1:] + ".")
    )
    decision.evidence.update(more)
    return decision


def _failing(seen: Seen, policy: RolloutPolicy, e: float) -> str:
    rates = [_share(t.failed / max(1, t.requests)) for t in (seen.candidate, seen.stable)]
    return (
        f"{rates[0]} of its requests fail, {rates[1]} of the current release's, "
        f"{_share(policy.error_rate)} more are allowed: evidence {_times(e)}, {1 / policy.alpha:g} acts."
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _times(e: float) -> str:
    return f"{e:.3g}" if e < 1e6 else "above a million"


def _rounded(e: float) -> float:
    """Six digits, and no more than JSON readers can take."""
    return float(f"{min(e, 1e300):.6g}")
