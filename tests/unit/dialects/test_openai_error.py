import json

import openai as sdk
import pytest

from noria.contracts import error as e
from noria.dialects.openai_error import error_answer, error_body, error_frame, error_said


def answer(error):
    status, headers, body = error_answer(error)
    return status, dict(headers), json.loads(body)["error"]


def test_an_error_body_has_exactly_the_four_keys():
    assert json.loads(error_body("m", "t", None, None)) == {"error": {"message": "m", "type": "t", "param": None, "code": None}}


def test_a_rate_limit_says_when_to_come_back():
    status, headers, body = answer(e.LimitExceeded("slow", retry_after=0.25))
    assert (status, body["code"], body["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert headers == {"retry-after": "1", "retry-after-ms": "250"}


def test_a_spent_budget_is_not_worth_retrying():
    status, headers, body = answer(e.LimitExceeded("spent", code="insufficient_quota"))
    assert (status, body["code"], body["type"]) == (429, "insufficient_quota", "insufficient_quota")
    assert headers == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (e.RequestError("x", code="invalid_json", param="p"), 400, "invalid_json"),
        (e.RequestError("x", status=413), 413, None),
        (e.Unauthorized("x", code="invalid_api_key"), 401, "invalid_api_key"),
        (e.NotFound("x", code="model_not_found"), 404, "model_not_found"),
        (e.Blocked("x", check="pii", side="input"), 400, "content_filter"),
        (e.Conflict("x"), 409, None),
        (e.ConfigError("x"), 500, "config_error"),
    ],
)
def test_each_error_has_its_status_and_code(error, status, code):
    got, _, body = answer(error)
    assert (got, body["code"], body["message"]) == (status, code, "x")


@pytest.mark.parametrize("error", [e.Unavailable("draining"), e.StoreError("sqlite is away")])
def test_our_own_outage_is_503_with_a_time_to_come_back(error):
    status, headers, body = answer(error)
    assert (status, headers["retry-after"], body["code"]) == (503, "1", "unavailable")


def test_hints_reach_the_caller():
    assert answer(e.RequestError("No.", hint="Do this."))[2]["message"] == "No. Do this."


@pytest.mark.parametrize(
    ("code", "status"), [("upstream_error", 502), ("upstream_timeout", 504), ("upstream_auth", 502), ("upstream_refused", 502)]
)
def test_a_failed_endpoint_is_not_retried_a_second_time_by_the_client(code, status):
    got, headers, body = answer(e.UpstreamError("x", code=code, upstream_status=401))
    assert (got, headers["x-should-retry"], body["code"]) == (status, "false", code)


def test_a_busy_endpoint_passes_its_waiting_time_on():
    status, headers, body = answer(e.UpstreamError("x", code="upstream_rate_limited", upstream_status=429, retry_after=7))
    assert (status, headers, body["code"]) == (429, {"retry-after": "7", "retry-after-ms": "7000"}, "upstream_rate_limited")


def test_the_callers_own_error_passes_through_in_the_endpoints_words():
    said = b'{"error": {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}}'
    status, headers, body = error_answer(e.UpstreamError("x", code="upstream_error", upstream_status=400, body=said))
    assert (status, dict(headers), body) == (400, {"x-should-retry": "false"}, said)


def test_an_unreadable_error_of_the_endpoint_is_put_into_the_usual_shape():
    status, _, body = answer(e.UpstreamError("refused", code="upstream_error", upstream_status=422, body=b"<html>"))
    assert (status, body["message"], body["param"]) == (422, "refused", None)


def test_an_error_frame_is_one_event_that_the_official_client_raises_on():
    frame = error_frame(e.UpstreamError("cut", code="upstream_cut", started=True))
    [event] = sdk._streaming.SSEDecoder().iter_bytes(iter([frame]))
    assert event.json()["error"]["code"] == "upstream_cut"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"error": "text"}', b'{"error": null}', b'"error"'])
def test_a_body_without_an_error_of_ours_says_nothing(body):
    assert error_said(body) is None


def test_what_an_error_of_ours_says():
    assert error_said(b'{"error": {"message": "No.", "code": "no"}}') == {"message": "No.", "code": "no"}
