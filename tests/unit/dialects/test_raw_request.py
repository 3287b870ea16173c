"""Requests that pass through: the path, the headers, and the one value that is replaced."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noria.contracts.error import NotFound, RequestError
from noria.dialects.raw_request import asked_headers, checked_path, find_model, given_headers, read_facts, with_model

JSON = "application/json"


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/", "/v1/..", "/v1/a/../b", "/v1//a", "/v1/a//b", "/v1/%2e%2e/a", "/v1/a%2fb", "/v1/a\\b", "/v1/.a", "/v2/a",
     "/v1/a/;/b?", "v1/a", "http://x/v1/a", "/v1/" + "a/" * 20, "/v1/" + "a" * 300, "/v1/a b", "/v1/\u4e16", "/v1/images/"],
)  # fmt: skip
def test_museum_03_a_path_that_could_be_read_in_two_ways_is_no_path(path: str) -> None:
    with pytest.raises(NotFound):
        checked_path(path, "")


def test_a_plain_path_goes_below_the_url_with_its_query() -> None:
    assert checked_path("/v1/threads/thread_1/runs", "limit=2&order=asc") == "/threads/thread_1/runs?limit=2&order=asc"
    with pytest.raises(RequestError, match="query"):
        checked_path("/v1/threads", "a=\r\nx: y")


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/realtime/sessions", "/v1/organization/admin_api_keys", "/v1/projects"])
def test_what_never_passes(path: str) -> None:
    with pytest.raises(RequestError) as e:
        checked_path(path, "")
    assert e.value.status == 501


@given(
    st.dictionaries(st.text(max_size=5), st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(max_size=5), x), max_leaves=8), max_size=5),
    st.text(min_size=1, max_size=10), st.booleans(),
)  # fmt: skip
def test_only_the_model_of_any_json_changes(fields: dict, name: str, ascii: bool) -> None:
    body = json.dumps({**fields, "model": name}, ensure_ascii=ascii, indent=1).encode("utf-8", "surrogatepass")
    try:
        body.decode()
    except UnicodeDecodeError:
        return
    found = find_model(JSON, body)
    assert found is not None
    assert found.name == name
    new = with_model(body, found, '世界"\\')
    assert json.loads(new) == {**fields, "model": '世界"\\'}
    assert new[: found.start] == body[: found.start]
    assert new.endswith(body[found.end :])


@pytest.mark.parametrize(
    "body",
    [b'{"model":"a","model":"b"}', b'{"model":"a","\\u006dodel":"b"}', b'{"model":5}', b'{"model":""}', b'{"model":"a"', b'{"model":"a"}}',
     b'{"model":"\xff"}', b'{"model":["a"]}'],
)  # fmt: skip
def test_a_model_named_twice_or_wrongly_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        find_model(JSON, body)


def test_a_model_elsewhere_is_none() -> None:
    assert find_model(JSON, b'{"a":{"model":"x"},"b":[{"model":"y"}],"c":"\\"model\\":\\"z\\""}') is None
    assert find_model(JSON, b'["model"]') is None
    assert find_model("text/plain", b'{"model":"x"}') is None
    assert find_model(JSON, b"") is None


def form(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(b"--X\r\n%b\r\n\r\n%b\r\n" % (h.encode(), v) for h, v in parts) + b"--X--\r\n"


def test_a_forms_model_is_found_whatever_its_files_hold() -> None:
    hostile = b'\r\n--Y\r\ncontent-disposition: form-data; name="model"\r\n\r\nevil'
    body = form(
        ('content-disposition: form-data; name="file"; filename="model"', hostile),
        ('Content-Disposition: form-data; name="model"', "语音".encode()),
    )
    found = find_model('multipart/form-data; charset=utf-8; boundary="X"', body)
    assert found is not None
    assert found.name == "语音"
    assert with_model(body, found, "whisper") == body.replace("语音".encode(), b"whisper")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=X", b'--X\r\ncontent-disposition: form-data; name="model"\r\n\r\na'),
        ("multipart/form-data; boundary=X", form(*[('content-disposition: form-data; name="model"', b"a")] * 2)),
        ("multipart/form-data; boundary=X", form(('content-disposition: form-data; name="model"', b"\xff"))),
    ],
)
def test_a_broken_form_is_refused(kind: str, body: bytes) -> None:
    with pytest.raises(RequestError):
        find_model(kind, body)


def test_headers_pass_by_name_only() -> None:
    asked = {"authorization": "x", "cookie": "x", "connection": "x", "x-anything": "x", "accept": "a", "openai-beta": "b"}
    assert asked_headers(asked) == [("accept", "a"), ("openai-beta", "b")]
    answered = [
        ("set-cookie", "x"),
        ("server", "x"),
        ("content-type", "t"),
        ("x-ratelimit-remaining-tokens", "5"),
        ("location", "x"),
    ]
    assert given_headers(answered) == [("content-type", "t"), ("x-ratelimit-remaining-tokens", "5")]


def test_usage_is_read_where_an_answer_has_it() -> None:
    usage, model, name = read_facts(
        JSON, b'{"id":"i","model":"m","usage":{"input_tokens":5,"output_tokens":7,"input_tokens_details":{"image_tokens":2}}}'
    )
    assert usage is not None
    assert (usage.input, usage.output, usage.image_input, model, name) == (5, 7, 2, "m", "i")
    sse = b'data: {"x":1}\n\ndata: {"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
    usage, _, _ = read_facts("text/event-stream", sse)
    assert usage is not None
    assert (usage.input, usage.output) == (1, 2)
    assert read_facts("audio/mpeg", b"\xff")[0] is None
    assert read_facts(JSON, b"[1]")[0] is None
