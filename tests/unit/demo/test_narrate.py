"""What the demo says: kept, shown, told as JSON."""

from __future__ import annotations

import json

import pytest

from noria.demo.narrate import Narrator, Terminal, as_json


@pytest.fixture
def narrator(tmp_path) -> Narrator:
    return Narrator(lambda _: None, lambda _: None, tmp_path / "events.jsonl")


def test_everything_said_is_kept_in_order(narrator, tmp_path) -> None:
    with narrator.phase("open", "It opens", 10):
        narrator.say("hello")
        narrator.figure("rows", 7)
    narrator.verdict("drift", "yes", reached=True)
    narrator.figure("rows", 8)
    narrator.end(passed=True)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert lines == narrator.events
    assert [e["event"] for e in lines] == ["phase", "say", "figure", "phase_end", "verdict", "figure", "end"]
    assert narrator.figures() == {"rows": 8}
    assert lines[3]["budget_s"] == 10


def test_an_act_that_fails_has_no_end(narrator) -> None:
    with pytest.raises(RuntimeError), narrator.phase("open", "It opens", 10):
        raise RuntimeError
    assert not narrator.of("phase_end")


def test_as_json_each_event_is_a_line_and_nothing_else_is_said(tmp_path, capsys) -> None:
    made = as_json(tmp_path / "events.jsonl")
    made.live("step 3 of 10")
    made.say("hello")
    made.verdict("gate", "no", reached=False)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(e["event"], e.get("reached")) for e in said] == [("say", None), ("verdict", False)]


def test_people_read_marks_budgets_and_no_markup_of_others(tmp_path, capsys) -> None:
    made = Terminal().narrator(tmp_path / "events.jsonl")
    with made.phase("open", "It opens", 10):
        made.say("a [bold]message[/] of a customer")
        made.live("not on a terminal")
    made.verdict("drift", "there is", reached=True)
    made.verdict("gate", "it is not", reached=False)
    said = capsys.readouterr().out
    assert "It opens  about 10 s" in said
    assert "a [bold]message[/] of a customer" in said
    assert "not on a terminal" not in said
    assert "✓ drift: there is" in said
    assert "✗ gate: it is not" in said
