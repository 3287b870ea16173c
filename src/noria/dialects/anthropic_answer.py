"""Anthropic's Messages API as callers speak it, answers: chat completions, chunks and errors in its words.

A stream is message_start, ping, then for each block content_block_start, content_block_delta…, content_block_stop,
then message_delta and message_stop. Token counts are known at its end only: message_start says 0, message_delta the
truth, which every SDK lets overrule. A call that another one interrupts waits until that one is whole, because
blocks of a message follow each other.
"""

from __future__ import annotations

from typing import Any

import msgspec

from noria.dialects.openai_answer import FIELDS, Fields, read_usage
from noria.dialects.openai_stream import error_of
from noria.dialects.sse import data_of

REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""`finish_reason` → `stop_reason`."""
_OWN_REASONS = frozenset({*REASONS.values(), "stop_sequence", "pause_turn", "model_context_window_exceeded"})

ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 409: "conflict_error", 413: "request_too_large", 429: "rate_limit_error", 500: "api_error",
    504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip
"""Status → type of an error: the types of anthropic-python 2.12.0, and `request_too_large`, which it does not list."""
_TYPES = frozenset(ERRORS.values())
OVERLOADED = 529
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def write_message(body: bytes) -> bytes:
    """The Messages answer for a chat completion (first choice). Raises ValueError on what is none."""
    try:
        chat = msgspec.json.decode(body, type=dict[str, Any])
        choice = chat["choices"][0]
        message = choice["message"]
        blocks = [*_thoughts(message), *_texts(message), *_uses(message)]
    except (*_GARBAGE, KeyError, IndexError, TypeError, AttributeError) as e:
        raise ValueError(f"not a chat completion: {e}") from None
    return msgspec.json.encode(_message(chat) | {"content": blocks} | _end(choice) | {"usage": usage_of(chat.get("usage"))})


def usage_of(usage: Any) -> Fields:
    """Usage in Anthropic's sense: `input_tokens` without what was read from and written to the cache."""
    read = read_usage(msgspec.json.encode(usage)) if isinstance(usage, dict) else None
    if read is None:
        return {"input_tokens": 0, "output_tokens": 0}  # the SDKs need numbers; the trace says that they are unknown
    written = read.cache_write + read.cache_write_long
    made: Fields = {
        "input_tokens": max(0, (read.input or 0) - read.cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read.cached,
        "output_tokens": read.output or 0,
    }
    if written:
        made["cache_creation"] = {
            "ephemeral_5m_input_tokens": read.cache_write,
            "ephemeral_1h_input_tokens": read.cache_write_long,
        }
    if read.reasoning:
        made["output_tokens_details"] = {"thinking_tokens": read.reasoning}
    return made


def error_status(status: int, body: bytes) -> int:
    """The status that a caller of this protocol expects: 529 where an endpoint is overloaded, else `status`."""
    return OVERLOADED if b'"upstream_overloaded"' in body else status


def write_error(status: int, body: bytes, request_id: str) -> bytes:
    """Anthropic's error body for OpenAI's; one that is Anthropic's own comes back as it is."""
    try:
        said = msgspec.json.decode(body, type=dict[str, Any])
    except _GARBAGE:
        said = {}
    if said.get("type") == "error" and isinstance(said.get("error"), dict):
        return body
    error: Fields = object_in(said, "error")
    kind, code = error.get("type"), error.get("code")
    if kind not in _TYPES or kind == "invalid_request_error":
        kind = "billing_error" if code == "insufficient_quota" else ERRORS.get(status)
        kind = kind or ("invalid_request_error" if status < 500 else "api_error")
    detail: Fields = {"type": kind, "message": str(error.get("message") or said.get("message") or "The request failed.")}
    if code:
        detail["details"] = {"error_code": str(code)}
    return msgspec.json.encode({"type": "error", "error": detail, "request_id": request_id})


class MessagesWriter:
    """Chat frames in, named events out; one instance a stream. Errors of the frames come as `event: error`."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._begun = False
        self._over = False
        self._index = -1
        self._open: str | int = ""
        """The open block: `text`, `thinking`, or the number of a call; empty where none is."""
        self._arguments = ""
        """Of the open call so far: whole JSON means that the next call may follow."""
        self._waiting: dict[int, Fields] = {}
        """Calls that have begun while another was not whole: number → id, name, arguments so far."""
        self._done: set[int] = set()
        self._ids: dict[int, str] = {}
        self._numbers: dict[int, int] = {}
        self._signed = False
        self._refusal = ""
        self._choice: Fields = {"finish_reason": None}
        self._usage: Any = None

    def frame(self, frame: bytes) -> bytes:
        """The events for one whole frame."""
        data = data_of(frame)
        if data is None:
            if frame.startswith((b": ping", b": keep-alive")):
                return PING
            return frame  # another comment: it means nothing to clients, and something to whoever asked for it
        if data.startswith(b"[DONE]"):
            return self.end()
        if (error := error_of(frame)) is not None:
            self._over = True
            return event(
                "error", msgspec.json.decode(write_error(_status_of(error), b'{"error":' + error + b"}", self._request_id))
            )
        try:
            chunk = msgspec.json.decode(data, type=dict[str, Any])
        except _GARBAGE:
            return b""
        return self._chunk(chunk)

    def end(self) -> bytes:
        """The end of the message, once."""
        if self._over:
            return b""
        self._over = True
        out = [] if self._begun else [self._start({})]
        out += self._next_call(force=True)
        out.append(self._close())
        end = _end(self._choice | {"message": {"refusal": self._refusal or None}})
        out.append(event("message_delta", {"type": "message_delta", "delta": end, "usage": usage_of(self._usage)}))
        out.append(event("message_stop", {"type": "message_stop"}))
        return b"".join(out)

    def _chunk(self, chunk: Fields) -> bytes:
        out: list[bytes] = []
        if not self._begun:
            out.append(self._start(chunk))
        if chunk.get("usage"):
            self._usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            if isinstance(choice, dict) and not choice.get("index"):
                self._choice |= {k: v for k, v in choice.items() if k != "delta" and v is not None}
                delta = choice.get("delta")
                if isinstance(delta, dict):
                    self._delta(delta, out)
        return b"".join(out)

    def _start(self, chunk: Fields) -> bytes:
        self._begun = True
        message = _message(chunk) | {"content": [], "stop_reason": None, "stop_sequence": None}
        message["usage"] = {"input_tokens": 0, "output_tokens": 0}
        return event("message_start", {"type": "message_start", "message": message}) + PING

    def _delta(self, delta: Fields, out: list[bytes]) -> None:
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str) and thought:
            if self._signed or self._open != "thinking":
                out.append(self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""}))
            out.append(self._piece({"type": "thinking_delta", "thinking": thought}))
        out += [self._thinking_block(block) for block in delta.get("thinking_blocks") or () if isinstance(block, dict)]
        self._refusal += _joined(delta.get("refusal"))
        for key in ("content", "refusal"):
            text = _joined(delta.get(key))
            if text:
                if self._open != "text":
                    out.append(self._begin("text", {"type": "text", "text": ""}))
                out.append(self._piece({"type": "text_delta", "text": text}))
        if isinstance(delta.get("function_call"), dict):
            self._call({"index": 0, "function": delta["function_call"]}, 0, out)
        for i, call in enumerate(delta.get("tool_calls") or ()):
            if isinstance(call, dict):
                self._call(call, i, out)

    def _thinking_block(self, block: Fields) -> bytes:
        """The end of a thought, with its signature; or one that came in no other way."""
        if block.get("type") == "redacted_thinking":
            return self._begin("redacted", dict(block))
        out = b""
        if self._open != "thinking" or self._signed:
            out = self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            if block.get("thinking"):
                out += self._piece({"type": "thinking_delta", "thinking": block["thinking"]})
        self._signed = True
        signature = block.get("signature")
        return out + (self._piece({"type": "signature_delta", "signature": signature}) if signature else b"")

    def _call(self, call: Fields, i: int, out: list[bytes]) -> None:
        index = self._number(call["index"] if isinstance(call.get("index"), int) else i, call.get("id"))
        function = object_in(call, "function")
        piece = function.get("arguments") or ""
        if index == self._open:
            self._arguments += piece
            if piece:
                out.append(self._piece({"type": "input_json_delta", "partial_json": piece}))
            return
        if index in self._done:
            return  # blanks behind arguments that were whole
        waiting = self._waiting.setdefault(index, {"id": "", "name": "", "arguments": ""})
        waiting["id"] = waiting["id"] or call.get("id") or ""
        waiting["name"] = waiting["name"] or function.get("name") or ""
        waiting["arguments"] += piece
        out += self._next_call()

    def _number(self, index: int, id: Any) -> int:
        """Which call is meant: vendors that give every call the same index tell them apart by their ids."""
        number = self._numbers.get(index, index)
        if id and self._ids.get(number, id) != id:
            number = self._numbers[index] = max(self._ids) + 1
        if id or number not in self._ids:
            self._ids[number] = id or ""
        return number

    def _next_call(self, *, force: bool = False) -> list[bytes]:
        """Begin the calls that wait, as far as the open one is whole; all of them at the end (`force`)."""
        out: list[bytes] = []
        while self._waiting and (force or not isinstance(self._open, int) or _whole(self._arguments)):
            index = min(self._waiting)
            call = self._waiting[index]
            if not call["name"] and not force:
                break  # its name is still to come
            del self._waiting[index]
            use = {"type": "tool_use", "id": call["id"] or f"toolu_{index}", "name": call["name"], "input": {}}
            out.append(self._begin(index, use))
            self._arguments = call["arguments"]
            if self._arguments:
                out.append(self._piece({"type": "input_json_delta", "partial_json": self._arguments}))
        return out

    def _begin(self, what: str | int, block: Fields) -> bytes:
        closing = b"".join(self._next_call(force=True)) if self._waiting and isinstance(what, str) else b""
        closing += self._close()
        self._index += 1
        self._open, self._signed = what, False
        return closing + event(
            "content_block_start", {"type": "content_block_start", "index": self._index, "content_block": block}
        )

    def _piece(self, delta: Fields) -> bytes:
        return event("content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if self._open == "":
            return b""
        if isinstance(self._open, int):
            self._done.add(self._open)
        self._open = ""
        return event("content_block_stop", {"type": "content_block_stop", "index": self._index})


def event(name: str, data: Fields) -> bytes:
    """One named event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))


