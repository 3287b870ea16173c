"""Intervals cover what they say they cover, and tests are wrong as often as they may be: by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noria.kit.stats import Bounds, benjamini_hochberg, bootstrap, items_needed, mcnemar, newcombe_paired, paired_p, wilson


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_a_wilson_interval_holds_its_own_figure_and_stays_within_0_and_1(n: int, share: float) -> None:
    k = round(n * share)
    found = wilson(k, n)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


def test_nothing_known_is_said_as_such() -> None:
    assert wilson(0, 0) == Bounds(0.0, 0.0, 1.0)
    assert newcombe_paired(0, 0, 0, 0) == Bounds(0.0, -1.0, 1.0)
    assert bootstrap([]).high == math.inf
    assert mcnemar(0, 0) == paired_p([]) == paired_p([0.0, 0.0]) == 1.0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="5 successes of 4"):
        wilson(5, 4)
    with pytest.raises(ValueError, match="confidence of 95"):
        wilson(1, 4, 95)


def test_newcombe_gives_the_figures_of_his_paper() -> None:
    # Newcombe 1998b, table II, method 10, example of 36/12/2/0: difference as second minus first
    found = newcombe_paired(36, 12, 2, 0)
    assert found.value == pytest.approx(-0.2)
    assert (found.low, found.high) == pytest.approx((-0.3425, -0.0533), abs=0.005)


def test_adjusted_p_values_keep_their_order_and_never_shrink() -> None:
    ps = [0.2, 0.001, 0.04, 0.04, 0.9]
    adjusted = benjamini_hochberg(ps)
    assert all(a >= p for a, p in zip(adjusted, ps, strict=True))
    assert sorted(range(5), key=lambda i: (ps[i], i)) == sorted(range(5), key=lambda i: (adjusted[i], ps[i], i))
    assert benjamini_hochberg([]) == []


def test_more_items_are_needed_for_a_finer_distance() -> None:
    assert items_needed(0.5, 0.05) == pytest.approx(4 * items_needed(0.5, 0.1), abs=4)
    assert items_needed(0.5, 0.1) == 263
    assert items_needed(0.5, 0) == 0


def coverage(runs: int) -> dict[str, float]:
    """How often each interval holds the truth."""
    rng = np.random.default_rng(20261122)
    within: dict[str, float] = {}
    for n, p in ((50, 0.8), (200, 0.9), (100, 0.5)):
        found = [wilson(int(k), n) for k in rng.binomial(n, p, runs)]
        within[f"wilson {n} {p}"] = float(np.mean([b.low <= p <= b.high for b in found]))
    pairs = [newcombe_paired(*map(int, rng.multinomial(200, [0.7, 0.1, 0.12, 0.08]))) for _ in range(runs)]
    within["newcombe"] = float(np.mean([b.low <= 0.02 <= b.high for b in pairs]))
    means = [bootstrap(rng.beta(5, 2, 120), resamples=1000, seed=i) for i in range(runs)]
    within["bca"] = float(np.mean([b.low <= 5 / 7 <= b.high for b in means]))
    return within


@pytest.mark.parametrize(
    ("runs", "low", "high"),
    [(300, 0.91, 0.985), pytest.param(10_000, 0.94, 0.96, marks=pytest.mark.slow)],
    ids=["1/33", "full"],
)
def test_intervals_of_95_per_cent_hold_the_truth_in_95_per_cent(runs: int, low: float, high: float) -> None:
    for name, share in coverage(runs).items():
        assert low <= share <= high, (name, share)


def test_tests_are_seldom_wrong_where_there_is_nothing() -> None:
    rng = np.random.default_rng(4)
    assert np.mean([mcnemar(int(k), 30 - int(k)) <= 0.05 for k in rng.binomial(30, 0.5, 1000)]) <= 0.06
    assert np.mean([paired_p(rng.normal(0, 1, 60), resamples=300, seed=i) <= 0.05 for i in range(200)]) <= 0.09


def test_tests_see_what_is_there() -> None:
    rng = np.random.default_rng(5)
    assert paired_p(rng.normal(0.6, 1, 100)) < 0.001
    assert mcnemar(30, 5) < 0.001
