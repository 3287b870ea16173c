"""Whatever a model endpoint does, the caller gets an honest answer, another endpoint is tried while that is possible,
and the trace says what happened."""

from __future__ import annotations

import atexit
import http.client
import json
import socket
import time
from urllib.parse import urlsplit

import pytest

TOKENS = "Hello, 世界! How are you?"


_TAKEN: list[socket.socket] = []
"""Bound and not listening: connections are refused, and nobody else, Noria least of all, is given the port."""


def free_port() -> int:
    _TAKEN.append(socket.socket())
    _TAKEN[-1].bind(("127.0.0.1", 0))
    atexit.register(_TAKEN[-1].close)
    return _TAKEN[-1].getsockname()[1]


KINDS = (
    "slow-30",
    "cut",
    "garbage",
    "status-500",
    "status-503",
    "status-401",
    "status-400",
    "retry-after",
    "hang-up",
    "pause-30",
)


@pytest.fixture(scope="module")
def noria(serve_once, upstream, mirror, caller):
    """Each behaviour `x` is served alone by app `x`, and before a good one by app `x:ok`: each endpoint once, however often
    it has failed in other tests (`test_routing.py` has retries and health).
    """
    once, all_asked = {"retries": 0, "health": False}, {"health": False}
    times = {"connect": 1, "first": 0.4, "idle": 0.5, "total": 20}
    models = {
        kind: {"provider": "openai_compatible", "url": upstream.url, "model": kind, "timeouts": times}
        for kind in (*KINDS, "ok")
    }
    models["refused"] = {"provider": "openai_compatible", "url": f"http://127.0.0.1:{free_port()}/v1", "model": "x"}
    models["endless"] = {"provider": "openai_compatible", "url": mirror.url, "model": "endless"}
    apps = {name: {"model": name, "routing": once} for name in models}
    apps |= {f"{name}:ok": {"model": [name, "ok"], "routing": all_asked} for name in models if name != "ok"}
    apps["three"] = {"model": ["refused", "status-500", "ok"], "routing": all_asked}
    return caller(serve_once(json.dumps({"models": models, "apps": apps})))


WHOLE = [
    pytest.param("refused", 502, "upstream_refused", None, id="nothing listens"),
    pytest.param("slow-30", 504, "upstream_timeout", None, id="no first byte in time"),
    pytest.param("cut", 502, "upstream_cut", None, id="cut in the middle of its JSON"),
    pytest.param("garbage", 502, "bad_upstream_response", 200, id="garbage"),
    pytest.param("hang-up", 502, "upstream_cut", None, id="hangs up before it answers"),
    pytest.param("status-500", 502, "upstream_error", 500, id="500"),
    pytest.param("status-503", 502, "upstream_error", 503, id="503"),
    pytest.param("status-401", 502, "upstream_auth", 401, id="our key is refused"),
]


STREAMED = [case for case in WHOLE if case.values[0] not in ("cut", "garbage")]
"""These two have streams of their own kind, below."""


@pytest.mark.parametrize(("app", "status", "code", "said"), STREAMED)
def test_a_stream_that_never_began_is_a_plain_error(noria, app, status, code, said) -> None:
    failed(noria, app, status, code, said, stream=True)


@pytest.mark.parametrize(("app", "status", "code", "said"), WHOLE)
def test_a_failed_endpoint_is_an_honest_error(noria, app, status, code, said) -> None:
    failed(noria, app, status, code, said, stream=False)


def failed(noria, app, status, code, said, *, stream) -> None:
    """The error on the wire, and in the trace with the attempt that it came of."""
    answer = noria.chat(app, stream=stream)
    answer.refuses(status, code, type="upstream_error")
    assert answer.headers["x-should-retry"] == "false", "Noria has tried already"
    row = noria.row(answer.id)
    assert (row["outcome"], row["status"], row["error_code"]) == ("error", status, code)
    assert [(a["endpoint"], a["status"], a["error"]) for a in row["attempts"]] == [(app, said, code)]
    assert row["release"] == answer.headers["x-noria-release"]


def test_a_rate_limit_upstream_is_passed_on_with_its_wait(noria) -> None:
    answer = noria.chat("retry-after")
    answer.refuses(429, "upstream_rate_limited", type="upstream_error")
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("7", "7000")
    assert "x-should-retry" not in answer.headers
    row = noria.row(answer.id)
    assert (row["outcome"], row["status"], row["error_code"]) == ("error", 429, "upstream_rate_limited")


def test_the_callers_mistake_keeps_the_upstreams_words_and_is_not_tried_elsewhere(noria) -> None:
    answer = noria.chat("status-400:ok")
    assert answer.status == 400
    assert answer.json["error"]["message"] == "upstream says no"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["content-type"] == "application/json"
    assert [a["endpoint"] for a in noria.row(answer.id)["attempts"]] == ["status-400"]


