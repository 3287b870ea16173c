"""OpenAI's wire form, files and batches: objects, lists, the lines of an input file and those of a result.

After https://platform.openai.com/docs/api-reference/batch and openai-python 3.54 `types/batch.py`, `types/file_object.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from noria.contracts.batch import Batch, BatchError, Line, LineResult, StoredFile
from noria.contracts.error import RequestError
from noria.dialects.openai import read_object
from noria.kit.ids import digest

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations")
"""What the lines of a batch may ask."""
PURPOSES = frozenset({"assistants", "batch", "evals", "fine-tune", "user_data", "vision"})
"""What callers may say a file is for."""
MOST_LINES = 50_000
MOST_ERRORS = 100
"""Mistakes of one file that are told."""
_LONGEST_ID = 512
_MOST_METADATA, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512
_WINDOW = re.compile(r"([0-9]{1,6})([smhd])\Z")
_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SECOND = 1_000_000_000
_EXPIRES = (3600, 2_592_000)
"""Bounds of `expires_after.seconds`."""


class _Expiry(msgspec.Struct):
    anchor: str
    seconds: int


class Asked(msgspec.Struct, frozen=True):
    """The body of `POST /v1/batches`."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: _Expiry | None = None


def read_batch(body: bytes) -> Asked:
    """What a batch is asked to be. Raises `RequestError` that names the parameter."""
    try:
        asked = msgspec.json.decode(body, type=Asked)
    except msgspec.ValidationError as e:
        words, _, where = str(e).partition(" - at ")
        raise RequestError(f"{words}.", code="invalid_value", param=where.strip("`$.") or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise RequestError(f"The request body is not valid JSON: {e}.", code="invalid_json") from None
    if asked.endpoint not in ENDPOINTS:
        raise RequestError(f"endpoint must be one of: {', '.join(ENDPOINTS)}.", code="invalid_value", param="endpoint")
    seconds_of_window(asked.completion_window)
    for key, value in (asked.metadata or {}).items():
        if len(key) > _LONGEST_KEY or len(value) > _LONGEST_VALUE or len(asked.metadata or ()) > _MOST_METADATA:
            raise RequestError(
                f"metadata has at most {_MOST_METADATA} keys of {_LONGEST_KEY} characters with values of {_LONGEST_VALUE}.",
                code="invalid_value",
                param="metadata",
            )
    if asked.output_expires_after is not None:
        read_expiry(asked.output_expires_after.anchor, asked.output_expires_after.seconds, "output_expires_after")
    return asked


def seconds_of_window(window: str) -> int:
    """Seconds of a `completion_window`: OpenAI knows `24h`; here any whole number of s, m, h or d up to 14 days."""
    found = _WINDOW.match(window)
    seconds = int(found[1]) * _UNIT[found[2]] if found else 0
    if not 0 < seconds <= 14 * 86400:
        raise RequestError(
            "completion_window is a time such as 24h (s, m, h or d, at most 14d).",
            code="invalid_value",
            param="completion_window",
        )
    return seconds


def read_expiry(anchor: str, seconds: int, param: str = "expires_after") -> int:
    """Seconds that a file is kept. Raises `RequestError`."""
    if anchor != "created_at" or not _EXPIRES[0] <= seconds <= _EXPIRES[1]:
        raise RequestError(
            f"{param} needs the anchor created_at and between {_EXPIRES[0]} and {_EXPIRES[1]} seconds.",
            code="invalid_value",
            param=param,
        )
    return seconds


def file_object(file: StoredFile) -> dict[str, Any]:
    """OpenAI's `file`."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_ns // _SECOND,
        "expires_at": file.expires_ns // _SECOND,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def batch_object(batch: Batch) -> dict[str, Any]:
    """OpenAI's `batch`."""
    errors = [{"code": e.code, "message": e.message, "param": e.param, "line": e.line} for e in batch.errors]
    moments = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file,
        "completion_window": batch.window,
        "status": batch.status,
        "output_file_id": batch.output_file or None,
        "error_file_id": batch.error_file or None,
        "created_at": batch.created_ns // _SECOND,
        "expires_at": batch.expires_ns // _SECOND,
        **{f"{m}_at": getattr(batch, f"{m}_ns") // _SECOND or None for m in moments},
        "request_counts": {
            "total": batch.counts.total,
            "completed": batch.counts.completed,
            "failed": batch.counts.failed,
        },
        "metadata": batch.metadata,
    }


def page(items: Sequence[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """OpenAI's cursor page."""
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": more,
    }


def read_lines(data: bytes, endpoint: str, *, most: int = MOST_LINES) -> tuple[list[Line], list[BatchError]]:
    """The requests of an input file, or every mistake in it (the first `MOST_ERRORS`), each with its line."""
    lines: list[Line] = []
    errors: list[BatchError] = []
    seen: dict[str, int] = {}
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        if len(lines) >= most:
            errors.append(BatchError("too_many_requests", f"A batch has at most {most:,} requests.", None, number))
            break
        try:
            line = _line(raw, number, endpoint, seen)
        except RequestError as e:
            errors.append(BatchError(e.code or "invalid_value", e.text, e.param, number))
            if len(errors) >= MOST_ERRORS:
                break
        else:
            seen[line.custom_id] = number
            lines.append(line)
    if not lines and not errors:
        errors.append(BatchError("empty_file", "The input file has no requests."))
    return lines, errors


def _line(raw: bytes, number: int, endpoint: str, seen: dict[str, int]) -> Line:
    try:
        raw.decode()
        fields = read_object(raw, "")
    except (RequestError, UnicodeDecodeError) as e:
        why = e.message if isinstance(e, RequestError) else "it is not UTF-8"
        raise RequestError(f"This line is not parseable as valid JSON: {why}", code="invalid_json_line") from None
    custom_id, method, url = (_text(fields, name) for name in ("custom_id", "method", "url"))
    if not custom_id or len(custom_id) > _LONGEST_ID:
        raise RequestError(f"custom_id must have 1 to {_LONGEST_ID} characters.", code="invalid_value", param="custom_id")
    if custom_id in seen:
        raise RequestError(
            f"The custom_id {custom_id!r} stands in line {seen[custom_id]} already; it must be unique in a batch.",
            code="duplicate_custom_id",
            param="custom_id",
        )
    if method != "POST":
        raise RequestError("The method of a request must be POST.", code="invalid_method", param="method")
    if url != endpoint:
        raise RequestError(f"The url must be the batch's endpoint, {endpoint}.", code="invalid_url", param="url")
    if "body" not in fields:
        raise RequestError("The request has no body.", code="missing_required_parameter", param="body")
    body = read_object(fields["body"], "body")
    if bytes(body.get("stream", msgspec.Raw(b"false"))) not in (b"false", b"null"):
        raise RequestError("A request of a batch cannot stream.", code="invalid_value", param="body.stream")
    return Line(number, custom_id, fields["body"])


def _text(fields: dict[str, msgspec.Raw], name: str) -> str:
    if name not in fields:
        raise RequestError(f"The request has no {name}.", code="missing_required_parameter", param=name)
    try:
        return msgspec.json.decode(fields[name], type=str)
    except msgspec.DecodeError:
        raise RequestError(f"{name} must be a string.", code="invalid_value", param=name) from None


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _Output(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: _Error | None


def result_line(batch: str, custom_id: str, result: LineResult) -> bytes:
    """One line of an output or error file, with its newline."""
    response = _Response(result.status, result.request_id, msgspec.Raw(one_line(result.body))) if result.status else None
    error = _Error(result.code, result.message) if result.code else None
    name = "batch_req_" + digest(f"{batch}/{result.line}".encode())[:32]
    return msgspec.json.encode(_Output(name, custom_id, response, error)) + b"\n"


def one_line(body: bytes) -> bytes:
    """JSON without newlines between its parts, otherwise as it came; what is no JSON becomes a JSON string."""
    try:
        # `format` copies tokens: numbers and strings keep their very characters
        return msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else _checked(body)
    except msgspec.DecodeError:
        return msgspec.json.encode(body.decode("utf-8", "replace"))


def _checked(body: bytes) -> bytes:
    msgspec.json.decode(body, type=msgspec.Raw)
    return body.strip()


def read_results(data: bytes) -> Iterator[tuple[str, LineResult]]:
    """(custom id, result) of every line of an endpoint's own output or error file; `line` is 0. Unreadable lines are passed over."""
    for raw in data.split(b"\n"):
        try:
            found = msgspec.json.decode(raw, type=_Output) if raw.strip() else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if found is None:
            continue
        response, error = found.response, found.error
        yield (
            found.custom_id,
            LineResult(
                0,
                response.status_code if response else 0,
                response.request_id if response else "",
                bytes(response.body) if response else b"",
                error.code if error else "" if response else "no_response",
                error.message if error else "",
            ),
        )


def upstream_lines(lines: Iterable[tuple[int, bytes]], url: str) -> bytes:
    """An input file for an endpoint's own batch API: the number of each line stands for its custom id."""
    made = [
        b'{"custom_id":"%d","method":"POST","url":%b,"body":%b}' % (n, msgspec.json.encode(url), one_line(b)) for n, b in lines
    ]
    return b"\n".join(made) + b"\n"
