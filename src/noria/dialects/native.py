"""Answers and requests in the caller's own dialect: what is needed of each, by its name.

The native lane (`gateway.router`) takes a request to an endpoint of its own dialect as it came, and the answer back with
its bytes. What is still read on the way is read here.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from noria.contracts.error import RequestError
from noria.contracts.exchange import Answer, Dialect, Kind, Usage
from noria.dialects import anthropic_native, gemini_native, responses_native
from noria.dialects.anthropic import read_message
from noria.dialects.anthropic_request import read_messages_request
from noria.dialects.gemini import read_generate
from noria.dialects.gemini_request import read_generate_request
from noria.dialects.openai_answer import read_answer
from noria.dialects.openai_stream import StreamReader, assemble
from noria.dialects.responses_request import read_response_request

Raws = dict[str, msgspec.Raw]

HEADERS: dict[str, tuple[str, ...]] = {"anthropic": ("anthropic-beta",)}
"""The headers of a caller that steer its protocol; they go along on the native lane, as far as the provider lets them."""
_OURS = ("conversation", "variables")


class Reader(Protocol):
    """Collects the facts of a stream, frame by frame."""

    id: str
    model: str
    done: bool

    @property
    def finish_reason(self) -> str:
        """Why the answer ended; empty where it has not."""
        ...

    @property
    def final(self) -> bool:
        """Whether `usage` is that of the whole answer, and not what had been used when it was told."""
        ...

    @property
    def content_frames(self) -> int:
        """Frames with content so far."""
        ...

    @property
    def usage(self) -> Usage | None:
        """Token counts, as far as they were told."""
        ...

    def skim(self, block: bytes, start: int) -> int:
        """Pass over frames of mere content: where the next one begins that must be read."""
        ...

    def read(self, frame: bytes) -> int:
        """Take note of one frame; what it is (`dialects.openai_stream.CONTENT`, `USAGE_ONLY`, `OTHER`)."""
        ...


def reader_of(dialect: Dialect) -> Reader:
    """A fresh reader for a stream."""
    if dialect == "anthropic":
        return anthropic_native.NativeReader()
    if dialect == "responses":
        return responses_native.NativeReader()
    return gemini_native.NativeReader() if dialect == "gemini" else StreamReader()


def facts_of(dialect: Dialect, kind: Kind, body: bytes) -> Answer:
    """The facts of a whole answer. Raises ValueError on what is none."""
    if dialect == "anthropic":
        return anthropic_native.read_native(body)
    if dialect == "responses":
        return responses_native.read_native(body)
    return gemini_native.read_native(body) if dialect == "gemini" else read_answer(kind, body)


def request_of(dialect: Dialect, native: Raws, params: Raws) -> Raws | None:
    """The caller's own request with a release's parameters filled in; None where that takes a translation."""
    if dialect == "responses":
        native = responses_native.own_request(native, params) or {}
        params = {}
        if not native:
            return None
    if not native.keys().isdisjoint(_OURS):
        native = {name: value for name, value in native.items() if name not in _OURS}
    if not params:
        return native
    own = anthropic_native.native_params(params) if dialect == "anthropic" else None
    return None if own is None else {**own, **native}


def recorded(dialect: Dialect, native: Raws, subject: str) -> bytes:
    """A native request as it may be stored: the name of the caller's user is replaced by its keyed hash."""
    if dialect == "anthropic" and "metadata" in native:
        metadata = msgspec.json.decode(native["metadata"])
        if isinstance(metadata, dict) and metadata.get("user_id"):
            native = native | {"metadata": msgspec.Raw(msgspec.json.encode(metadata | {"user_id": subject}))}
    named = {"user", "safety_identifier"}.intersection(native) if dialect == "responses" else ()
    if named:
        native = native | dict.fromkeys(named, msgspec.Raw(msgspec.json.encode(subject)))
    return msgspec.json.encode(native)


def assemble_any(stream: bytes, dialect: Dialect = "openai") -> dict[str, Any]:
    """The whole answer that a recorded stream amounts to."""
    if dialect == "anthropic":
        return anthropic_native.assemble_native(stream)
    if dialect == "responses":
        return responses_native.assemble_native(stream)
    return gemini_native.assemble_native(stream) if dialect == "gemini" else assemble(stream)


def in_chat_form(dialect: Dialect, request: Any, answer: Any) -> dict[str, Any]:
    """Native bodies as chat, for a page that shows conversations; null where one is too odd to be translated."""
    return {"request": _chat_request(dialect, request), "answer": _chat_answer(dialect, answer)}


def _chat_request(dialect: Dialect, request: Any) -> Any:
    try:
        native = msgspec.json.decode(msgspec.json.encode(request), type=Raws)
        if dialect == "anthropic":
            chat = read_messages_request(native, counting=True)
        elif dialect == "responses":
            chat = read_response_request(native)[0]
            chat.pop(responses_native.UNSAID, None)
        else:
            chat = read_generate_request(native, "", stream=False)
    except (RequestError, msgspec.ValidationError):
        return None
    return msgspec.json.decode(msgspec.json.encode(chat))


def _chat_answer(dialect: Dialect, answer: Any) -> Any:
    if dialect == "responses":
        return responses_native.chat_of_native(answer) if isinstance(answer, dict) else None
    body = msgspec.json.encode(answer)
    try:
        return msgspec.json.decode(read_message(body, 0) if dialect == "anthropic" else read_generate(body, 0))
    except ValueError:
        return None


def text_of_answer(answer: dict[str, Any], dialect: Dialect) -> str:
    """What a whole native answer says."""
    if dialect == "responses":
        return responses_native.text_of_native(answer)
    return anthropic_native.text_of_native(answer) if dialect == "anthropic" else gemini_native.text_of_native(answer)


def text_asked(request: dict[str, Any], dialect: Dialect) -> str:
    """The last user turn of a native request."""
    turns, key = ("contents", "parts") if dialect == "gemini" else ("messages", "content")
    if dialect == "responses":
        turns = "input"
        if isinstance(request.get(turns), str):
            return str(request[turns])
    for turn in reversed(request.get(turns) or []):
        if isinstance(turn, dict) and turn.get("role", "user") == "user":
            content = turn.get(key)
            if isinstance(content, str):
                return content
            texts = [str(p["text"]) for p in content or () if isinstance(p, dict) and p.get("text")]
            if texts:
                return " ".join(texts)
    return ""
