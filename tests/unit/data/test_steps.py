"""The small stages: cleaning, personal data, harvesting, labelling, comparing, exporting."""

from __future__ import annotations

import json
import re

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from noria.contracts.dataset import Member, Rejection, Row, Source
from noria.contracts.error import ConfigError
from noria.data.clean import Rules, check, judge
from noria.data.diff import compare, relabelled
from noria.data.export import COLUMNS, format_of, write
from noria.data.harvest import Asked, Judgement, row_of
from noria.data.label import label_for, read_rule
from noria.data.personal import protect


def row(text: str, **more) -> Row:
    return Row(({"role": "user", "content": text},), **more)


def detect(text: str) -> str:
    return "zh" if re.search("[一-龥]", text) else "en"


# -- cleaning -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "rules", "rule", "value", "threshold"),
    [
        (row(" \n"), Rules(), "empty", 0, 1),
        (row("hi"), Rules(min_chars=3), "too_short", 2, 3),
        (row("a" * 90, answer="b" * 20), Rules(max_chars=100), "too_long", 110, 100),
        (row("a\x00bcdefg"), Rules(), "control_characters", 0.125, 0.0),
        (row("caf\ufffd"), Rules(max_control=0.1), "control_characters", 0.25, 0.1),
        (row("ok"), Rules(need_answer=True), "no_answer", None, None),
        (row("ok", answer="x"), Rules(need_label=True), "no_label", None, None),
        (row("怎么退货"), Rules(langs=("en",)), "language", None, None),
        (row("怎么退货", answer="one two " * 8), Rules(langs=("zh",)), "language_mismatch", None, None),
    ],
    ids=str,
)
def test_a_row_that_fails_says_by_which_rule_value_and_bound(given, rules, rule, value, threshold):
    found = judge("r", given, rules, detect)
    assert found is not None
    assert (found.row, found.stage, found.rule, found.value, found.threshold) == ("r", "clean", rule, value, threshold)


@pytest.mark.parametrize(
    ("given", "rules"),
    [
        (row("line\none\ttab\r\n"), Rules()),
        (row("roll a die"), Rules(langs=("zh",))),  # too few words to be sure
        (row("怎么退货", answer="点这里"), Rules(langs=("zh", "en"))),
        (row("a" * 60, answer="b" * 39), Rules(max_chars=100)),
    ],
    ids=str,
)
def test_a_row_that_passes(given, rules):
    assert judge("r", given, rules, detect) is None


@pytest.mark.parametrize("rules", [Rules(min_chars=5, max_chars=4), Rules(max_control=2), Rules(langs=("xx",))], ids=str)
def test_bounds_that_nothing_passes_are_refused(rules):
    with pytest.raises(ConfigError):
        check(rules, ("en", "zh"))


# -- personal data --------------------------------------------------------------------------------------


def mask(text: str) -> tuple[str, tuple[str, ...]]:
    clear = re.sub(r"\S+@\S+", "[EMAIL]", text)
    return clear, ("email",) * (clear != text)


FULL = Row(
    ({"role": "user", "content": [{"type": "text", "text": "I am a@b.io"}]}, {"role": "user", "content": "c@d.io"}),
    "to e@f.io", "l", tags={"from": "g@h.io"}, source=Source("file", "f:3"),
)  # fmt: skip


def test_masked_everywhere():
    found = protect(FULL, mask, "mask")
    assert isinstance(found, Row)
    assert "@" not in repr(found)
    assert found.messages[0]["content"][0] == {"type": "text", "text": "I am [EMAIL]"}
    assert (found.answer, found.tags) == ("to [EMAIL]", {"from": "[EMAIL]", "pii": "masked:email"})


def test_dropped_without_a_word_of_it():
    assert protect(FULL, mask, "drop") == Rejection("", "pii", "dropped", detail="email", source="f:3")


def test_flagged_and_left_alone():
    found = protect(FULL, mask, "flag")
    assert found == replace(FULL, tags={**FULL.tags, "pii": "email"})
    assert protect(row("nothing here"), mask, "drop") == row("nothing here")


# -- harvesting -----------------------------------------------------------------------------------------

ASKED = Asked(
    "x1", 7, "help", "r1:aa", "ok", "ann", "c9",
    ({"role": "system", "content": "be kind"}, {"role": "user", "content": "怎么退货？"}), "点“退货”。",
)  # fmt: skip


def test_what_a_model_said_keeps_its_release():
    found = row_of(ASKED, detect)
    assert found == Row(
        ASKED.messages, "点“退货”。", lang="zh", group="conversation:c9", subject="ann",
        source=Source("trace", "x1", 7, "help", "r1:aa"),
    )  # fmt: skip