@pytest.mark.parametrize(("app", "status", "code", "said"), WHOLE)
def test_a_fallback_answers_before_the_first_byte(noria, app, status, code, said) -> None:
    answer = noria.chat(f"{app}:ok")
    assert (answer.status, answer.text()) == (200, TOKENS)
    row = noria.row(answer.id)
    assert (row["outcome"], row["status"], row["endpoint"]) == ("ok", 200, "ok")
    attempts = [(a["endpoint"], a["status"], a["error"]) for a in row["attempts"]]
    assert attempts == [(app, said, code), ("ok", 200, "")]


@pytest.mark.parametrize("app", ["refused", "slow-30", "hang-up", "status-503", "retry-after", "pause-30"])
def test_a_stream_falls_back_before_its_first_content(noria, app) -> None:
    """`pause` has sent its status and the role already: only content binds."""
    answer = noria.chat(f"{app}:ok", stream=True)
    assert (answer.status, answer.text(), answer.frames[-1]) == (200, TOKENS, "[DONE]")
    assert len({f["model"] for f in answer.frames[:-1]}) == 1, "nothing of the first endpoint's stream is left"
    row = noria.row(answer.id)
    assert [a["endpoint"] for a in row["attempts"]] == [app, "ok"]
    assert noria.trace(answer.id)["answer"]["choices"][0]["message"]["content"] == TOKENS


def test_the_route_is_tried_in_order_until_one_answers(noria) -> None:
    answer = noria.chat("three")
    assert answer.text() == TOKENS
    assert [a["endpoint"] for a in noria.row(answer.id)["attempts"]] == ["refused", "status-500", "ok"]


@pytest.mark.parametrize("app", ["cut", "cut:ok"])
def test_after_the_first_content_a_cut_is_an_error_in_the_stream(noria, app) -> None:
    answer = noria.chat(app, stream=True)
    assert answer.status == 200
    assert answer.text() == "Hello, 世", "the caller keeps what came before"
    error = answer.frames[-1]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("upstream_error", "upstream_cut")
    assert "[DONE]" not in answer.frames
    found = noria.trace(answer.id)
    row = found["row"]
    assert (row["outcome"], row["status"], row["error_code"]) == ("error", 200, "upstream_cut")
    assert [a["endpoint"] for a in row["attempts"]] == ["cut"], "no other endpoint is tried after content"
    assert found["answer"]["choices"][0]["message"]["content"] == "Hello, 世"
    assert row["cost_usd"] is None


def test_a_stream_asked_for_and_not_given_is_an_error(noria) -> None:
    answer = noria.chat("garbage", stream=True)
    answer.refuses(502, "bad_upstream_response", type="upstream_error")


def test_a_failed_endpoint_leaves_its_neighbour_alone(noria) -> None:
    """A connection broken by one exchange is not handed to the next."""
    for _ in range(3):
        noria.chat("hang-up")
        assert noria.chat("ok").status == 200


def test_a_caller_who_leaves_takes_the_upstream_call_with_it(noria, mirror) -> None:
    mirror.gone.clear()
    connection = http.client.HTTPConnection(urlsplit(noria.service.url).netloc, timeout=10)
    body = {"model": "endless", "stream": True, "messages": [{"role": "user", "content": "go"}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200
    assert b"on and" in answer.read1(4096) + answer.read1(4096)
    left = time.monotonic()
    answer.close()
    connection.close()
    while not mirror.gone:
        assert time.monotonic() < left + 5
        time.sleep(0.01)
    assert mirror.gone[0] - left < 1.0
    row = noria.row(answer.headers["x-request-id"])
    assert (row["outcome"], row["error_code"], row["cost_usd"]) == ("cancelled", "cancelled", None)
    assert [(a["endpoint"], a["error"]) for a in row["attempts"]] == [("endless", "cancelled")]


def test_a_caller_who_leaves_before_the_answer_begins_is_recorded_too(noria) -> None:
    before = _cancelled(noria)
    connection = http.client.HTTPConnection(urlsplit(noria.service.url).netloc, timeout=10)
    body = {"model": "slow-30", "messages": [{"role": "user", "content": "go"}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    time.sleep(0.1)
    connection.close()
    end = time.monotonic() + 10
    while _cancelled(noria) == before:
        assert time.monotonic() < end
        time.sleep(0.05)
    row = noria.api("GET", "/api/traces?filter=outcome%3Dcancelled").json["rows"][0]
    assert (row["app"], row["status"]) == ("slow-30", 499)


def _cancelled(noria) -> int:
    return noria.api("GET", "/api/traces?filter=outcome%3Dcancelled").json["total"]
