"""OpenAI's wire form, errors: the body that SDKs parse, and the status and headers that steer their retries.

openai-python retries 408, 409, 429 and 5xx twice on its own, waits what `retry-after-ms`, then `retry-after`
say, and obeys `x-should-retry`. Our retries times theirs multiply, so an answer that we have already retried,
and one that no retry can mend, say `x-should-retry: false` (`_base_client.py`, `_exceptions.py`, 3.3.1).
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from noria.contracts.error import Conflict, LimitExceeded, NoriaError, StoreError, UpstreamError

Headers = list[tuple[str, str]]

_NO_RETRY = ("x-should-retry", "false")


class _Detail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None
    details: dict[str, object] | msgspec.UnsetType = msgspec.UNSET


class _Body(msgspec.Struct):
    error: _Detail


def error_body(
    message: str, type: str, param: str | None, code: str | None, *, details: dict[str, object] | None = None
) -> bytes:
    """The body of an error: all four keys are there, always, as the specification requires; `details` besides, where given.

    >>> error_body("no", "invalid_request_error", None, "x")
    b'{"error":{"message":"no","type":"invalid_request_error","param":null,"code":"x"}}'
    """
    return msgspec.json.encode(_Body(_Detail(message, type, param, code, details or msgspec.UNSET)))


def error_answer(error: NoriaError) -> tuple[int, Headers, bytes]:
    """Status, headers and body for `error`. The endpoint's own words pass through where the caller erred."""
    if isinstance(error, UpstreamError):
        return _upstream(error)
    if isinstance(error, StoreError) and not isinstance(error, Conflict):  # an outage of ours: come back soon
        return 503, _waiting(error.retry_after or 1.0), _body(error, "service_unavailable", "unavailable")
    headers = _waiting(error.retry_after)
    if isinstance(error, LimitExceeded):
        quota = error.code in ("insufficient_quota", "price_unknown")
        if quota or error.lasting:  # waiting mends none of these
            headers = [*headers, _NO_RETRY]
        kind, code = ("insufficient_quota", error.code) if quota else (error.type, error.code or "rate_limit_exceeded")
        return 429, headers, error_body(error.text, kind, error.param, code, details=error.details)
    return error.status, headers, _body(error, error.type)


def error_frame(error: NoriaError) -> bytes:
    """The same as a frame, for a stream whose status has left already."""
    return b"data: " + error_answer(error)[2] + b"\n\n"


def _upstream(error: UpstreamError) -> tuple[int, Headers, bytes]:
    if error.callers_fault and error.upstream_status is not None:
        body = error.body if _is_error_body(error.body) else _body(error, "invalid_request_error")
        return error.upstream_status, [_NO_RETRY], body
    headers = _waiting(error.retry_after)
    if error.code == "upstream_rate_limited":
        return 429, [*headers, _NO_RETRY] if error.retried else headers, _body(error, error.type)
    return error.status, [*headers, _NO_RETRY], _body(error, error.type)


def _body(error: NoriaError, type: str, code: str | None = None) -> bytes:
    return error_body(error.text, type, error.param, error.code or code)


def _waiting(seconds: float | None) -> Headers:
    if seconds is None:
        return []
    return [("retry-after", str(max(1, math.ceil(seconds)))), ("retry-after-ms", str(max(1, math.ceil(seconds * 1000))))]


def error_said(body: bytes) -> dict[str, Any] | None:
    """The `error` of an answer of ours (`message`, `code`, `type`, …); None for a body that has none."""
    try:
        error = msgspec.json.decode(body)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return None
    return error if isinstance(error, dict) else None


def _is_error_body(body: bytes) -> bool:
    try:
        return "error" in msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return False
