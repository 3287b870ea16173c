from functools import partial

import pytest

from noria.contracts.error import UpstreamError
from noria.dialects import upstream
from noria.dialects.openai_stream import DONE
from noria.dialects.upstream import Gate, OpenAITap, kept_headers, message_of, refusal, retry_after, transport_failure
from noria.kit import http_client

HI = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
ROLE = b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
STOP = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
ERROR = b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n'
SSE = [("content-type", "text/event-stream; charset=utf-8")]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([("retry-after-ms", "250"), ("retry-after", "9")], 0.25),
        ([("retry-after", "1.5")], 1.5),
        ([("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT")], 3.0),
        ([("retry-after", "soon")], None),
        ([("retry-after", "-1")], None),
        ([("retry-after", "nan")], None),
        ([("retry-after", "1e9")], None),
        ([], None),
    ],
)
def test_the_waiting_time_is_read_in_each_of_its_forms(headers, seconds):
    assert retry_after(headers, now=784111777.0) == seconds


@pytest.mark.parametrize(
    ("status", "code", "callers"),
    [
        (429, "upstream_rate_limited", False),
        (401, "upstream_auth", False),
        (402, "upstream_auth", False),
        (403, "upstream_auth", False),
        (400, "upstream_error", True),
        (404, "upstream_error", True),
        (413, "upstream_error", True),
        (500, "upstream_error", False),
        (529, "upstream_overloaded", False),
        (504, "upstream_timeout", False),
    ],
)
def test_each_status_has_its_code(status, code, callers):
    error = refusal(status, [], b'{"error":{"message":"why"}}', now=0, who="X")
    assert (error.code, error.upstream_status, error.callers_fault) == (code, status, callers)


def test_what_the_endpoint_says_about_a_key_is_not_repeated():
    error = refusal(401, [], b'{"error":{"message":"Incorrect API key provided: sk-123"}}', now=0, who="X")
    assert "sk-123" not in error.message


def test_an_error_body_is_kept_up_to_a_bound():
    assert len(refusal(500, [], b"x" * 10**6, now=0, who="X").body) == upstream.BODY_LIMIT


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"message":"a"}}', "a"),
        (b'{"error":"a"}', "a"),
        (b'{"message":"a"}', "a"),
        (b'{"detail":"a"}', "a"),
        (b'{"detail":[{"loc":1}]}', ""),
        (b"<html>", ""),
        (b"[]", ""),
    ],
)
def test_the_words_of_an_error_are_found_where_vendors_put_them(body, text):
    assert message_of(body) == text


def test_headers_worth_keeping_are_kept_and_cookies_are_not():
    headers = [
        ("x-request-id", "1"),
        ("set-cookie", "s"),
        ("x-ratelimit-remaining-tokens", "9"),
        ("openai-processing-ms", "3"),
        ("server", "x"),
    ]
    assert [name for name, _ in kept_headers(headers)] == [
        "x-request-id",
        "x-ratelimit-remaining-tokens",
        "openai-processing-ms",
    ]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (http_client.ConnectFailed, "upstream_refused"),
        (http_client.PoolExhausted, "upstream_refused"),
        (http_client.ConnectTimeout, "upstream_timeout"),
        (http_client.FirstByteTimeout, "upstream_timeout"),
        (http_client.IdleTimeout, "upstream_timeout"),
        (http_client.TotalTimeout, "upstream_timeout"),
        (partial(http_client.ConnectionLost, received=False), "upstream_cut"),
        (http_client.BadResponse, "bad_upstream_response"),
    ],
)
def test_each_failure_of_the_connection_has_its_code(kind, code):
    error = transport_failure(kind("x"), who="X", started=True)
    assert (error.code, error.started, error.upstream_status) == (code, True, None)


def passed(*chunks, status=200, headers=SSE, body=b""):
    """(bytes passed on, error or None) of one streamed answer."""
    got = bytearray()
    gate = Gate(OpenAITap("X"), got.extend, who="X")
    sink = gate.head(status, headers)
    try:
        for chunk in chunks:
            sink(chunk)
        gate.close(status, headers, body, now=0)
    except UpstreamError as e:
        return bytes(got), e
    return bytes(got), None


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_good_stream_passes_with_every_byte(size):
    stream = b": ping\n\n" + ROLE + HI + STOP + DONE
    assert passed(*(stream[i : i + size] for i in range(0, len(stream), size))) == (stream, None)


def test_a_stream_without_done_but_with_a_finish_reason_is_whole():
    assert passed(ROLE + HI + STOP)[1] is None


@pytest.mark.parametrize("done", [DONE, b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n", DONE + b": bye\n\n"])
@pytest.mark.parametrize("many", [1, 500])
def test_the_end_is_known_however_it_is_written_and_however_much_came_before(done, many):
    assert passed(ROLE, *[HI] * many, done) == (ROLE + HI * many + done, None)


def test_a_text_that_says_done_does_not_end_a_stream():
    assert passed(ROLE, HI.replace(b"hi", b"data: [DONE]"))[1].code == "upstream_cut"


@pytest.mark.parametrize(("stream", "started"), [(ROLE + HI, True), (ROLE, False), (b"", False)])
def test_a_stream_that_just_ends_is_cut(stream, started):
    got, error = passed(stream)
    assert (got, error.code, error.started) == (stream, "upstream_cut", started)


@pytest.mark.parametrize(("before", "started"), [(b"", False), (ROLE, False), (ROLE + HI, True)])
@pytest.mark.parametrize("together", [True, False])
def test_an_error_frame_never_passes_and_what_came_before_does(before, started, together):
    got, error = passed(before + ERROR + HI) if together else passed(before, ERROR, HI)
    assert (got, error.code, error.started) == (before, "upstream_error", started)
    assert "overloaded" in error.message


def test_a_rate_limit_inside_a_stream_is_told_from_other_errors():
    assert passed(b'data: {"error":{"message":"x","type":"rate_limit_error"}}\n\n')[1].code == "upstream_rate_limited"


def test_a_last_event_without_its_blank_line_is_completed():
    assert passed(HI + STOP + DONE[:-2]) == (HI + STOP + DONE, None)
    assert passed(HI + STOP + DONE[:-1]) == (HI + STOP + DONE, None)


def test_an_answer_that_is_no_stream_is_refused():
    gate = Gate(OpenAITap("X"), bytearray().extend, who="X")
    headers = [("content-type", "application/json")]
    assert gate.head(200, headers) is None
    with pytest.raises(UpstreamError, match="asked for a stream") as e:
        gate.close(200, headers, b"{}", now=0)
    assert e.value.code == "bad_upstream_response"


def test_a_frame_without_end_is_garbage():
    got, error = passed(HI, b"data: " + b"x" * 5_000_000, HI)
    assert (got, error.code, error.started) == (HI, "bad_upstream_response", True)
