"""Requests that pass through verbatim: which paths may, which headers, and the one value that is replaced, `model`.

A path is taken apart and found plain before it is sent anywhere: no dot segments, no empty ones, nothing
percent-encoded, so that no two readers can see two paths in it (CWE-22, CWE-918; portkey#1718).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from noria.contracts.error import NotFound, RequestError
from noria.contracts.exchange import Usage

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_SEGMENT = re.compile(r"[A-Za-z0-9_~:@=+,-][A-Za-z0-9._~:@=+,-]{0,199}").fullmatch
_QUERY = re.compile(r"[A-Za-z0-9._~:@=+,;&%/?!$'()*\[\]-]{0,4096}").fullmatch
_NEVER = {
    "realtime": "Realtime sessions are not served here.",
    "organization": "Administration of an upstream's account is not passed through.",
    "organizations": "Administration of an upstream's account is not passed through.",
    "projects": "Administration of an upstream's account is not passed through.",
    "dashboard": "Administration of an upstream's account is not passed through.",
}
_ASKED = frozenset({
    "accept", "content-type", "idempotency-key", "if-match", "if-none-match", "openai-beta", "range", "x-client-request-id",
})  # fmt: skip
_GIVEN = frozenset({
    "accept-ranges", "cache-control", "content-disposition", "content-language", "content-range", "content-type", "etag",
    "last-modified", "openai-model", "openai-processing-ms", "openai-version", "retry-after", "retry-after-ms",
})  # fmt: skip
_GIVEN_PREFIXES = ("x-ratelimit-", "upload-")
_BOUNDARY = re.compile(r"""multipart/form-data;.*?boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))""", re.IGNORECASE | re.DOTALL)
_NAMED_MODEL = re.compile(rb"""content-disposition:[^\r\n]*;\s*name=(?:"model"|model)(?:;|\r|$)""", re.IGNORECASE)
_MOST_PARTS = 1000
_LONGEST_MODEL = 512
Headers = list[tuple[str, str]]


class Model(NamedTuple):
    """Where a request names its model: the bytes from `start` to `end` stand for `name`."""

    name: str
    start: int
    end: int
    json: bool


def checked_path(path: str, query: str) -> str:
    """The path below `/v1` with its query, fit to be put behind an upstream's URL. Raises `NotFound`, `RequestError`."""
    segments = path.split("/")
    if segments[:2] != ["", "v1"] or len(segments) < 3 or len(segments) > 16 or not all(map(_SEGMENT, segments[2:])):
        raise NotFound(f"Unknown request URL: {path[:200]}.", code="unknown_url")
    if _QUERY(query) is None:
        raise RequestError("The query holds characters that a URL cannot have.", code="invalid_value")
    if segments[2] in _NEVER:
        raise RequestError(_NEVER[segments[2]], code="unsupported_feature", status=501)
    return path.removeprefix("/v1") + ("?" + query if query else "")


def asked_headers(headers: dict[str, str]) -> Headers:
    """The caller's headers that an upstream may see. Never credentials, cookies, addresses or anything hop-by-hop."""
    return [(k, v) for k, v in headers.items() if k in _ASKED]


def given_headers(headers: Headers) -> Headers:
    """The upstream's headers that the caller may see. Never cookies, locations or anything hop-by-hop."""
    return [(k, v) for k, v in headers if k in _GIVEN or k.startswith(_GIVEN_PREFIXES)]


