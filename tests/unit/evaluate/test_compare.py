"""What is said of two releases, and when nothing is."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from noria.contracts.error import RequestError
from noria.contracts.evaluation import Comparison, Estimate, Report, Scored, Suite
from noria.evaluate.compare import compare, judged
from noria.kit import stats


def report(name: str, scores: list[dict[str, float]], *, metrics: tuple[str, ...] = ("exact",), hash: str = "q1:x") -> Report:
    items = tuple(Scored(f"{n:05}", "", "", "", "", s, 1.0) for n, s in enumerate(scores))
    return Report(name, Suite("s", "d1:x", metrics=metrics), f"r1:{name}", "app", 0, 1.0, {}, items=items, hash=hash)


def binary(name: str, *cells: tuple[int, float]) -> Report:
    return report(name, [{"exact": score} for n, score in cells for _ in range(n)])


def pair(both: int, first: int, second: int, neither: int) -> tuple[Report, Report]:
    return binary("a", (both, 1), (first, 1), (second, 0), (neither, 0)), binary(
        "b", (both, 1), (first, 0), (second, 1), (neither, 0)
    )


def test_yes_no_is_mcnemars_and_newcombes() -> None:
    (found,) = compare(*pair(60, 4, 25, 11))
    assert (found.test, found.difference.method, found.n) == ("mcnemar", "newcombe", 100)
    assert found.p == pytest.approx(stats.mcnemar(4, 25))
    assert (found.difference.value, found.difference.low, found.difference.high) == pytest.approx(
        stats.newcombe_paired(60, 4, 25, 11)
    )
    assert found.verdict == "better"
    (other,) = compare(*reversed(pair(60, 4, 25, 11)))
    assert (other.verdict, other.difference.value) == ("worse", pytest.approx(-found.difference.value))


@pytest.mark.parametrize(
    ("cells", "margin", "verdict"),
    [
        ((60, 5, 6, 29), 0.0, "need_more"),
        ((9000, 5, 6, 989), 0.0, "no_difference"),
        ((600, 12, 10, 378), 0.05, "not_worse"),
        ((40, 30, 2, 28), 0.05, "worse"),
        ((60, 8, 3, 29), 0.05, "need_more"),  # 5 points worse: no telling on which side of the margin
        ((60, 2, 20, 18), 0.05, "better"),
        ((1, 0, 0, 0), 0.05, "need_more"),
    ],
)
def test_verdicts(cells: tuple[int, int, int, int], margin: float, verdict: str) -> None:
    (found,) = compare(*pair(*cells), margins={"exact": margin} if margin else {})
    assert found.verdict == verdict
    assert (found.more > 0) == (verdict == "need_more")


def test_more_items_are_asked_for_the_closer_it_is_to_the_margin() -> None:
    more = [compare(*pair(60, drop, 4, 36 - drop), margins={"exact": 0.05})[0].more for drop in (4, 6, 8)]
    assert more == sorted(more)
    assert more[0] < more[-1]


def test_the_items_that_are_promised_suffice_nine_times_of_ten() -> None:
    rng = random.Random(1)

    def draw(n: int) -> tuple[Report, Report]:
        kinds = rng.choices(["both", "first", "second", "neither"], [0.6, 0.1, 0.1, 0.2], k=n)
        cells = [kinds.count(k) for k in ("both", "first", "second", "neither")]
        return pair(*cells)

    (begun,) = compare(*draw(40), margins={"exact": 0.05})
    assert begun.verdict == "need_more"
    plain = Comparison("exact", "a", "b", Estimate(0.0, -0.1, 0.1, 40, "newcombe"), 1.0, "mcnemar", "need_more", 0.05, n=40)
    needed = 40 + judged(plain, 0.447).more  # the true standard deviation of a difference: sqrt(0.1 + 0.1)
    told = [compare(*draw(needed), margins={"exact": 0.05})[0].verdict for _ in range(60)]
    assert sum(v in ("not_worse", "better") for v in told) >= 48, told


def test_means_are_compared_by_pairs() -> None:
    rng = random.Random(0)
    base = [rng.random() * 0.8 for _ in range(80)]
    first = report("a", [{"exact": s} for s in base])
    second = report("b", [{"exact": s + 0.1 + rng.uniform(-0.05, 0.05)} for s in base])
    (found,) = compare(first, second)
    assert (found.test, found.verdict) == ("sign_flip", "better")
    assert found.difference.low < 0.1 < found.difference.high
    assert found.difference.high - found.difference.low < 0.02, "unpaired it would be ten times as wide"


def test_equal_fractions_on_few_items_prove_nothing() -> None:
    same = report("a", [{"exact": 0.5}] * 3)
    (found,) = compare(same, replace(same, id="b"), margins={"exact": 0.05})
    assert found.verdict == "need_more"
    many = report("a", [{"exact": 0.5}] * 400)
    assert compare(many, replace(many, id="b"), margins={"exact": 0.05})[0].verdict == "not_worse"


def test_several_metrics_are_adjusted_for_being_several() -> None:
    a, b = pair(60, 8, 20, 12)
    alone = compare(a, b)[0]
    assert alone.verdict == "better"
    names = tuple(f"m{i}" for i in range(8))
    noise = dict.fromkeys(names[1:], 1.0)

    def with_noise(r: Report) -> Report:
        items = tuple(replace(s, scores={"m0": s.scores["exact"], **noise}) for s in r.items)
        return replace(r, suite=replace(r.suite, metrics=names), items=items)

    told = compare(with_noise(a), with_noise(b))
    assert told[0].p == pytest.approx(alone.p)
    assert told[0].p_adjusted == pytest.approx(8 * alone.p)
    assert told[0].verdict == "need_more", "one of eight looks"


def test_figures_that_are_no_means_are_compared_by_swapping() -> None:
    def classes(name: str, said: list[str]) -> Report:
        rows = ["a", "b"] * (len(said) // 2)
        items = tuple(
            Scored(f"{n:04}", "", "", "", r, {"label": float(r == s)}, 1.0, said=s)
            for n, (r, s) in enumerate(zip(rows, said, strict=True))
        )
        return Report(name, Suite("s", "d1:x", metrics=("label",)), name, "app", 0, 1.0, {}, items=items, hash="q")

    good, bad = classes("g", ["a", "b"] * 50), classes("b", ["a", "a"] * 50)
    found = {c.metric: c for c in compare(bad, good)}
    assert found["macro_f1"].difference.value == pytest.approx(1 - (2 / 3) / 2)
    assert (found["macro_f1"].verdict, found["macro_f1"].test) == ("better", "swap")
    assert {c.metric: c for c in compare(good, bad)}["macro_f1"].verdict == "worse"


def test_only_what_was_asked_alike_is_compared() -> None:
    a, b = pair(5, 1, 1, 3)
    with pytest.raises(RequestError, match="not of the same suite"):
        compare(a, replace(b, hash="q1:y"))
    with pytest.raises(RequestError, match="not of the same suite"):
        compare(a, replace(b, suite=replace(b.suite, dataset="d1:y")))
    with pytest.raises(RequestError, match="share no item"):
        compare(a, replace(b, items=()))
    with pytest.raises(RequestError, match="no metric 'f1'"):
        compare(a, b, margins={"f1": 0.1})
    more = replace(b, items=b.items[:4])
    assert compare(a, more)[0].n == 4
