"""Gemini's API as callers speak it, answers: chat completions, chunks and errors in its words.

A stream's function calls leave whole, as the protocol has them; the end waits for the usage, which comes with it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from noria.dialects.anthropic_answer import object_in
from noria.dialects.gemini import Fields
from noria.dialects.openai_answer import read_usage
from noria.dialects.openai_stream import error_of
from noria.dialects.sse import data_of, frame_of

REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "function_call": "STOP", "content_filter": "SAFETY"}
"""`finish_reason` → `finishReason`."""
STATUSES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ABORTED",
    413: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 500: "INTERNAL", 502: "UNAVAILABLE", 503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}  # fmt: skip
"""HTTP status → the status of google.rpc.Code (aip.dev/193)."""
_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def write_generate(body: bytes) -> bytes:
    """The answer for a chat completion. Raises ValueError on what is none."""
    try:
        chat = msgspec.json.decode(body, type=dict[str, Any])
        candidates = [_candidate(choice, i) for i, choice in enumerate(chat["choices"])]
    except (*_GARBAGE, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"not a chat completion: {e}") from None
    return msgspec.json.encode({"candidates": candidates} | _top(chat) | _usage(chat.get("usage")))


def write_error(status: int, body: bytes) -> bytes:
    """Google's error body for OpenAI's; one that is Google's own comes back as it is."""
    try:
        said = msgspec.json.decode(body, type=dict[str, Any])
    except _GARBAGE:
        said = {}
    error = object_in(said, "error")
    if isinstance(error.get("status"), str) and isinstance(error.get("code"), int):
        return body
    kind = STATUSES.get(status) or ("INVALID_ARGUMENT" if status < 500 else "INTERNAL")
    made: Fields = {"code": status, "message": str(error.get("message") or "The request failed."), "status": kind}
    if error.get("code"):
        reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": str(error["code"]), "domain": "noria"}
        made["details"] = [reason]
    return msgspec.json.encode({"error": made})


class GenerateWriter:
    """Chat frames in, events of `streamGenerateContent` out; one instance a stream."""

    def __init__(self) -> None:
        self._like: Fields = {}
        self._usage: Any = None
        self._calls: dict[int, dict[int, Fields]] = {}
        self._ends: dict[int, Fields] = {}
        self._over = False

    def frame(self, frame: bytes) -> bytes:
        """The events for one whole frame."""
        data = data_of(frame)
        if data is None or self._over:
            return b"" if data is not None else frame
        if data.startswith(b"[DONE]"):
            return self.end()
        if (error := error_of(frame)) is not None:
            self._over = True
            status = 429 if b"rate_limit" in error else 503 if b"overloaded" in error else 500
            return frame_of(write_error(status, b'{"error":' + error + b"}"))
        try:
            chunk = msgspec.json.decode(data, type=dict[str, Any])
        except _GARBAGE:
            return b""
        self._like = {"id": chunk.get("id") or self._like.get("id"), "model": chunk.get("model") or self._like.get("model")}
        self._usage = chunk.get("usage") or self._usage
        candidates = [c for choice in chunk.get("choices") or () if isinstance(choice, dict) and (c := self._piece(choice))]
        return frame_of(msgspec.json.encode({"candidates": candidates} | _top(self._like))) if candidates else b""

    def end(self) -> bytes:
        """The last event, once: calls, reasons, usage."""
        if self._over:
            return b""
        self._over = True
        candidates = []
        for index in sorted({*self._ends, *self._calls}) or [0]:
            message = {"tool_calls": [call for _, call in sorted(self._calls.get(index, {}).items())]}
            choice = {"index": index, "finish_reason": "stop"} | self._ends.get(index, {}) | {"message": message}
            candidates.append(_candidate(choice, index))
        return frame_of(msgspec.json.encode({"candidates": candidates} | _top(self._like) | _usage(self._usage)))

    def _piece(self, choice: Fields) -> Fields | None:
        index = choice.get("index") or 0
        delta = object_in(choice, "delta")
        if choice.get("finish_reason"):
            self._ends[index] = {k: choice[k] for k in ("finish_reason", "native_finish_reason") if choice.get(k)}
        for i, call in enumerate(delta.get("tool_calls") or ()):
            if isinstance(call, dict):
                self._call(self._calls.setdefault(index, {}), call, i)
        parts = _parts({k: v for k, v in delta.items() if k != "tool_calls"})
        return {"content": {"role": "model", "parts": parts}, "index": index} if parts else None

    def _call(self, calls: dict[int, Fields], call: Fields, i: int) -> None:
        number = call["index"] if isinstance(call.get("index"), int) else i
        held = calls.setdefault(number, {"function": {"name": "", "arguments": ""}})
        function = object_in(call, "function")
        held["id"] = held.get("id") or call.get("id")
        held["extra_content"] = held.get("extra_content") or call.get("extra_content")
        held["function"]["name"] = held["function"]["name"] or function.get("name") or ""
        held["function"]["arguments"] += function.get("arguments") or ""


def _top(chat: Fields) -> Fields:
    return {"modelVersion": chat.get("model") or "", "responseId": chat.get("id") or ""}


def _candidate(choice: Fields, i: int) -> Fields:
    native = choice.get("native_finish_reason")
    reason = (
        native if isinstance(native, str) and native.isupper() else REASONS.get(choice.get("finish_reason") or "stop", "OTHER")
    )
    content = {"role": "model", "parts": _parts(choice.get("message") or {})}
    return {"content": content, "finishReason": reason, "index": choice.get("index", i)}


def _parts(message: Fields) -> list[Fields]:
    parts: list[Fields] = []
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought:
        parts.append({"text": thought, "thought": True})
    for key in ("content", "refusal"):
        text = message.get(key)
        if isinstance(text, list):
            text = "".join(str(p.get("text") or "") for p in text if isinstance(p, dict))
        if text:
            parts.append({"text": text})
    signature = _signature(message)
    if signature:
        parts = (
            [*parts[:-1], {**parts[-1], "thoughtSignature": signature}]
            if parts
            else [{"text": "", "thoughtSignature": signature}]
        )
    return parts + [_called(call) for call in message.get("tool_calls") or () if isinstance(call, dict)]


def _called(call: Fields) -> Fields:
    function = call.get("function") or {}
    try:
        arguments = msgspec.json.decode(function.get("arguments") or "{}", type=dict[str, Any])
    except (*_GARBAGE, TypeError):
        arguments = {"invalid_json": function.get("arguments")}  # the model's mistake, shown rather than hidden
    made: Fields = {"functionCall": {"name": function.get("name") or "", "args": arguments}}
    if call.get("id"):
        made["functionCall"]["id"] = call["id"]
    signature = _signature(call)
    return made | ({"thoughtSignature": signature} if signature else {})


def _signature(holder: Fields) -> Any:
    extra = holder.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    return google.get("thought_signature") if isinstance(google, dict) else None


def _usage(usage: Any) -> Fields:
    read = read_usage(msgspec.json.encode(usage)) if isinstance(usage, dict) else None
    if read is None:
        return {}
    made: Fields = {"promptTokenCount": read.input, "totalTokenCount": (read.input or 0) + (read.output or 0)}
    if read.output is not None:
        made["candidatesTokenCount"] = read.output - read.reasoning
    if read.reasoning:
        made["thoughtsTokenCount"] = read.reasoning
    if read.cached:
        made["cachedContentTokenCount"] = read.cached
    return {"usageMetadata": made}
