"""The gate: each rule passes on evidence, fails on its contrary, and fails where there is none."""

from __future__ import annotations

import pytest

from noria.contracts.error import RequestError
from noria.contracts.evaluation import Comparison, Estimate
from noria.contracts.rollout import GateRule
from noria.release.gate import Equivalence, Evidence, Leak, judge, verdict, waiver


def estimate(value: float, low: float, high: float, n: int = 200) -> Estimate:
    return Estimate(value, low, high, n, "bootstrap")


def compared(low: float, value: float, high: float, more: int = 0) -> Evidence:
    c = Comparison(
        "exact", "a", "b", estimate(value, low, high), 0.5, "mcnemar", "need_more" if more else "not_worse", more=more
    )
    return Evidence(compared={"main": (c,)})


def timed(now: Estimate, then: Estimate, name: str = "latency_p95_ms") -> Evidence:
    return Evidence(figures={"main": {name: (now, then)}})


QUALITY = GateRule("quality", "exact", "main", margin=0.05)
LATENCY = GateRule("latency", suite="main", ratio=1.5)
COST = GateRule("cost", suite="main", ratio=1.0)
LEAK, SAME, SIGNED = GateRule("leak"), GateRule("equivalence", ratio=0.98), GateRule("signature")
DATASET, FILES, PINS = GateRule("dataset", version="d1:new"), GateRule("files"), GateRule("pins")
OF = Leak(0, 300, train="d1:new", evaluation="d1:new")

CASES = [
    (QUALITY, compared(-0.02, 0.01, 0.04), "pass", "not worse by 0.05"),
    (QUALITY, compared(-0.2, -0.12, -0.06), "fail", "worse by more than 0.05"),
    (QUALITY, compared(-0.08, -0.01, 0.06, 340), "inconclusive", "about 340 more items"),
    (QUALITY, Evidence(), "fail", "no comparison of exact on the suite main"),
    (LATENCY, timed(estimate(100, 95, 105), estimate(110, 105, 115)), "pass", "1.10 times"),
    (LATENCY, timed(estimate(100, 95, 105), estimate(180, 170, 190)), "fail", "1.80 times"),
    (LATENCY, timed(estimate(100, 80, 120), estimate(140, 100, 180)), "inconclusive", "not excluded"),
    (LATENCY, Evidence(), "fail", "latency_p95_ms was not measured"),
    (COST, timed(estimate(0, 0, 0), estimate(0, 0, 0), "cost_usd"), "pass", "0 now"),
    (COST, timed(estimate(0, 0, 0), estimate(0.1, 0.1, 0.1), "cost_usd"), "fail", "0.1 with the candidate"),
    (LEAK, Evidence(leak=Leak(0, 300)), "pass", "None of 300"),
    (LEAK, Evidence(leak=Leak(2, 300, ("row1", "row2"))), "fail", "2 of 300 evaluation rows were trained on (row1, row2)"),
    (LEAK, Evidence(), "fail", "nobody compared"),
    (LEAK, Evidence(leak=Leak(0, 0)), "fail", "nobody compared"),
    (SAME, Evidence(equivalence=Equivalence(estimate(0.99, 0.96, 1.0, 100))), "pass", "99.0%"),
    (SAME, Evidence(equivalence=Equivalence(estimate(0.5, 0.4, 0.6, 100), "wrong template")), "fail", "wrong template"),
    (SAME, Evidence(equivalence=Equivalence(estimate(1.0, 0.8, 1.0, 12))), "inconclusive", "fewer than 20"),
    (SAME, Evidence(), "fail", "not compared with the served one"),
    (SIGNED, Evidence(artifacts={"a1:x": ""}), "pass", "1 artifacts verified"),
    (SIGNED, Evidence(artifacts={}), "pass", "no artifact of ours"),
    (SIGNED, Evidence(artifacts={"a1:x": "its file m.gguf was changed"}), "fail", "m.gguf was changed"),
    (SIGNED, Evidence(), "fail", "not verified"),
    (LEAK, Evidence(leak=OF, trained={"a1:x": "d1:new"}, asked={"main": "d1:new"}), "pass", "None of 300"),
    (LEAK, Evidence(leak=OF, trained={"a1:x": "d1:old"}), "fail", "stale: it looked at the training rows of d1:new"),
    (LEAK, Evidence(leak=OF, asked={"main": "d1:old"}), "fail", "stale: it looked at the evaluation rows of d1:new"),
    (DATASET, Evidence(trained={"a1:x": "d1:new"}), "pass", "Trained on d1:new"),
    (DATASET, Evidence(trained={"a1:x": "d1:old"}), "fail", "is stale: the candidate was trained on d1:old, not on d1:new"),
    (DATASET, Evidence(trained={}), "fail", "no artifact says"),
    (FILES, Evidence(files={"a1:x": ""}), "pass", "1 trained files are what was trained"),
    (FILES, Evidence(files={}), "pass", "no file that says what was trained"),
    (FILES, Evidence(files={"a1:x": "m.gguf is truncated."}), "fail", "m.gguf is truncated"),
    (FILES, Evidence(), "fail", "nobody looked"),
    (PINS, Evidence(pins=()), "pass", "those of its parts"),
    (PINS, Evidence(pins=("The prompt is mis-pinned.",)), "fail", "mis-pinned"),
    (PINS, Evidence(), "fail", "nobody looked"),
]


@pytest.mark.parametrize(("rule", "evidence", "expected", "says"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_each_rule_by_its_evidence(rule: GateRule, evidence: Evidence, expected: str, says: str) -> None:
    (found,) = judge([rule], evidence)
    assert (found.verdict, found.rule) == (expected, rule)
    assert says in found.says


def test_a_rule_that_names_no_suite_means_the_only_one() -> None:
    one = compared(-0.01, 0.0, 0.01)
    assert judge([GateRule("quality", margin=0.05)], one)[0].verdict == "pass"
    two = Evidence(compared={"main": one.compared["main"], "other": ()})
    assert judge([GateRule("quality", margin=0.05)], two)[0].verdict == "fail"


def test_the_gate_passes_where_all_rules_do() -> None:
    good, bad = compared(-0.02, 0.01, 0.04), compared(-0.08, -0.01, 0.06, 9)
    assert verdict(judge([QUALITY], good)) == "pass"
    assert verdict(judge([QUALITY], bad)) == "inconclusive"
    assert verdict(judge([QUALITY, LEAK], good)) == "fail"
    assert verdict(()) == "pass"


def test_a_waiver_has_a_name_and_a_reason() -> None:
    assert waiver(" ann ", "demo of the canary") == "ann: demo of the canary"
    for by, why in (("", "x"), ("ann", " ")):
        with pytest.raises(RequestError):
            waiver(by, why)
