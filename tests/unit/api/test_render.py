"""Rows as the management API shows them, and filters as people type them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from noria.api.render import PREVIEW, cursor, parse_filter, previews, query, read_answer_body, summary, whole
from noria.app.keeper import Recorded
from noria.contracts.error import RequestError
from noria.contracts.exchange import Usage
from noria.contracts.trace import Attempt, Clause, ExchangeRow, StageTime
from noria.contracts.verdict import Finding, Ruling, Verdict

RULINGS = (
    Ruling(Verdict("pii", False, 1.0, (Finding("email", 0, 3), Finding("email", 5, 9))), "mask", "input.0.0"),
    Ruling(Verdict("pii", False, 1.0, (Finding("phone", 0, 3),)), "mask", "input.1.0"),
    Ruling(Verdict("secrets", True), "allow", "input"),
)


def row(**changes: Any) -> ExchangeRow:
    empty: dict[str, Any] = dict.fromkeys(ExchangeRow.__struct_fields__[: -len(ExchangeRow.__struct_defaults__)], "")
    empty |= {"started_ns": 1_795_000_000_123_456_789, "status": 200, "duration_ns": 5, "overhead_ns": 1, "ttft_ns": None}
    empty |= {"stages": (StageTime("admit", 0, 1),), "attempts": (Attempt("m", 1, 2, 200),), "rulings": RULINGS}
    empty |= {"request": b"", "answer": b"", "usage": Usage(3, 4), "cut_tokens": 0, "stream": False, "answer_is_sse": False}
    empty |= {"tenant": "local", "id": "x1", "kind": "chat", "outcome": "ok", "cost_status": "exact", "cost_nanousd": 1500}
    return ExchangeRow(**(empty | changes))


def test_a_line_of_the_list_says_money_in_dollars_and_times_exactly() -> None:
    line = summary(row())
    assert line["cost_usd"] == pytest.approx(1.5e-6)
    assert line["time_ns"] == "1795000000123456789", "JavaScript's numbers end at 2^53"
    assert (line["tokens_in"], line["tokens_out"]) == (3, 4)


def test_an_unknown_cost_stays_unknown() -> None:
    assert summary(row(cost_nanousd=None, cost_status="unknown"))["cost_usd"] is None
    assert summary(row(cost_nanousd=0))["cost_usd"] == 0


def test_rulings_are_counted_by_check_and_label_and_passes_left_out() -> None:
    assert summary(row())["rulings"] == [{"check": "pii", "action": "mask", "label_counts": {"email": 2, "phone": 1}}]


def test_one_exchange_is_shown_whole_and_is_json() -> None:
    found = whole(Recorded(row(), b'{"messages":[]}', b'{"choices":[]}', "stored"))
    assert (found["request"], found["answer"], found["bodies"]) == ({"messages": []}, {"choices": []}, "stored")
    assert found["row"]["stages"] == [{"name": "admit", "offset_ns": 0, "took_ns": 1}]
    assert found["row"]["rulings"][0]["verdict"]["findings"][0] == {"label": "email", "start": 0, "end": 3, "score": 1.0}
    assert msgspec.json.encode(found)
    assert "answer" not in found["row"]


def test_bodies_that_are_not_there_are_null() -> None:
    found = whole(Recorded(row(), None, None, "erased"))
    assert (found["request"], found["answer"], found["bodies"]) == (None, None, "erased")


def test_a_stream_is_shown_as_the_answer_that_it_gave() -> None:
    stream = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: {"choices":[{"index":0,"delta":{"content":"b"}}]}\n\n'
    assert read_answer_body(stream, sse=True)["choices"][0]["message"]["content"] == "ab"


@pytest.mark.parametrize("body", [b"<html>", b'{"a":"\xff"}'])
def test_what_cannot_be_read_is_shown_as_it_is(body: bytes) -> None:
    assert read_answer_body(body, sse=False) == {"unreadable": body.decode("utf-8", "replace")}


@pytest.mark.parametrize(
    ("request_", "answer", "first", "last"),
    [
        (
            b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c\\n d"}]}',
            b'{"choices":[{"message":{"content":"x"}}]}',
            "c d",
            "x",
        ),
        (
            b'{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url"}]}]}',
            b'{"choices":[{"text":"x"}]}',
            "a",
            "x",
        ),
        (
            b'{"prompt":"p"}',
            b'{"choices":[{"message":{"content":null,"tool_calls":[{"function":{"name":"f"}},{"function":{"name":"g"}}]}}]}',
            "p",
            "f(), g()",
        ),
        (b'{"input":["a","b"]}', b'{"data":[]}', "['a', 'b']", ""),
        (None, None, "", ""),
        (b"[1]", b"[1]", "", ""),
    ],
)
def test_a_preview_is_the_last_question_and_the_first_answer(request_: bytes, answer: bytes, first: str, last: str) -> None:
    assert previews(request_, answer, sse=False) == {"preview_in": first, "preview_out": last}


def test_a_long_preview_is_clipped_to_its_limit() -> None:
    clipped = previews(msgspec.json.encode({"prompt": "x" * 1000}), None, sse=False)["preview_in"]
    assert len(clipped) == PREVIEW
    assert clipped.endswith("…")


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("", ()),
        ("app=support  status>=400", (Clause("app", "=", "support"), Clause("status", ">=", "400"))),
        ("a!=b c<=1 d<2 e>3", (Clause("a", "!=", "b"), Clause("c", "<=", "1"), Clause("d", "<", "2"), Clause("e", ">", "3"))),
        ("error~a=b", (Clause("error", "~", "a=b"),)),
        ("app=x>=y", (Clause("app", "=", "x>=y"),)),
        ("error~~", (Clause("error", "~", "~"),)),
        ('app="my app" key=k', (Clause("app", "=", "my app"), Clause("key", "=", "k"))),
        ('tag!="a=b c>d"\nerror~"two\nlines"', (Clause("tag", "!=", "a=b c>d"), Clause("error", "~", "two\nlines"))),
        (r'app="a \"b\" c:\d\\" key=""', (Clause("app", "=", 'a "b" c:\\d\\'), Clause("key", "=", ""))),
        ('error~" app="x"y', (Clause("error", "~", '"'), Clause("app", "=", '"x"y'))),
        ("error~'x'", (Clause("error", "~", "'x'"),)),
    ],
)
def test_a_filter_is_column_operator_value(text: str, clauses: tuple[Clause, ...]) -> None:
    assert parse_filter(text) == clauses


@pytest.mark.parametrize("bad", ["app", "=x", "app=", ">=400", "app=x nonsense", 'app="my app', '="x y"', '"app"'])
def test_what_is_no_condition_is_refused_with_the_shape(bad: str) -> None:
    with pytest.raises(RequestError, match="is not a condition") as e:
        parse_filter(bad)
    assert e.value.param == "filter"
    assert "status>=400" in e.value.text


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (-5, 1), (50, 50), (10**9, 1000)])
def test_a_page_has_bounds(asked: int, given: int) -> None:
    assert query("", "", asked).limit == given


def test_a_cursor_leads_to_the_row() -> None:
    assert cursor(row()) == "1795000000123456789.x1"
