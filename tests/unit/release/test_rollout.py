"""What follows from what was seen: right as often as promised under continuous looks, and quick enough to be of use."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest
from msgspec.structs import replace

from noria.contracts.rollout import Decision, Rollout, RolloutPolicy
from noria.kit.sequential import Arm, interval
from noria.release.rollout import Seen, Tally, answers_missing, decide

HOUR = 3600 * 10**9
POLICY = RolloutPolicy(steps=(1.0, 10.0, 50.0), min_answers=200, max_regression=0.02, alpha=0.01)
RUN = Rollout("r", "app", "a", "b", "r1:a", "r1:b", POLICY, "running", step_began_ns=1)


def seen(base: tuple[int, float], other: tuple[int, float], step: int | None = None, **more: object) -> Seen:
    arms = [Tally(n, total, n, 0) for n, total in (base, other)]
    return Seen(*arms, other[0] if step is None else step, **more)


def look(s: Seen, run: Rollout = RUN, at: int = 2) -> Decision:
    return decide(run, s, at)


def test_without_answers_it_waits_and_says_for_how_many() -> None:
    d = look(seen((0, 0), (0, 0)))
    assert (d.action, d.evidence["more"]) == ("hold", 200)
    assert "200 more judged answers of b" in d.says


def test_a_step_needs_its_own_answers_and_is_left_as_soon_as_it_has_them() -> None:
    assert look(seen((5000, 4000), (900, 720), step=199)).action == "hold"
    d = look(seen((5000, 4000), (900, 720), step=200))
    assert d.action == "advance"
    assert "10 % of the traffic" in d.says


def test_harm_is_acted_on_at_once_whatever_the_step_still_needs() -> None:
    d = look(seen((5000, 4500), (60, 20), step=60))
    assert d.action == "roll_back"
    assert d.evidence["harm"] >= d.evidence["needed"] == 100
    assert "33.3 % against 90.0 %" in d.says


def test_failures_are_harm_even_where_nothing_is_judged() -> None:
    arms = Tally(0, 0, 2000, 4), Tally(0, 0, 40, 20)
    d = decide(RUN, Seen(*arms), 2)
    assert d.action == "roll_back"
    assert "50.0 % of its requests fail, 0.2 %" in d.says
    assert decide(RUN, Seen(arms[0], Tally(0, 0, 40, 1)), 2).action == "hold"


def test_promotion_needs_an_interval_that_excludes_the_regression() -> None:
    last = replace(RUN, step=2)
    few = look(seen((3000, 2400), (3000, 2400)), last)
    assert few.action == "hold"
    assert few.evidence["more"] > 3000
    assert f"about {few.evidence['more']} more" in few.says
    enough = look(seen((90_000, 72_000), (90_000, 72_000)), last)
    assert enough.action == "promote"
    assert enough.evidence["interval"][0] > -0.02
    assert look(seen((90_000, 72_000), (90_000, 72_000)), replace(RUN, step=1)).action == "advance", "not before the last step"


def test_the_estimate_of_what_is_missing_is_what_it_takes() -> None:
    base, other = Arm(4000, 3200), Arm(1000, 800)
    more = answers_missing(base, other, POLICY)
    times = (1000 + more) / 1000
    assert interval(Arm(int(4000 * times), 3200 * times), Arm(1000 + more, 800 * times), 0.01)[0] == pytest.approx(
        -0.02, abs=0.002
    )
    assert answers_missing(base, Arm(1000, 770), POLICY) == 0, "worse than allowed: no number of answers would do"
    assert "no number of answers will" in look(seen((4000, 3200), (1000, 778)), replace(RUN, step=2)).says


def test_patience_ends_and_leaves_it_to_a_person() -> None:
    late = RUN.step_began_ns + 73 * HOUR
    d = look(seen((10, 8), (10, 8)), at=late)
    assert d.action == "give_up"
    assert "Inconclusive after 73.0 h" in d.says
    assert look(seen((10, 8), (10, 8)), at=RUN.step_began_ns + 71 * HOUR).action == "hold"


def test_scores_between_0_and_1_and_sums_that_rounding_has_moved_are_taken() -> None:
    assert decide(RUN, Seen(Tally(3, 3.0000000001, 3, 0), Tally(3, 1.5, 3, 0), 3), 2).action == "hold"


class Run:
    """One simulated rollout: its steps, looked at after every few answers of the candidate."""

    def __init__(self, good: float, bad: float, policy: RolloutPolicy, rng: np.random.Generator, every: int = 7) -> None:
        self.good, self.bad, self.policy, self.rng, self.every = good, bad, policy, rng, every

    def go(self, most: int) -> tuple[str, int]:
        """(`promote`, `roll_back` or `hold`, answers of the candidate by then)."""
        run, base, other, step = replace(RUN, policy=self.policy), (0, 0.0), (0, 0.0), 0
        while other[0] < most:
            share = self.policy.steps[run.step] / 100
            n, m = self.every, min(3000, max(1, round(self.every * (1 - share) / share)))
            base = base[0] + m, base[1] + float(self.rng.binomial(m, self.good))
            other, step = (other[0] + n, other[1] + float(self.rng.binomial(n, self.bad))), step + n
            d = decide(run, seen(base, other, step), 2)
            if d.action in ("promote", "roll_back"):
                return d.action, other[0]
            if d.action == "advance":
                run, step = replace(run, step=run.step + 1), 0
        return "hold", other[0]


@pytest.mark.parametrize(
    ("runs", "most"),
    [(12, 0.0), pytest.param(2400, 0.01, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
    ids=["1/200", "full"],
)
def test_a_candidate_as_good_as_the_current_release_is_not_rolled_back(runs: int, most: float) -> None:
    rng = np.random.default_rng(20261122)
    policy = replace(POLICY, min_answers=60, max_regression=0.5)
    wrong = 0
    for _ in range(runs):
        mean = float(rng.uniform(0.1, 0.95))
        wrong += Run(mean, mean, policy, rng).go(400)[0] == "roll_back"
    print(f"false rollbacks: {wrong} of {runs}")
    assert wrong / runs <= most


@pytest.mark.parametrize(
    ("good", "runs"),
    [
        (0.9, 15),
        pytest.param(0.9, 400, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param(0.85, 400, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_a_drop_of_ten_points_is_caught_within_300_answers_of_the_canary(good: float, runs: int) -> None:
    rng = np.random.default_rng(7)
    found = [Run(good, good - 0.1, POLICY, rng).go(3000) for _ in range(runs)]
    print(f"median {median(n for _, n in found)}, largest {max(n for _, n in found)}")
    assert {what for what, _ in found} == {"roll_back"}
    assert median(n for _, n in found) <= 300


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_candidate_that_is_worse_than_allowed_is_not_promoted() -> None:
    rng = np.random.default_rng(3)
    policy = replace(POLICY, min_answers=50, max_regression=0.05, steps=(50.0,))
    wrong = sum(Run(0.8, 0.74, policy, rng, every=50).go(4000)[0] == "promote" for _ in range(300))
    assert wrong / 300 <= policy.alpha
