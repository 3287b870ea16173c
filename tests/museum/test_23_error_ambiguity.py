"""Museum 23: errors that do not say whose they are.

The same 429 stood for the gateway's limit and for the provider's (tensorzero#3678), and a network error came back with status 200
(portkey#267): the caller could not tell what to change, or that anything was wrong.

In Noria the `type` says the source: `upstream_error` is the provider's, everything else ours. Each kind of failure has a `code` of
its own and a status that says failure; our own outages are 503, and a key of ours that a provider refuses is no 401 for the caller.
"""

from __future__ import annotations

import pytest
from msgspec import json

from noria.contracts.error import LimitExceeded, NoriaError, RequestError, StoreError, Unavailable, UpstreamError
from noria.dialects.openai_error import error_answer
from noria.gateway.retry import classify


def answered(error: NoriaError) -> tuple[int, str, str]:
    status, _, body = error_answer(error)
    said = json.decode(body)["error"]
    return status, said["type"], said["code"]


def test_a_providers_rate_limit_is_told_from_ours() -> None:
    theirs = answered(UpstreamError("slow", code="upstream_rate_limited", upstream_status=429))
    ours = answered(LimitExceeded("slow", code="rate_limit_exceeded"))
    spent = answered(LimitExceeded("spent", code="insufficient_quota"))
    assert [a[0] for a in (theirs, ours, spent)] == [429, 429, 429]
    assert theirs[1:] == ("upstream_error", "upstream_rate_limited")
    assert "upstream" not in "".join(ours[1:] + spent[1:])
    assert ours[2] != spent[2]


@pytest.mark.parametrize(
    ("code", "status"),
    [("upstream_refused", 502), ("upstream_cut", 502), ("upstream_timeout", 504), ("bad_upstream_response", 502)],
)
def test_a_network_error_is_never_a_success(code: str, status: int) -> None:
    assert answered(UpstreamError("gone", code=code)) == (status, "upstream_error", code)


def test_our_own_outage_is_503_and_never_401() -> None:
    for error in (Unavailable("starting"), StoreError("disk")):
        status, headers, _ = error_answer(error)
        assert status == 503
        assert any(name == "retry-after" for name, _ in headers)
        assert answered(error)[1] != "upstream_error"


def test_a_constraint_that_nobody_meets_is_the_requests_error_and_says_so() -> None:
    status, type_, code = answered(RequestError("No model …", code="no_model_qualifies", param="model"))
    assert (status, type_, code) == (400, "invalid_request_error", "no_model_qualifies")


def test_a_refused_key_of_ours_is_not_shown_as_the_callers() -> None:
    error = UpstreamError("The endpoint 'x' answered 401.", code="upstream_auth", upstream_status=401)
    assert answered(error) == (502, "upstream_error", "upstream_auth")
    assert classify(error) == "auth"
