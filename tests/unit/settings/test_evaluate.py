"""`suites:` in noria.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from noria.settings import InvalidSettings, loads
from noria.settings.evaluate import suites

BASE = """models: {m: {provider: scripted, model: m}}
apps: {a: {model: m}}
suites:
"""


def read(text: str) -> dict:
    return suites(loads((BASE + text).encode(), name="noria.yaml", folder=Path()).settings.suites)


def test_a_suite_says_what_is_asked_and_how_it_is_judged() -> None:
    found = read("  s: {dataset: d, metrics: [label, {f1: {articles: true}}], params: {max_tokens: 4}, limit: 9}\n")["s"]
    assert (found.name, found.dataset, found.split, found.limit) == ("s", "d", "test", 9)
    assert found.metrics == ("label", "f1")
    assert found.options == {"f1": {"articles": True}}
    assert found.params == {"max_tokens": 4}
    assert read("  s: {dataset: d}\n")["s"].metrics == ("exact",)


@pytest.mark.parametrize(
    ("suite", "says"),
    [
        ("{metrics: [exact]}", "dataset"),
        ("{dataset: d, metric: exact}", "metrics"),
        ("{dataset: d, metrics: [exat]}", "exact"),
        ("{dataset: d, metrics: [pii]}", "scores no answers"),
        ("{dataset: d, metrics: [{f1: {artickles: true}}]}", "articles"),
        ("{dataset: d, metrics: [exact, {exact: {case: true}}]}", "once"),
        ("{dataset: d, params: {stream: true}}", "stream"),
        ("{dataset: d, limit: -1}", "limit"),
        ("{dataset: d, metrics: []}", "metrics"),
    ],
)
def test_mistakes_are_told(suite: str, says: str) -> None:
    with pytest.raises(InvalidSettings, match=says):
        read(f"  s: {suite}\n")


def test_a_guard_cannot_compare_with_what_nobody_expects() -> None:
    text = (
        "models: {m: {provider: scripted, model: m}}\nguards: {g: [{exact: {on: output}}]}\napps: {a: {model: m, guard: g}}\n"
    )
    with pytest.raises(InvalidSettings, match="under `suites`"):
        loads(text.encode(), name="noria.yaml", folder=Path())
