"""A suite's items, hashes and verdicts."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from noria.contracts.dataset import Row
from noria.contracts.error import ConfigError, NotFound, RequestError
from noria.contracts.evaluation import Suite
from noria.contracts.stage import Check
from noria.evaluate.suite import Item, Judge, checked, chosen, completed
from noria.kit import extension

SUITE = Suite("s", "d1:x", metrics=("label", "exact"), options={"label": {"labels": ["yes", "no"]}}, params={"temperature": 0})


def load(name: str) -> type[Check]:
    return extension.load("checks", name, Check)


def item(id: str = "a", *, label: str = "yes", answer: str = "", subject: str = "") -> Item:
    return Item(id, Row(({"role": "user", "content": "really?"},), answer, label, subject=subject))


def test_an_answer_is_scored_by_every_metric() -> None:
    scored = Judge(SUITE, load).score(item(), "Yes, sure")
    assert scored.scores == {"label": 1.0, "exact": 0.0}
    assert (scored.said, scored.label, scored.expected, scored.answer) == ("yes", "yes", "yes", "Yes, sure")


def test_the_class_is_judged_by_the_class_and_the_text_by_the_text() -> None:
    scored = Judge(SUITE, load).score(item(label="no", answer="yes"), "yes")
    assert scored.scores == {"label": 0.0, "exact": 1.0}


def test_text_of_a_person_is_not_kept() -> None:
    scored = Judge(SUITE, load).score(item(subject="p"), "yes")
    assert (scored.answer, scored.expected) == ("", "")
    assert (scored.said, scored.scores["label"]) == ("yes", 1.0)


def test_a_failed_request_scores_0_even_where_silence_would_score() -> None:
    suite = Suite("s", "d1:x", metrics=("length", "bleu"))
    failed = Judge(suite, load).failed(item(answer="yes"), "HTTP 500")
    assert failed.scores == {"length": 0.0, "bleu": 0.0}
    assert failed.error == "HTTP 500"
    assert failed.counts["bleu"][:2] == (0.0, 1.0)


def test_hashes_follow_what_matters_and_nothing_else() -> None:
    def hashes(suite: Suite) -> tuple[str, str]:
        judge = Judge(suite, load)
        return judge.hash, judge.suite_hash

    asked, whole = hashes(SUITE)
    assert hashes(replace(SUITE, name="other")) == (asked, whole)
    for change in ({"dataset": "d1:y"}, {"split": "train"}, {"limit": 5}):
        assert hashes(replace(SUITE, **change))[0] == asked, "answers can be shared"
        assert hashes(replace(SUITE, **change))[1] != whole
    for change in ({"params": {"temperature": 1}}, {"metrics": ("label",)}, {"options": {"label": {"labels": ["yes"]}}}):
        assert hashes(replace(SUITE, **change))[0] != asked


def test_a_limit_takes_the_same_items_every_time_and_a_larger_one_keeps_them() -> None:
    items = [item(name) for name in ("c", "a", "d", "b")]
    assert [i.id for i in chosen(items, 2)] == [i.id for i in chosen(items[::-1], 3)][:2] == ["a", "b"]
    assert len(chosen(items, 0)) == 4


def test_classes_come_from_the_rows_unless_they_are_named() -> None:
    bare = Suite("s", "d", metrics=("label",))
    assert completed(bare, ["b", "", "a", "b"]).options == {"label": {"labels": ["a", "b"]}}
    assert completed(SUITE, ["z"]) == SUITE
    with pytest.raises(RequestError, match="no row"):
        completed(bare, ["", ""])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"metrics": ()}, ConfigError),
        ({"metrics": ("pii",), "options": {}}, ConfigError),
        ({"metrics": ("exakt",), "options": {}}, NotFound),
        ({"options": {"label": {"labels": ["a"]}, "f1": {}}}, ConfigError),
        ({"options": {"label": {"labels": ["a"], "size": 3}}}, ConfigError),
    ],
)
def test_what_cannot_be_judged_is_refused(change: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        Judge(replace(SUITE, **change), load)


def test_the_evaluation_sets_some_parameters_itself() -> None:
    assert checked({"max_tokens": 5}) == {"temperature": 0, "max_tokens": 5}
    assert checked({"temperature": 0.7}) == {"temperature": 0.7}
    with pytest.raises(ConfigError, match="stream"):
        checked({"stream": True})
