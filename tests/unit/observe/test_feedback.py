"""The body of `POST /v1/feedback`: what is read, what is refused and how it is named."""

from __future__ import annotations

import json

import pytest

from noria.contracts.error import RequestError
from noria.observe.feedback import LONGEST_TEXT, MOST, read

NOW = 1_780_000_000 * 10**9


def one(**body):
    (statement,), several = read(json.dumps(body).encode(), now_ns=NOW)
    assert not several
    return statement


@pytest.mark.parametrize(
    ("said", "kind", "metric", "value", "text"),
    [
        ({"thumb": "up"}, "thumb", "thumbs_up", 1.0, ""),
        ({"thumb": False}, "thumb", "thumbs_up", 0.0, ""),
        ({"score": 4}, "score", "score", 4.0, ""),
        ({"value": 0.5, "metric": "helpful"}, "score", "helpful", 0.5, ""),
        ({"label": "退货"}, "label", "label", None, "退货"),
        ({"correction": "去设置里改密码"}, "correction", "correction", None, "去设置里改密码"),
    ],
)
def test_each_judgement_is_read(said, kind, metric, value, text) -> None:
    f = one(target="x-1", **said).feedback
    assert (f.kind, f.metric, f.value, f.text, f.at_ns) == (kind, metric, value, text, NOW)


def test_each_name_of_a_target_says_what_it_is() -> None:
    for name, of in (("target", "any"), ("exchange_id", "exchange"), ("response_id", "response"), ("trace_id", "trace")):
        statement = one(**{name: "abc"}, thumb="up", id="mine", user="安")
        assert (statement.feedback.target, statement.of, statement.own_id, statement.user) == ("abc", of, True, "安")
    assert one(target="a", thumb="up", at="2026-01-01T00:00:00Z").feedback.at_ns == 1_767_225_600 * 10**9
    assert one(target="a", thumb="up", comment=None).feedback.comment == "", "null is as if it were not there"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"target": "a", "thumb": "up", "tag": {}}, "tag", "'tags'"),
        ({"target": "a"}, "body", "not 0"),
        ({"target": "a", "thumb": "up", "label": "x"}, "body", "Send a list"),
        ({"target": "a", "trace_id": "b", "thumb": "up"}, "target", "once"),
        ({"target": "a b", "thumb": "up"}, "target", "must be an id"),
        ({"target": "a/b", "thumb": "up"}, "target", "must be an id"),
        ({"target": 7, "thumb": "up"}, "target", "must be text"),
        ({"target": "a", "thumb": 1.5}, "thumb", '"up"'),
        ({"target": "a", "score": True}, "score", "a number"),
        ({"target": "a", "score": "5"}, "score", "a number"),
        ({"target": "a", "score": 1e300}, "score", "a number"),
        ({"target": "a", "label": " "}, "label", "empty"),
        ({"target": "a", "correction": "x" * (LONGEST_TEXT + 1)}, "correction", str(LONGEST_TEXT)),
        ({"target": "a", "thumb": "up", "metric": "a/b"}, "metric", "letters"),
        ({"target": "a", "thumb": "up", "id": "a b"}, "id", "letters"),
        ({"target": "a", "thumb": "up", "at": "yesterday"}, "at", "a time"),
        ({"target": "a", "thumb": "up", "at": "2099-01-01"}, "at", "future"),
        ({"target": "a", "thumb": "up", "tags": {"a": 1}}, "tags", "texts"),
        ({"target": "a", "thumb": "up", "tags": {"a b": "1"}}, "tags", "'a b'"),
        ([{"target": "a", "thumb": "up"}, {"target": "b", "tumb": "up"}], "[1].tumb", "'thumb'"),
    ],
    ids=str,
)
def test_a_mistake_names_its_place(body, param, says) -> None:
    with pytest.raises(RequestError) as e:
        read(json.dumps(body).encode(), now_ns=NOW)
    assert e.value.param == param
    assert says in e.value.text


@pytest.mark.parametrize("body", [b"", b"{", b"7", b"[]", b'"x"', b"[7]", b"\xff", json.dumps([{}] * (MOST + 1)).encode()])
def test_what_is_no_statement_is_refused(body) -> None:
    with pytest.raises(RequestError):
        read(body, now_ns=NOW)
