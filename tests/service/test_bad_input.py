"""What is wrong with a request is said in OpenAI's words, and recorded without anything of its body."""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlsplit

import pytest

CHAT = "/v1/chat/completions"
SAID = [{"role": "user", "content": "a-word-of-the-prompt"}]
SECRET = "a-word-of-the-prompt"


@pytest.fixture(scope="module")
def noria(serve_once, upstream, caller):
    """One service with a key for all apps, a small body limit, and an upstream that shows what it got."""
    config = {
        "models": {
            "up": {"provider": "openai_compatible", "url": upstream.url, "model": "ok"},
            "fake": {"provider": "scripted", "model": "fake"},
        },
        "apps": {"support": {"model": "up"}, "echo": {"model": "fake"}},
        "serve": {"body_limit": "128kB"},
    }
    made = caller(serve_once(json.dumps(config)))
    made.key = made.new_key(name="all")
    return made


def refused_and_recorded(noria, answer, status, code, **shape):
    """The error's whole form on the wire, and its row: outcome, status, code, and no body."""
    error = answer.refuses(status, code, **shape)
    assert "retry-after" not in answer.headers
    assert "x-should-retry" not in answer.headers
    found = noria.trace(answer.id)
    row = found["row"]
    assert (row["outcome"], row["status"], row["error_code"]) == ("refused", status, code or "RequestError")
    assert answer.headers["x-noria-trace"] == row["trace"]
    assert (found["request"], found["answer"], row["attempts"]) == (None, None, [])
    assert SECRET not in json.dumps(found)
    return error


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b'{"model": "support", "messages": [a-word-of-the-prompt', "not valid JSON", id="cut off"),
        pytest.param(b"", "not valid JSON", id="nothing"),
        pytest.param(b"a-word-of-the-prompt", "not valid JSON", id="text"),
        pytest.param(b'["a-word-of-the-prompt"]', "JSON object", id="a list"),
        pytest.param(b'"a-word-of-the-prompt"', "JSON object", id="a string"),
        pytest.param(b'{"model": "support", "messages": [{"role": "user", "content": "\xff\xfe"}]}', "UTF-8", id="not UTF-8"),
        pytest.param(b'{"model": "support"} {"model": "support"}', "not valid JSON", id="two documents"),
        pytest.param(b'{"model":"support","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested", id="nesting bomb"),
    ],
)
def test_what_is_no_json_object_is_refused(noria, body, says) -> None:
    error = refused_and_recorded(noria, noria.post(CHAT, body), 400, "invalid_json")
    assert says in error["message"]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"model": None}, "invalid_type", "model"),
        ({"model": 7}, "invalid_type", "model"),
        ({"model": ""}, None, "model"),
        ({"messages": "a-word-of-the-prompt"}, "invalid_type", "messages"),
        ({"messages": {}}, "invalid_type", "messages"),
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": []}, "empty_array", "messages"),
        ({"messages": [SECRET]}, None, "messages[0]"),
        ({"messages": [{"content": SECRET}]}, None, "messages[0].role"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"stream_options": 1}, "invalid_type", "stream_options"),
        ({"n": "two"}, "invalid_type", "n"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"user": 5}, "invalid_type", "user"),
        ({"max_tokens": "many"}, "invalid_type", "max_tokens"),
        ({"max_tokens": -1}, "integer_below_min_value", "max_tokens"),
        ({"variables": {"a": 1}}, "invalid_type", "variables"),
        ({"conversation": 3}, "invalid_type", "conversation"),
        ({"conversation": "a\0b"}, "invalid_value", "conversation"),
        ({"conversation": "a" * 513}, "invalid_value", "conversation"),
        ({"n": 10**30}, "integer_above_max_value", "n"),
    ],
    ids=lambda v: json.dumps(v)[:40] if isinstance(v, dict) else None,
)
def test_a_wrong_type_names_its_parameter(noria, change, code, param) -> None:
    answer = noria.post(CHAT, {"model": "support", "messages": SAID, **change})
    refused_and_recorded(noria, answer, 400, code, param=param)


def test_a_missing_model_is_named(noria) -> None:
    refused_and_recorded(noria, noria.post(CHAT, {"messages": SAID}), 400, None, param="model")


def test_a_key_that_is_there_twice_is_refused(noria) -> None:
    body = b'{"model": "support", "messages": [], "messages": [{"role": "user", "content": "a-word-of-the-prompt"}]}'
    refused_and_recorded(noria, noria.post(CHAT, body), 400, "invalid_json", param="messages")


def test_a_duplicate_key_inside_a_message_is_refused(noria) -> None:
    body = b'{"model": "support", "messages": [{"role": "user", "content": "a", "content": "a-word-of-the-prompt"}]}'
    refused_and_recorded(noria, noria.post(CHAT, body), 400, "invalid_json", param="messages[0].content")