def find_model(content_type: str, body: bytes) -> Model | None:
    """Where the request names its model: at the top level of JSON, or in the field `model` of a form; None where nowhere.

    Raises `RequestError` where it is named twice, or in a way that two readers may read differently.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _in_form(content_type, body)
    return _in_json(body) if kind == "application/json" and body else None


def with_model(body: bytes, model: Model, name: str) -> bytes:
    """The body with `name` in place of the model; every other byte stays."""
    new = msgspec.json.encode(name) if model.json else name.encode()
    return body[: model.start] + new + body[model.end :]


def _in_json(body: bytes) -> Model | None:
    try:
        text = body.decode()
    except UnicodeDecodeError as e:
        raise RequestError(f"The request body is not UTF-8 (byte {e.start}).", code="invalid_json") from None
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError) as e:
        raise RequestError(f"The request body is not valid JSON: {e}.", code="invalid_json") from None
    found = _span(text)
    if found is None:
        return None
    start, end = found
    try:
        name = msgspec.json.decode(text[start:end], type=str)
    except msgspec.DecodeError:
        raise RequestError("The model parameter must be a string.", param="model") from None
    if not 0 < len(name) <= _LONGEST_MODEL:
        raise RequestError("The model parameter must be a non-empty string.", param="model")
    return Model(name, len(text[:start].encode()), len(text[:end].encode()), json=True)


_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},:]', re.DOTALL)


def _span(text: str) -> tuple[int, int] | None:
    """Where the value of the top-level key `model` stands in the text of a JSON object. Raises `RequestError` for two."""
    if not text.lstrip().startswith("{"):
        return None
    depth, key, found, begin = 0, "", None, -1
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark in "{[":
            depth += 1
        elif mark == ":" and depth == 1:
            begin = token.end()
        elif depth == 1 and mark in ",}":
            if begin >= 0 and _is_model(key):
                if found is not None:
                    raise RequestError("The model parameter is there twice.", code="invalid_json", param="model")
                value = text[begin : token.start()]
                left = begin + len(value) - len(value.lstrip())
                found = (left, left + len(value.strip()))
            key, begin = "", -1
            depth -= mark == "}"
        elif mark in "}]":
            depth -= 1
        elif depth == 1 and begin < 0:
            key = mark
    return found


def _is_model(key: str) -> bool:
    return key == '"model"' or ("\\" in key and _plain(key) == "model")


def _plain(key: str) -> str:
    try:
        return msgspec.json.decode(key, type=str)
    except msgspec.DecodeError:
        return ""


def _in_form(content_type: str, body: bytes) -> Model | None:
    boundary = _BOUNDARY.match(content_type)
    if boundary is None:
        raise RequestError("multipart/form-data needs a boundary.", code="invalid_multipart")
    mark = b"--" + (boundary[1] or boundary[2]).encode("latin-1")
    found: Model | None = None
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    for _ in range(_MOST_PARTS):
        begin = at + len(mark)
        if at < 0 or not body.startswith(b"\r\n", begin):  # the last mark is followed by two dashes
            return found
        head = body.find(b"\r\n\r\n", begin)
        end = body.find(b"\r\n" + mark, begin)
        if head < 0 or end < 0 or head > end:
            raise RequestError("The form is not complete.", code="invalid_multipart")
        if _NAMED_MODEL.search(body, begin, head + 2):
            if found is not None:
                raise RequestError("The field model is there twice.", code="invalid_multipart", param="model")
            found = _field(body, head + 4, end)
        at = end + 2
    raise RequestError(f"The form has more than {_MOST_PARTS} parts.", code="invalid_multipart")


def _field(body: bytes, start: int, end: int) -> Model:
    value = body[start:end]
    if not 0 < len(value) <= _LONGEST_MODEL:
        raise RequestError("The field model must be a non-empty text.", code="invalid_value", param="model")
    try:
        return Model(value.decode(), start, end, json=False)
    except UnicodeDecodeError:
        raise RequestError("The field model is not UTF-8.", code="invalid_value", param="model") from None


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_token_details: dict[str, Any] | None = None
    input_tokens_details: dict[str, Any] | None = None


class _Counted(msgspec.Struct):
    usage: _Counts | None = None
    model: str = ""
    id: str = ""


def read_facts(content_type: str, body: bytes) -> tuple[Usage | None, str, str]:
    """(usage, model, id) of an answer that is JSON, or of the last event of an SSE stream; None and "" for what is not said."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        body = next((line[5:] for line in reversed(body.splitlines()) if line.startswith(b"data:") and b'"usage"' in line), b"")
    elif kind != "application/json":
        return None, "", ""
    try:
        told = msgspec.json.decode(body, type=_Counted)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, "", ""
    counts = told.usage
    if counts is None:
        return None, told.model, told.id
    taken = counts.input_tokens if counts.input_tokens is not None else counts.prompt_tokens
    made = counts.output_tokens if counts.output_tokens is not None else counts.completion_tokens
    if taken is None:
        return None, told.model, told.id
    details = counts.input_token_details or counts.input_tokens_details or {}
    image, audio = (details.get(name) for name in ("image_tokens", "audio_tokens"))
    usage = Usage(
        taken,
        made or 0,
        image_input=image if isinstance(image, int) else 0,
        audio_input=audio if isinstance(audio, int) else 0,
    )
    return usage, told.model, told.id