def test_a_correction_is_a_persons_and_the_latest_counts():
    told = (Judgement("thumb", "thumbs_up", 0.0), Judgement("label", text="old"), Judgement("correction", text="a"),
            Judgement("label", text="returns"), Judgement("correction", text="b"))  # fmt: skip
    found = row_of(replace(ASKED, feedback=told), detect)
    assert isinstance(found, Row)
    assert (found.answer, found.label, found.tags) == ("b", "returns", {"thumbs_up": "0"})
    assert (found.source.origin, found.source.release, found.source.ref) == ("feedback", "", "x1")


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (replace(ASKED, bodies="erased"), "body_erased"),
        (replace(ASKED, messages=()), "no_prompt"),
        (replace(ASKED, answer=""), "no_answer"),
    ],
    ids=["erased", "no prompt", "no answer"],
)
def test_an_exchange_that_gives_no_row_says_why(asked, rule):
    assert row_of(asked, detect) == Rejection("", "harvest", rule, source="x1")


def test_an_answer_to_a_tool_is_not_taken_for_one_to_the_user():
    more = (*ASKED.messages, {"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "7"})
    found = row_of(replace(ASKED, messages=more), detect)
    assert isinstance(found, Rejection)


# -- labels ---------------------------------------------------------------------------------------------


def test_labels_come_from_the_file_then_from_the_first_rule():
    rules = [read_rule("money=refund|退款"), read_rule("other=.")]
    assert label_for("r", row("REFUND me", label="x"), {"r": "given"}, rules, overwrite=False) == "given"
    assert label_for("r", row("REFUND me", label="x"), {}, rules, overwrite=False) is None
    assert label_for("r", row("REFUND me", label="x"), {}, rules, overwrite=True) == "money"
    assert label_for("r", row("我要退款"), {}, rules, overwrite=False) == "money"
    assert label_for("r", row("hello"), {}, rules[:1], overwrite=False) is None


@pytest.mark.parametrize("text", ["", "x", "=p", "l=", "l=("])
def test_a_rule_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError):
        read_rule(text)


# -- comparing ------------------------------------------------------------------------------------------

versions = st.dictionaries(st.integers(0, 30).map(lambda n: f"{n:02}"), st.sampled_from(["train", "test"]))


@given(versions, versions)
def test_a_difference_turns_one_version_into_the_other(before, after):
    found = compare(*([Member(r, v[r]) for r in sorted(v)] for v in (before, after)))
    made = {r: s for r, s in before.items() if r not in {m.row for m in found.removed}}
    made |= {m.row: m.split for m in found.added} | {m.row: m.after for m in found.moved}
    assert made == after
    assert found.none == (before == after)
    assert all(before[m.row] == m.before != m.after for m in found.moved)


def test_labels_that_changed_are_found_by_what_is_asked():
    gone = {"a": row("How?", label="x"), "b": row("why", label="y"), "c": row("same", label="z")}
    came = {"d": row("how?", label="new"), "e": row("other", label="y"), "f": row("same", label="z", answer="now with one")}
    (found,) = relabelled(gone, came)
    assert (found.before_row, found.after_row, found.before, found.after) == ("a", "d", "x", "new")


# -- exporting ------------------------------------------------------------------------------------------

ITEMS = [(f"{n:064x}", "train", row(f'第{n}行, "quoted"\nsecond line', label="l", tags={"k": "v"})) for n in range(3)]


def test_json_lines(tmp_path):
    assert write(tmp_path / "o.jsonl", ITEMS, "jsonl") == 3
    read = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [r["row"] for r in read] == [i for i, _, _ in ITEMS]
    assert read[0]["messages"] == [dict(m) for m in ITEMS[0][2].messages]


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_tables(tmp_path, format):
    path = tmp_path / f"it's.{format}"
    assert write(path, ITEMS, format) == 3
    read = duckdb.sql(f"SELECT * FROM '{str(path).replace(chr(39), chr(39) * 2)}'")
    assert tuple(read.columns) == COLUMNS
    rows = [dict(zip(COLUMNS, values, strict=True)) for values in read.fetchall()]
    assert [(r["row"], r["prompt"]) for r in rows] == [(i, x.messages[0]["content"]) for i, _, x in ITEMS]
    assert json.loads(rows[0]["tags"]) == {"k": "v"}


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_an_export_that_fails_leaves_what_was_there(tmp_path, format):
    path = tmp_path / "o"
    path.write_text("before")

    def broken():
        yield ITEMS[0]
        raise RuntimeError("gone")

    with pytest.raises(Exception, match="gone"):
        write(path, broken(), format)
    assert [p.name for p in tmp_path.iterdir()] == ["o"]
    assert path.read_text() == "before"


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_an_export_is_its_owners_alone_and_leaves_nothing_beside_it(tmp_path, format):
    write(tmp_path / "o", ITEMS, format)
    assert [(p.name, p.stat().st_mode & 0o777) for p in tmp_path.iterdir()] == [("o", 0o600)]


def test_no_rows_are_still_a_table(tmp_path):
    assert write(tmp_path / "o.parquet", [], "parquet") == 0
    assert duckdb.sql(f"SELECT * FROM '{tmp_path}/o.parquet'").fetchall() == []


def test_the_format_is_that_of_the_name(tmp_path):
    assert format_of(tmp_path / "a.CSV") == "csv"
    assert format_of(tmp_path / "a", "parquet") == "parquet"
    with pytest.raises(ConfigError, match="xlsx"):
        format_of(tmp_path / "a.xlsx")