def test_unknown_keys_reach_the_upstream_untouched(noria, upstream) -> None:
    odd = {"stop": ["x"], "x_vendor": {"deep": [1, 2.50, None, "世界"]}, "temperature": 0.30000000000000004}
    answer = noria.post(CHAT, {"model": "support", "messages": SAID, **odd})
    assert answer.status == 200
    got = upstream.seen[-1]["body"]
    assert {k: got[k] for k in odd} == odd
    assert got["model"] == "ok"
    assert got["messages"] == SAID
    assert "authorization" not in upstream.seen[-1]["headers"]


def test_a_body_above_the_configured_limit_is_refused(noria) -> None:
    before = noria.api("GET", "/api/traces?filter=error%3Dbody_too_large").json["total"]
    for size in (20 * 1024 * 1024, 129 * 1024):
        body = json.dumps({"model": "support", "messages": [{"role": "user", "content": "x" * size}]}).encode()
        answer = noria.post(CHAT, body)
        error = answer.refuses(413, "body_too_large")
        assert str(128 * 1024) in error["message"]
        assert len(answer.headers["x-request-id"]) == 36
    end = time.monotonic() + 10
    while noria.api("GET", "/api/traces?filter=error%3Dbody_too_large").json["total"] < before + 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    found = noria.api("GET", "/api/traces?filter=error%3Dbody_too_large").json["rows"][0]
    assert (found["outcome"], found["status"], found["preview_in"]) == ("refused", 413, "")


def test_a_body_below_the_configured_limit_is_served(noria) -> None:
    assert noria.chat("support", "x" * 120 * 1024).status == 200


def test_a_wrong_key_is_401(noria) -> None:
    answer = noria.chat("support", SECRET, headers={"authorization": "Bearer nk-wrong-key-wrong-key"})
    error = refused_and_recorded(noria, answer, 401, "invalid_api_key")
    assert "nk-wrong" not in error["message"]


def test_no_key_is_401(noria, caller) -> None:
    answer = caller(noria.service).chat("support", SECRET)
    refused_and_recorded(noria, answer, 401, "missing_api_key")


@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
def test_a_key_may_come_in_the_headers_of_other_clients(noria, caller, header) -> None:
    assert caller(noria.service).chat("support", headers={header: noria.key}).status == 200


def test_a_key_of_another_app_is_403_and_says_what_it_may(noria) -> None:
    key = noria.new_key(apps=["echo"])
    answer = noria.chat("support", SECRET, headers={"authorization": f"Bearer {key}"})
    error = refused_and_recorded(noria, answer, 403, "model_not_allowed", param="model")
    assert "echo" in error["message"]
    assert noria.chat("echo", headers={"authorization": f"Bearer {key}"}).status == 200


def test_an_expired_key_is_401(noria) -> None:
    made = noria.api("POST", "/api/keys", {"expires_in_days": 1e-9}).json
    end = time.monotonic() + 5
    while (
        "expired"
        not in (answer := noria.chat("support", headers={"authorization": f"Bearer {made['key']}"})).json["error"]["message"]
    ):
        assert time.monotonic() < end, answer.body
        time.sleep(0.05)
    refused_and_recorded(noria, answer, 401, "invalid_api_key")


def test_an_unknown_app_is_404_and_names_the_nearest(noria) -> None:
    error = refused_and_recorded(noria, noria.chat("suport", SECRET), 404, "model_not_found", param="model")
    assert "Did you mean 'support'?" in error["message"]


def test_an_unknown_app_far_from_all_lists_what_there_is(noria) -> None:
    error = refused_and_recorded(noria, noria.chat("zzzzzz", SECRET), 404, "model_not_found", param="model")
    assert "echo" in error["message"]
    assert "support" in error["message"]


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "/v1/nothing/", "/v1/chat", "/v1/chat/completions/", "/v1/Chat/Completions", "/v1/engines/x/y"]
)
def test_an_unknown_url_under_v1_is_404(noria, path) -> None:
    answer = noria.post(path, {"model": "support", "messages": SAID})
    answer.refuses(404, "unknown_url")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_a_wrong_method_is_405_and_says_which_is_right(noria, method) -> None:
    answer = noria.send(method, CHAT, headers={"authorization": f"Bearer {noria.key}"})
    answer.refuses(405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    assert answer.headers["x-request-id"]


def test_posting_to_the_model_list_is_405(noria) -> None:
    answer = noria.post("/v1/models", {})
    answer.refuses(405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD"


def test_head_has_the_headers_of_get_and_no_body(noria) -> None:
    bearer = {"authorization": f"Bearer {noria.key}"}
    got, head = (noria.send(m, "/v1/models", headers=bearer) for m in ("GET", "HEAD"))
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
    assert noria.send("HEAD", CHAT, headers=bearer).status == 405


def test_bytes_that_are_no_http_get_400_and_the_service_goes_on(noria) -> None:
    host, port = urlsplit(noria.service.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as s:
        s.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert s.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert noria.chat("echo").status == 200
