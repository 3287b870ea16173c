"""What is published of the semantic cache is what was measured, and the measurement is of the code as it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from noria.settings.caching import SemanticSettings

ROOT = Path(__file__).resolve().parents[2]
RESULT = json.loads((ROOT / "bench" / "results" / "semantic-cache.json").read_text())


def script():
    spec = importlib.util.spec_from_file_location("semantic_cache", ROOT / "bench" / "semantic_cache.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_default_threshold_is_the_one_that_the_tune_split_chose():
    assert SemanticSettings(embedder="e5").threshold == RESULT["threshold"] == script().chosen(RESULT["tune"])


def test_at_it_the_test_split_keeps_the_goal():
    assert RESULT["test"]["all"]["false_rate"] <= RESULT["goal"] == 0.005
    assert RESULT["test"]["all"]["false_rate_95"][1] <= RESULT["goal"]


def test_the_how_to_tells_these_figures():
    page = (ROOT / "docs" / "how-to" / "caching.md").read_text()
    for name, found in RESULT["test"].items():
        row = next(line for line in page.splitlines() if line.lower().startswith(f"| {name.split()[0]} "))
        assert f"| {found['lookups']:,} | {found['hits']} | {found['false']} |" in row, row
        low, high = found["false_rate_95"]
        assert f"{found['false_rate']:.2%} [{low * 100:.2f}, {high * 100:.2f}]".replace("%", " %") in row, row


def test_no_text_is_in_both_splits():
    module = script()
    assert {module.split_of(t) for t in map(str, range(50))} == {"tune", "test"}
    assert module.split_of("x") == module.split_of("x")


@pytest.mark.parametrize(("k", "n", "low", "high"), [(0, 100, 0.0, 0.036995), (10, 100, 0.055229, 0.174366), (0, 0, 0.0, 1.0)])
def test_intervals_are_wilsons(k, n, low, high):
    assert script().wilson(k, n) == [pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4)]


@pytest.mark.data
def test_a_small_part_of_the_data_is_judged_by_its_labels(shared_data):
    module = script()
    sets = module.loaded(shared_data, 40)
    assert set(sets) == {"atis", "snips", "banking77", "afqmc (zh)", "bustm (zh)"}
    row = {"text": "fly from new york to boston", "slots": "O O B-from I-from O B-to", "label": "flight"}
    assert module.meaning(row) == ("flight", [("from", "new york"), ("to", "boston")])