def object_in(holder: Fields, key: str) -> Fields:
    """The object under a key; an empty one where there is none."""
    value = holder.get(key)
    return value if isinstance(value, dict) else {}


def _message(chat: Fields) -> Fields:
    return {"id": chat.get("id") or "", "type": "message", "role": "assistant", "model": chat.get("model") or ""}


def _end(choice: Fields) -> Fields:
    reason, own = choice.get("finish_reason"), choice.get("native_finish_reason")
    matched = choice.get("stop_reason") if isinstance(choice.get("stop_reason"), str) else None
    if matched and reason == "stop" and own is None:
        own = "stop_sequence"
    stop = own if own in _OWN_REASONS else REASONS.get(reason or "stop", "end_turn")
    end: Fields = {"stop_reason": stop, "stop_sequence": matched if stop == "stop_sequence" else None}
    if stop == "refusal":
        message = object_in(choice, "message")
        end["stop_details"] = {"type": "refusal", "category": None, "explanation": message.get("refusal")}
    return end


def _thoughts(message: Fields) -> list[Fields]:
    blocks = message.get("thinking_blocks")
    if blocks:
        return [b for b in blocks if isinstance(b, dict)]
    thought = message.get("reasoning_content") or message.get("reasoning")
    return [{"type": "thinking", "thinking": thought, "signature": ""}] if isinstance(thought, str) and thought else []


