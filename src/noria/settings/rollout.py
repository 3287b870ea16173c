"""`apps.<app>.rollout`: how a candidate gets traffic, as it is written and as `release.rollout` has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from noria.contracts.rollout import RolloutPolicy
from noria.settings.document import Document
from noria.settings.problem import Path, Problem, unknown
from noria.settings.shape import Strict


def _rising(steps: list[float]) -> list[float]:
    if any(a >= b for a, b in pairwise(steps)) or steps[0] <= 0 or steps[-1] > 100:
        raise ValueError("Steps are percent of the traffic, each above the one before: [1, 10, 50]")
    return steps


class PolicySettings(Strict):
    """A canary's share rises step by step while nothing speaks against it, and falls to 0 as soon as something does."""

    steps: Annotated[list[float], Field(min_length=1), AfterValidator(_rising)] = [1.0, 10.0, 50.0]
    """Percent of the app's traffic, rising; after the last one it is promoted to all of it."""
    metric: str = Field(default="thumbs_up", min_length=1)
    """What answers are judged by: a metric of the feedback (`thumbs_up`, …), a check of both releases' guard (its id: the share of
    answers in which it found nothing), or `answered` (the share of requests that did not fail)."""
    max_regression: float = Field(default=0.02, gt=0, lt=1)
    """Promotion needs an always-valid interval that excludes a drop of the metric larger than this."""
    min_answers: int = Field(default=200, ge=1)
    """Judged answers of the candidate that each step needs."""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """How often, at most, a candidate as good as the current release is rolled back, and one that is worse by more than
    `max_regression` is promoted."""
    error_rate: float = Field(default=0.05, ge=0, lt=1)
    """By how much the share of failed requests may exceed the current release's."""
    patience_hours: float = Field(default=72.0, gt=0)
    """After so long at a step without a verdict it is `inconclusive`, and waits for a person."""

    def policy(self) -> RolloutPolicy:
        """As the rollout has it."""
        return RolloutPolicy(**{**self.model_dump(exclude={"canary"}), "steps": tuple(self.steps)})


class RolloutSettings(PolicySettings):
    """A canary: its share rises step by step while nothing speaks against it, and falls to 0 as soon as something does."""

    canary: str
    """The release that is the candidate."""


def problems(doc: Document, app: Mapping[str, Any], path: Path, releases: list[str]) -> Iterator[Problem]:
    """The candidate must be one of several releases, and not the one that has the traffic at the start."""
    rollout = app.get("rollout")
    candidate = rollout.get("canary") if isinstance(rollout, dict) else None
    if not isinstance(candidate, str):
        return
    at = (*path, "rollout", "canary")
    weights = app.get("weights")
    if app.get("releases") is None:
        yield doc.problem(at, "An app with a single release has no candidate.", "Write `releases` with two of them.")
    elif candidate not in releases:
        yield doc.problem(at, *unknown("release", candidate, releases))
    elif isinstance(weights, dict) and weights.get(candidate):
        what = f"The candidate {candidate!r} cannot have a start share of its own: the rollout gives it its traffic."
        yield doc.problem((*path, "weights", candidate), what, "Take it out of `weights`.")
    elif weights is None and releases[:1] == [candidate]:
        what = f"The candidate {candidate!r} is the first release, which has all of the traffic at the start."
        yield doc.problem(at, what, "Put the current release first.")
