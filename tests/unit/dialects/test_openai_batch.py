"""Files and batches in OpenAI's form."""

from __future__ import annotations

import json

import pytest

from noria.contracts.batch import Batch, BatchCounts, LineResult
from noria.contracts.error import RequestError
from noria.dialects.openai_batch import (
    MOST_ERRORS,
    batch_object,
    one_line,
    read_batch,
    read_lines,
    read_results,
    result_line,
    seconds_of_window,
    upstream_lines,
)

CHAT = "/v1/chat/completions"


def row(custom_id: str, **body: object) -> bytes:
    asked = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"model": "m", **body}}
    return json.dumps(asked, ensure_ascii=False).encode()


def test_lines_keep_their_numbers_and_bodies_their_bytes() -> None:
    raw = b'\xef\xbb\xbf\r\n{"custom_id": "\xe4\xb8\x80", "method": "POST", "url": "/v1/chat/completions", "body": {"n": 1.0e0}}\r\n'
    (line,), errors = read_lines(raw, CHAT)
    assert not errors
    assert (line.number, line.custom_id, bytes(line.body)) == (2, "一", b'{"n": 1.0e0}')


def test_mistakes_are_bounded_and_so_are_lines() -> None:
    assert len(read_lines(b"x\n" * 1000, CHAT)[1]) == MOST_ERRORS
    lines, errors = read_lines(b"\n".join(row(str(i)) for i in range(5)), CHAT, most=3)
    assert (len(lines), errors[0].code, errors[0].line) == (3, "too_many_requests", 4)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b'{"custom_id":"a","custom_id":"b"}', "invalid_json_line"),
        (b"\xff", "invalid_json_line"),
        (row("").replace(b'"custom_id": ""', b'"custom_id": null'), "invalid_value"),
        (row("x" * 513), "invalid_value"),
        (row("a", stream=True), "invalid_value"),
    ],
)
def test_one_bad_line_is_one_error(raw: bytes, code: str) -> None:
    assert [e.code for e in read_lines(raw, CHAT)[1]] == [code]


@pytest.mark.parametrize("window", ["24h", "1s", "90m", "14d"])
def test_windows_that_are_taken(window: str) -> None:
    assert seconds_of_window(window) > 0


@pytest.mark.parametrize("window", ["", "24", "0h", "15d", "1 h", "-1h", "٣h"])
def test_windows_that_are_refused(window: str) -> None:
    with pytest.raises(RequestError, match="completion_window"):
        seconds_of_window(window)


def test_what_a_batch_is_asked_to_be_is_checked() -> None:
    good = {"input_file_id": "f", "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": "b"}}
    assert read_batch(json.dumps(good).encode()).metadata == {"a": "b"}
    for wrong in (
        {"endpoint": "/v1/images/generations"}, {"metadata": {"a": 1}}, {"metadata": {"a" * 65: "b"}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
    ):  # fmt: skip
        with pytest.raises(RequestError):
            read_batch(json.dumps(good | wrong).encode())


def test_a_result_is_one_line_with_the_answers_own_numbers() -> None:
    made = result_line("batch_1", "甲", LineResult(3, 200, "req", b'{\n "x": 1.10,\n "y": "a\\nb"}'))
    assert made.count(b"\n") == 1
    assert b'"body":{"x":1.10,"y":"a\\nb"}' in made
    assert json.loads(made)["error"] is None
    failed = json.loads(result_line("batch_1", "乙", LineResult(4, code="batch_expired", message="late")))
    assert (failed["response"], failed["error"]["code"]) == (None, "batch_expired")
    assert failed["id"] != json.loads(made)["id"]


def test_a_body_that_is_no_json_becomes_a_string() -> None:
    assert one_line(b"<html>") == b'"<html>"'


def test_an_upstreams_results_are_read_back_and_garbage_is_passed_over() -> None:
    made = result_line("b", "7", LineResult(7, 200, "r", b"{}")) + b"garbage\n" + result_line("b", "8", LineResult(8, code="x"))
    found = dict(read_results(made))
    assert (found["7"].status, found["7"].body, found["8"].code) == (200, b"{}", "x")
    assert found["7"].ok
    assert not found["8"].ok


def test_lines_for_an_upstream_are_named_by_their_number() -> None:
    made = upstream_lines([(3, b'{"a":\n1}')], CHAT)
    assert json.loads(made) == {"custom_id": "3", "method": "POST", "url": CHAT, "body": {"a": 1}}


def test_moments_that_have_not_come_are_null() -> None:
    second = 1_000_000_000
    batch = Batch("b", "local", "open", "", CHAT, "f", "24h", 5 * second, 9 * second, counts=BatchCounts(2, 1, 1))
    told = batch_object(batch)
    assert (told["created_at"], told["completed_at"], told["output_file_id"], told["errors"]) == (5, None, None, None)
    assert told["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