def _texts(message: Fields) -> list[Fields]:
    texts = [_joined(message.get("content")), _joined(message.get("refusal"))]
    return [{"type": "text", "text": text} for text in texts if text]


def _joined(content: Any) -> str:
    """Text, also of vendors that answer in parts."""
    if isinstance(content, list):
        return "".join(str(p.get("text") or "") for p in content if isinstance(p, dict))
    return content if isinstance(content, str) else ""


def _uses(message: Fields) -> list[Fields]:
    calls = list(message.get("tool_calls") or ())
    if isinstance(message.get("function_call"), dict):
        calls.append({"function": message["function_call"]})
    uses = []
    for i, call in enumerate(calls):
        function = call.get("function") or {}
        arguments = function.get("arguments") or "{}"
        try:
            value = msgspec.json.decode(arguments, type=dict[str, Any])
        except (*_GARBAGE, TypeError):
            value = {"invalid_json": arguments}  # the model's mistake, shown rather than hidden
        uses.append(
            {"type": "tool_use", "id": call.get("id") or f"toolu_{i}", "name": function.get("name") or "", "input": value}
        )
    return uses


def _whole(arguments: str) -> bool:
    if not arguments.rstrip().endswith("}"):
        return False
    try:
        FIELDS.decode(arguments)
    except _GARBAGE:
        return False
    return True


def _status_of(error: bytes) -> int:
    """The status that an error inside a stream stands for."""
    if b'"upstream_overloaded"' in error or b'"overloaded_error"' in error:
        return OVERLOADED
    if b"rate_limit" in error:
        return 429
    return 400 if b'"content_filter"' in error else 504 if b'"upstream_timeout"' in error else 500
