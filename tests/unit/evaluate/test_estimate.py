"""Figures of a run, against values computed by hand."""

from __future__ import annotations

import pytest

from noria.checks.bleu import Bleu, BleuOptions
from noria.contracts.evaluation import Scored
from noria.contracts.stage import Sample
from noria.evaluate.estimate import by_label, confusion, estimates, widened
from noria.kit import stats


def scored(n: int, label: str, said: str, *, ms: float = 10.0, cost: int | None = None, error: str = "") -> Scored:
    right = float(label == said)
    return Scored(f"{n:04}", "x", said, label, label, {"label": right}, ms, cost, error=error, said=said)


PAIRS = [("a", "a")] * 6 + [("a", "b")] * 2 + [("b", "b")] * 3 + [("b", "")] + [("c", "a")] * 2
ITEMS = [scored(n, right, said, ms=float(n), cost=1000 * n) for n, (right, said) in enumerate(PAIRS)]


def test_classes_have_precision_recall_and_f1() -> None:
    found = by_label(ITEMS)
    assert found["a"] == pytest.approx({"precision": 6 / 8, "recall": 6 / 8, "f1": 6 / 8, "support": 8})
    assert found["b"] == pytest.approx({"precision": 3 / 5, "recall": 3 / 4, "f1": 6 / 9, "support": 4})
    assert found["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2.0}
    assert confusion(ITEMS) == {"a": {"a": 6, "b": 2}, "b": {"b": 3, "": 1}, "c": {"a": 2}}


def test_accuracy_is_wilsons_and_f1_is_macro_and_micro() -> None:
    found = estimates(ITEMS, {"label": object()})
    assert found["label"].method == "wilson"
    assert (found["label"].value, found["label"].low, found["label"].high) == pytest.approx(stats.wilson(9, 14))
    assert found["macro_f1"].value == pytest.approx((6 / 8 + 6 / 9 + 0) / 3)
    assert found["micro_f1"].value == pytest.approx(2 * 9 / (13 + 14)), "one answer named no class"
    for name in ("macro_f1", "micro_f1"):
        assert found[name].low < found[name].value < found[name].high


def test_latency_and_cost_are_of_answers_and_errors_of_all() -> None:
    items = [*ITEMS, scored(99, "a", "", ms=9e9, error="HTTP 500")]
    found = estimates(items, {"label": object()})
    assert found["latency_p50_ms"].value == pytest.approx(6.5)
    assert found["latency_p95_ms"].value == pytest.approx(12.35)
    assert found["cost_usd"].value == pytest.approx(6.5e-6)
    assert found["errors"].value == pytest.approx(1 / 15)
    assert found["label"].value == pytest.approx(9 / 15), "a failed request is a wrong answer"
    assert "cost_usd" not in estimates([scored(1, "a", "a")], {"label": object()})


def test_corpus_bleu_is_of_the_sums() -> None:
    bleu = Bleu(BleuOptions())
    texts = [("the cat sat on the mat", "the cat is on the mat"), ("a b c d e", "a b c d e"), ("no", "yes it is so")]
    items = [
        Scored(str(n), "", said, wanted, "", {"bleu": bleu.judge(Sample(output=said, expected=wanted)).score}, 1.0,
               counts={"bleu": bleu.counts(Sample(output=said, expected=wanted))})
        for n, (said, wanted) in enumerate(texts)
    ]  # fmt: skip
    found = estimates(items, {"bleu": bleu})
    sums = [sum(column) for column in zip(*(s.counts["bleu"] for s in items), strict=True)]
    assert found["bleu_corpus"].value == pytest.approx(bleu.pooled(sums))
    assert found["bleu"].value == pytest.approx(sum(s.scores["bleu"] for s in items) / 3)
    assert found["bleu"].method == "bootstrap"


def test_rows_that_are_all_the_same_do_not_make_anybody_sure() -> None:
    few = widened(stats.Bounds(0.5, 0.5, 0.5), 10, 0.0, 0.95)
    assert few.method == "rule_of_three"
    assert few.low == pytest.approx(0.5 - 0.2996 * 0.5, abs=1e-3)
    assert few.high == pytest.approx(0.5 + 0.2996 * 0.5, abs=1e-3)
    assert widened(stats.Bounds(0.5, 0.4, 0.6), 10, 0.0, 0.95).method == "bootstrap"
