"""Where the demo lives, and what must be there before it begins."""

from __future__ import annotations

import json
import os
import sys

import pytest

from noria.contracts.error import ConfigError, MissingDependency, NotFound, Unavailable
from noria.demo.customers import Message, intents
from noria.demo.place import Place, configuration, first_classifier, installed_base, trainer, write_history
from noria.demo.size import FAST, FULL
from noria.kit.ngram import decode
from noria.kit.supervise import lock
from noria.settings import loads

MESSAGES = [Message(f"{i}{n}", f"{i} {n}", i, "en", f"{i}-{n}") for i in ("pump", "leak") for n in range(20)]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds something else \(thesis\.md\)"):
        Place(tmp_path).clear()
    assert (tmp_path / "thesis.md").read_text() == "mine"


def test_a_second_demo_begins_anew_and_keeps_the_report(tmp_path) -> None:
    place = Place(tmp_path / "demo")
    assert place.clear() == ""
    (place.home / "records").mkdir(parents=True)
    place.report.write_text("the first")
    (place.root / "notes.txt").write_text("mine")
    said = place.clear()
    assert "begins anew" in said
    assert not place.home.exists()
    (kept,) = place.root.glob("report-*.html")
    assert (kept.read_text(), kept.name in said) == ("the first", True)
    assert sorted(p.name for p in place.root.iterdir()) == ["demo.json", "notes.txt", kept.name]


def test_a_demo_whose_service_runs_is_not_cleared(tmp_path) -> None:
    place = Place(tmp_path / "demo")
    place.clear()
    with lock(place.home / "lock"), pytest.raises(Unavailable, match=str(os.getpid())):
        place.clear()
    assert place.clear().startswith("The demo that was in")


def test_what_training_needs_is_named_before_anything_begins(tmp_path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(MissingDependency) as e:
        trainer(str(bare))
    assert "torch" in e.value.text
    assert "pip install 'noria[train]'" in e.value.text
    with pytest.raises(ConfigError, match=r"cannot be run"):
        trainer(os.fspath(tmp_path / "nothing"))


def test_the_base_model_is_asked_for_by_the_command_that_fetches_it(tmp_path) -> None:
    with pytest.raises(NotFound) as e:
        installed_base(tmp_path)
    assert "noria models add smollm2-135m" in e.value.text


@pytest.mark.parametrize("size", [FULL, FAST], ids=["full", "fast"])
def test_the_configuration_is_valid(size, tmp_path) -> None:
    made = configuration(size, intents(), sys.executable, tmp_path / "tiny.model" if size.fast else None)
    loaded = loads(json.dumps(made).encode(), name="noria.yaml", folder=tmp_path).settings
    assert loaded.apps["desk"].refresh.start == "drift"
    assert loaded.apps["desk"].refresh.train.method == ("tiny" if size.fast else "sft")
    assert loaded.apps["desk"].weights == {"v1": 1}


def test_v1_learns_from_no_message_that_it_is_measured_by(tmp_path) -> None:
    of = write_history(tmp_path / "history.jsonl", MESSAGES, {"train": 0.5, "test": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert {line["text"]: line["split"] for line in lines} == {m.text: of[m.id] for m in MESSAGES}
    assert {intent: sum(of[m.id] == "test" for m in MESSAGES if m.intent == intent) for intent in ("pump", "leak")} == {
        "pump": 10,
        "leak": 10,
    }
    file = first_classifier(tmp_path / "v1", [m for m in MESSAGES if of[m.id] == "train"])
    assert decode(file.read_bytes()).classify("my pump") == "pump"
