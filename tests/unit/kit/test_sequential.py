"""The always-valid comparison: right as often as it says under continuous peeking, and quick enough to be of use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.kit.sequential import Arm, evidence_of_drop, interval

ALPHA = 0.01
LEVEL = 1 / ALPHA


def test_no_scores_are_no_evidence() -> None:
    assert evidence_of_drop(Arm(0, 0), Arm(0, 0)) == 1.0
    assert evidence_of_drop(Arm(1000, 900), Arm(0, 0)) <= 1.0
    assert interval(Arm(0, 0), Arm(0, 0)) == (-1.0, 1.0)


def test_sums_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot sum up to 11"):
        evidence_of_drop(Arm(10, 11), Arm(10, 5))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
def test_the_interval_holds_the_difference_that_was_seen_and_narrows_with_its_level(n: int, m: int, p: float, q: float) -> None:
    base, other = Arm(n, round(n * p)), Arm(m, round(m * q))
    low, high = interval(base, other, 0.05)
    seen = other.mean - base.mean
    assert low <= seen + 1e-6
    assert high >= seen - 1e-6
    wide = interval(base, other, 0.001)
    assert wide[0] <= low + 1e-6
    assert wide[1] >= high - 1e-6
    assert interval(other, base, 0.05) == pytest.approx((-high, -low), abs=1e-6)


def test_an_interval_that_excludes_nothing_and_one_that_excludes_a_drop() -> None:
    assert interval(Arm(60, 50), Arm(20, 17))[0] < -0.1
    assert interval(Arm(2000, 1700), Arm(2000, 1710))[0] > -0.06


def test_a_margin_forgives_a_drop_within_it() -> None:
    base, other = Arm(4000, 3400), Arm(4000, 3200)
    assert evidence_of_drop(base, other) > LEVEL
    assert evidence_of_drop(base, other, margin=0.1) < 1


def same(runs: int, *, looks: int = 30) -> float:
    """Share of A/A rollouts that are rolled back, looked at again and again; scores of yes and no, and between."""
    rng = np.random.default_rng(20261122)
    wrong = 0
    for run in range(runs):
        mean, share = rng.uniform(0.05, 0.97), rng.choice([0.01, 0.1, 0.25, 0.5])
        draw = (lambda n, m=mean: rng.binomial(n, m)) if run % 3 else (lambda n, m=mean: rng.beta(4 * m, 4 * (1 - m), n).sum())
        base, other = Arm(0, 0.0), Arm(0, 0.0)
        for _ in range(looks):
            a = int(rng.integers(3, 50))
            b = min(2000, int(a * (1 - share) / share))
            base, other = Arm(base.n + b, base.total + float(draw(b))), Arm(other.n + a, other.total + float(draw(a)))
            if evidence_of_drop(base, other) >= LEVEL:
                wrong += 1
                break
    return wrong / runs


@pytest.mark.parametrize(
    ("runs", "most"), [(100, 0.03), pytest.param(4000, ALPHA, marks=pytest.mark.slow)], ids=["1/40", "full"]
)
def test_nothing_is_rolled_back_for_nothing(runs: int, most: float) -> None:
    assert same(runs) <= most


def answers_until_caught(good: float, bad: float, share: float, *, runs: int) -> list[int]:
    """Answers of the canary until its drop is seen, looked at after every tenth."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(runs):
        base, other = Arm(0, 0.0), Arm(0, 0.0)
        while other.n < 3000:
            more = rng.negative_binomial(10, share)
            base = Arm(base.n + more, base.total + rng.binomial(more, good))
            other = Arm(other.n + 10, other.total + rng.binomial(10, bad))
            if evidence_of_drop(base, other) >= LEVEL:
                break
        found.append(other.n)
    return found


@pytest.mark.parametrize("runs", [30, pytest.param(400, marks=pytest.mark.slow)], ids=["1/13", "full"])
@pytest.mark.parametrize(("good", "share"), [(0.85, 0.1), (0.9, 0.25), (0.95, 0.25)])
def test_ten_points_are_caught_within_300_answers(good: float, share: float, runs: int) -> None:
    assert np.median(answers_until_caught(good, good - 0.1, share, runs=runs)) <= 300
