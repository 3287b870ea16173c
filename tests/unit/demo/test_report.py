"""The page at the end: what happened, escaped; of what did not happen, nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from noria.demo.customers import Acts
from noria.demo.narrate import Narrator
from noria.demo.pictures import Axes, Line, curves
from noria.demo.place import Place
from noria.demo.report import page
from noria.demo.size import FAST
from noria.demo.story import Cast


@pytest.fixture
def narrator(tmp_path) -> Narrator:
    return Narrator(lambda _: None, lambda _: None, tmp_path / "events.jsonl")


@pytest.fixture
def cast(tmp_path) -> Cast:
    return Cast(Place(tmp_path), FAST, (), Acts((), (), (), ()))


def estimate(value: float) -> dict:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 100, "method": "wilson"}


def rollout(action: str) -> dict:
    looks = [{"judged": n, "low": -0.5 + n / 100, "high": 0.9, "harm": 1.5**n} for n in range(0, 60, 10)]
    return {
        "policy": {"metric": "thumbs_up", "max_regression": 0.15, "min_answers": 30, "alpha": 0.01}, "reason": "as measured",
        "looks": looks, "waived": "ann: to see", "decisions": [{"action": action, "says": "because", "evidence": {}}],
    }  # fmt: skip


def test_a_whole_demo_has_all_sections_and_escapes_what_others_say(narrator, cast) -> None:
    for act in cast.size.acts:
        with narrator.phase(act.name, act.title, act.budget_s):
            pass
    narrator.verdict("drift", "words <script>alert(1)</script>", reached=True)
    narrator.figure("measured", [estimate(0.2), estimate(0.7)])
    narrator.figure("damaged", {"estimate": estimate(0.1), "comparison": {}})
    narrator.figure("classes", {"track_order": [0.1, 0.8]})
    signal = {
        "name": "inputs",
        "standing": "drifted",
        "effect": 0.01,
        "q": 0.001,
        "n_reference": 60,
        "n_recent": 60,
        "says": "",
    }
    narrator.figure(
        "drift", {"says": "Drift in inputs.", "signals": [signal], "more": [{"term": "solar", "reference": 0, "recent": 0.2}]}
    )
    narrator.figure("training", {"rows": 9, "steps": 3, "seconds": 2, "cpu_seconds": 3, "peak_bytes": 1e9, "loss": [3, 2, 1]})
    narrator.figure("rollout", rollout("promote"))
    narrator.figure("rolled_back", rollout("roll_back"))
    made = page(narrator, cast, "")
    assert "<script" not in made
    for word in (
        "Every verdict was reached",
        "70.0%",
        "track_order",
        "solar (0% → 20%)",
        "Loss by step",
        "roll back",
        "noria up --config",
    ):
        assert word in made
    assert made.count("<svg") == 7 - 1  # accuracy, intents, loss, interval, harm, time


def test_a_demo_that_ended_early_says_why_and_shows_what_there_is(narrator, cast) -> None:
    narrator.verdict("gate", "worse", reached=False)
    made = page(narrator, cast, "gate: worse")
    assert "It ended early: gate: worse" in made
    assert "✗ gate" in made
    assert "<svg" not in made


def test_curves_are_well_formed_and_hold_every_point() -> None:
    made = curves([Line([(1, 0.5), (2, 0.25), (3, 0.75)], 1)], 'a "title"', Axes("x", "y", 1.0, "here & now"))
    root = ET.fromstring(made)
    (line,) = root.iter("polyline")
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[2][1] < points[0][1] < points[1][1], "up is more"
    assert all(0 <= x <= 720 and 0 <= y <= 230 for x, y in points)
    assert "here & now" in "".join(root.itertext())


def test_without_points_there_is_no_picture() -> None:
    assert curves([Line([])], "nothing", Axes("x", "y")) == ""
    assert "<svg" in curves([Line([(1, 1)])], "one", Axes("x", "y"))
