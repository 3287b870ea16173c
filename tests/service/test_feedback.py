"""Feedback through the whole service: before its exchange, late, out of order, by the wrong key, in Chinese, a thousand at once."""

from __future__ import annotations

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture(scope="module")
def noria(serve_once, caller, mirror):
    model = {"provider": "openai_compatible", "url": mirror.url, "model": "echo", "price": {"input": 0, "output": 0}}
    apps = {"echo": {"model": "echo"}, "sales": {"model": "echo"}}
    config = json.dumps({"models": {"echo": model}, "apps": apps, "serve": {"keys_required": "always"}})
    made = caller(serve_once(config, "--workers", "2"))
    for org in ("acme", "rival"):
        assert made.api("POST", "/api/orgs", {"name": org}).status == 201
    return made


@pytest.fixture(scope="module")
def acme(noria, caller):
    return caller(noria.service, noria.new_key(org="acme"))


def until(noria, id, state="joined", within=15.0):
    """The stored feedback of a caller's id, once it is in a state."""
    end = time.monotonic() + within
    while True:
        rows = noria.api("GET", "/api/feedback?limit=1000").json["rows"]
        found = [r for r in rows if r["id"] == id and r["state"] == state]
        if found:
            return found[0]
        assert time.monotonic() < end, rows[:5]
        time.sleep(0.05)


def test_feedback_that_is_faster_than_the_recorder_is_joined_when_the_row_is_stored(noria, acme) -> None:
    answer = acme.chat("echo", "请问怎么退货？")
    given = acme.post(
        "/v1/feedback", {"exchange_id": answer.id, "thumb": "down", "comment": "没有回答问题", "id": "fast", "user": "小明"}
    )
    assert given.status in (200, 202), given.body
    row = until(noria, "fast")
    assert (row["exchange"], row["app"], row["value"], row["comment"]) == (answer.id, "echo", 0.0, "没有回答问题")
    assert "小明" not in json.dumps(row, ensure_ascii=False)
    shown = noria.trace(answer.id)
    assert [f["comment"] for f in shown["feedback"]] == ["没有回答问题"]


def test_late_feedback_by_trace_and_by_the_answers_own_id_and_an_older_one_after_a_newer_one(noria, acme) -> None:
    answer = acme.chat("echo")
    noria.row(answer.id)
    by_trace = acme.post("/v1/feedback", {"trace_id": answer.headers["x-noria-trace"], "score": 0.5, "metric": "helpful"})
    assert (by_trace.status, by_trace.json["exchange"]) == (200, answer.id)
    by_answer = acme.post("/v1/feedback", {"response_id": answer.json["id"], "label": "returns"})
    assert (by_answer.status, by_answer.json["exchange"]) == (200, answer.id), "the last of those with this id"
    new, old = "2026-11-22T10:00:01Z", "2026-11-22T10:00:00Z"
    acme.post("/v1/feedback", {"target": answer.id, "thumb": True, "at": new})
    late = acme.post("/v1/feedback", {"target": answer.id, "thumb": False, "at": old})
    assert late.json["state"] == "superseded"
    told = {f["metric"]: f for f in noria.api("GET", f"/api/feedback?exchange={answer.id}").json["rows"]}
    assert {m: f["value"] for m, f in told.items()} == {"helpful": 0.5, "label": None, "thumbs_up": 1.0}
    assert told["label"]["text"] == "returns"


def test_a_key_of_another_organisation_or_app_is_told_in_words(noria, acme, caller) -> None:
    answer = acme.chat("echo")
    noria.row(answer.id)
    rival = caller(noria.service, noria.new_key(org="rival"))
    error = rival.post("/v1/feedback", {"target": answer.id, "thumb": "up"}).refuses(403, "feedback_not_allowed")
    assert "own organisation" in error["message"]
    sales = caller(noria.service, noria.new_key(org="acme", apps=["sales"]))
    error = sales.post("/v1/feedback", {"target": answer.id, "thumb": "up"}).refuses(403, "feedback_not_allowed")
    assert "own apps only: sales" in error["message"]
    early = str(uuid.uuid4())  # not stored yet: nobody can know
    assert rival.post("/v1/feedback", {"target": early, "thumb": "up"}).status == 202
    assert noria.api("GET", f"/api/feedback?exchange={answer.id}").json["rows"] == []


def test_who_may_not_call_is_refused_and_who_calls_too_often_waits(noria, acme, caller) -> None:
    body = {"target": str(uuid.uuid4()), "thumb": "up"}
    caller(noria.service).post("/v1/feedback", body).refuses(401, "missing_api_key")
    elsewhere = caller(noria.service, noria.new_key(endpoints=["/v1/models"]))
    elsewhere.post("/v1/feedback", body).refuses(403, "endpoint_not_allowed")
    slow = caller(noria.service, noria.new_key(rpm=2))
    codes = [slow.post("/v1/feedback", body).status for _ in range(6)]
    assert codes.count(202) <= 4, "at most twice the limit where a minute turns"
    assert codes[-1] == 429 or codes.count(429) >= 2
    assert acme.send("GET", "/v1/feedback", headers={"authorization": f"Bearer {acme.key}"}).status == 405


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"target": "x", "thumb": "up", "coment": "?"}, "unknown_parameter", "'comment'"),
        ({"thumb": "up"}, "missing_required_parameter", "target"),
        ({"target": "x", "thumb": "up", "score": 1}, "missing_required_parameter", "thumb, score"),
        ({"target": "x", "thumb": "sideways"}, "invalid_value", "up"),
        ([{"target": "x", "thumb": "up"}] * 101, "invalid_value", "100"),
        (b"{", "invalid_json", "JSON"),
    ],
)
def test_a_mistake_is_named(acme, body, code, says) -> None:
    answer = acme.post("/v1/feedback", body)
    assert answer.status == 400, answer.body
    assert answer.json["error"]["code"] == code
    assert says in answer.json["error"]["message"]


def test_a_thousand_at_once_are_stored_exactly_once(noria, acme) -> None:
    exchanges = [acme.chat("echo").id for _ in range(10)]
    statements = [
        {"target": exchanges[n % 10], "thumb": n % 2 == 0, "metric": "crowd", "user": f"u{n}", "id": f"crowd-{n}"}
        for n in range(500)
    ]
    with ThreadPoolExecutor(16) as pool:  # each twice: a client that lost the answer asks again
        codes = list(pool.map(lambda s: acme.post("/v1/feedback", s).status, statements * 2))
    assert set(codes) <= {200, 202}
    end = time.monotonic() + 20
    while True:
        (arm,) = noria.api("GET", "/api/feedback/arms?app=echo&metric=crowd").json.values() or [None]
        if arm and arm["n"] == 500:
            break
        assert time.monotonic() < end, arm
        time.sleep(0.1)
    assert (arm["n"], arm["sum"]) == (500, 250.0)
