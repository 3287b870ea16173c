"""OpenAI's wire form, streams: facts of a stream as it passes, and a whole answer made of it.

A chunk's text sits in `choices[].delta` (chat) or `choices[].text` (completions). The frame with a choice's
`finish_reason` is its last; then may come one with `choices: []` and `usage`; then `[DONE]`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.exchange import Usage
from noria.dialects.openai_answer import at_tier, read_usage
from noria.dialects.sse import FrameSplitter, data_of, frame_end, marked

DONE = b"data: [DONE]\n\n"

OTHER, CONTENT, USAGE_ONLY = range(3)
"""What `StreamReader.read` says of a frame: `is_content`, `is_usage_only`, or neither."""

_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NOTHING = msgspec.Raw(b"null")


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None

    def carries(self) -> bool:
        return bool(
            self.content
            or self.tool_calls
            or self.reasoning_content
            or self.reasoning
            or self.refusal
            or self.function_call
            or self.audio
        )


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: Any = None
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    id: Any = None
    model: Any = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NOTHING
    service_tier: Any = None
    error: msgspec.Raw = _NOTHING


_CHUNK = msgspec.json.Decoder(_Chunk)


def _chunk_of(frame: bytes) -> _Chunk | None:
    """The frame's JSON, or None for comments, `[DONE]` and garbage."""
    data = data_of(frame)
    if data is None or not data.startswith(b"{"):
        return None
    try:
        return _CHUNK.decode(data)
    except _GARBAGE:
        return None


def is_content(frame: bytes) -> bool:
    """Whether a caller gets anything of the answer by this frame: text, a call, or the end of a choice."""
    chunk = _chunk_of(frame)
    return chunk is not None and _carries(chunk)


def is_usage_only(frame: bytes) -> bool:
    """Whether this is the extra frame of `stream_options.include_usage`: `choices: []` and a usage."""
    if b'"usage"' not in frame:
        return False
    chunk = _chunk_of(frame)
    return chunk is not None and not chunk.choices and _given(chunk.usage)


def is_done(frame: bytes) -> bool:
    """Whether this is the `[DONE]` that ends a stream."""
    return b"[DONE]" in frame and (data_of(frame) or b"").startswith(b"[DONE]")


def error_of(frame: bytes) -> bytes | None:
    """The `error` of an in-stream error frame as JSON, or None."""
    if b'"error"' not in frame:
        return None
    chunk = _chunk_of(frame)
    return bytes(chunk.error) if chunk is not None and _given(chunk.error) else None


def _carries(chunk: _Chunk) -> bool:
    for c in chunk.choices or ():  # noqa: SIM110  a generator costs more than the one choice that there is
        if c.finish_reason or c.text or (c.delta is not None and c.delta.carries()):
            return True
    return False


def _given(raw: msgspec.Raw | None) -> bool:
    return raw is not None and raw is not _NOTHING and bytes(raw) != b"null"


_MARKS = (b'_tokens"',)
"""In the frames that tell something new once content has come: what was used. Quotes inside a text are escaped, so that no
answer looks like one."""
_LAST = b"DONE]"
_ENDED = (b'finish_reason":"', b'finish_reason": "')
"""In the frames that end a choice: a server writes all of its frames one way or the other."""


class StreamReader:
    """Collects the facts of a stream, frame by frame. Garbage is skipped: relaying is not judging.

    `content_frames` approximates the number of output tokens where the upstream sends no usage.
    """

    __slots__ = ("_finish", "_looked", "_read", "_skimmed", "done", "error", "final", "id", "model", "usage")

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self._finish = ""
        self._looked = 0
        self.usage: Usage | None = None
        self.final = False
        """Whether `usage` is that of the whole answer: it came with the end of a choice, or after it."""
        self._read = 0
        self._skimmed: list[tuple[bytes, int, int]] = []
        """What was passed over; the first `_looked` of them have been looked through for the end of a choice."""
        self.done = False
        """Whether `[DONE]` has come."""
        self.error: bytes | None = None
        """The `error` of an in-stream error frame, as JSON."""

    @property
    def started(self) -> bool:
        """Whether content has come."""
        return self._read > 0

    @property
    def content_frames(self) -> int:
        """Frames with content so far; those passed over are counted only now."""
        return self._read + sum(block.count(b"\n\n", start, stop) for block, start, stop in self._skimmed)

    @property
    def finish_reason(self) -> str:
        """Of the first choice that ended. Frames that were passed over are looked through only now, and once."""
        while not self._finish and self._looked < len(self._skimmed):
            self._finish = _ending(*self._skimmed[self._looked])
            self._looked += 1
        return self._finish

    def skim(self, block: bytes, start: int) -> int:
        """Pass over frames of mere content: where the next one begins that must be read."""
        marks = _MARKS if b"\r" not in block else _MARKS + _ENDED  # `_ending` knows no other line ends than LF
        stop = marked(block, start, marks, _LAST)
        if stop > start:
            self.pass_over(block, start, stop)
        return stop

    def pass_over(self, block: bytes, start: int, stop: int) -> None:
        """Take note of frames that are known to tell no more than that there is content."""
        self._skimmed.append((block, start, stop))

    def read(self, frame: bytes) -> int:
        """Take note of one frame; what it is (`CONTENT`, `USAGE_ONLY`, `OTHER`), so that it is decoded only once."""
        chunk = _chunk_of(frame)
        if chunk is None:
            self.done = self.done or is_done(frame)
            return OTHER
        if not self.id and isinstance(chunk.id, str):
            self.id = chunk.id
        if not self.model and isinstance(chunk.model, str):
            self.model = chunk.model
        kind = OTHER
        if _carries(chunk):
            kind = CONTENT
            self._read += 1
            if (reason := _reason(chunk)) and not self.finish_reason:
                self._finish = reason
        if _given(chunk.usage):
            self.usage = at_tier(read_usage(chunk.usage), chunk.service_tier) or self.usage
            self.final = self.final or not chunk.choices or bool(self.finish_reason)
            if not chunk.choices:
                kind = USAGE_ONLY
        if _given(chunk.error):
            self.error = bytes(chunk.error)
        return kind


def _reason(chunk: _Chunk) -> str:
    """Why a choice ends with this chunk; empty where none does."""
    for c in chunk.choices or ():
        if c.finish_reason:
            return str(c.finish_reason)
    return ""


def _ending(block: bytes, start: int, stop: int) -> str:
    """The reason by which the first choice ends in a part of a block; empty where none does."""
    for mark in _ENDED:
        at = start
        while (found := block.find(mark, at, stop)) >= 0:
            before = block.rfind(b"\n\n", start, found)
            at = frame_end(block, found)
            chunk = _chunk_of(block[start if before < 0 else before + 2 : at])
            if chunk is not None and (reason := _reason(chunk)):
                return reason
    return ""


def assemble(stream: bytes) -> dict[str, Any]:
    """The whole answer that a recorded stream amounts to, as `chat.completion` or `text_completion` JSON.

    For display: events that are no chunks are skipped, an in-stream `error` is kept.
    """
    splitter = FrameSplitter()
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for frame in [*splitter.feed(stream), splitter.rest()]:
        chunk = _json_of(frame)
        given = chunk.pop("choices", None)
        for choice in given if isinstance(given, list) else ():
            if isinstance(choice, dict):
                _join_choice(choices, choice)
        whole |= {key: value for key, value in chunk.items() if value is not None or key not in whole}
    whole["object"] = "text_completion" if any("text" in choice for choice in choices.values()) else "chat.completion"
    return whole | {"choices": [choices[index] for index in sorted(choices)]}


def _json_of(frame: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data_of(frame) or b"", type=dict[str, Any])
    except _GARBAGE:
        return {}


def _join_choice(choices: dict[int, dict[str, Any]], chunk: dict[str, Any]) -> None:
    given = chunk.get("index")
    index = given if isinstance(given, int) else 0
    choice = choices.setdefault(index, {"index": index, "finish_reason": None})
    if chunk.get("finish_reason"):
        choice["finish_reason"] = chunk["finish_reason"]
    if "text" in chunk:
        choice["text"] = choice.get("text", "") + (chunk["text"] or "")
    if isinstance(chunk.get("delta"), dict):
        _join(choice.setdefault("message", {"role": "assistant", "content": None}), chunk["delta"])
    if isinstance(chunk.get("logprobs"), dict):
        _join(choice.setdefault("logprobs", {}), chunk["logprobs"])


_ONCE = frozenset({"role", "id", "type", "name"})
"""Keys that some vendors repeat in every delta: the first value stands."""


def _join(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add a delta: texts and lists grow, calls are found by their index, objects are joined key by key."""
    for key, value in delta.items():
        old = whole.get(key)
        if value is None or (key in _ONCE and old):
            whole.setdefault(key, value)
        elif key == "tool_calls" and isinstance(value, list):
            _join_calls(whole, value)
        elif isinstance(value, dict) and isinstance(old, dict | None):
            whole[key] = dict(old or {})
            _join(whole[key], value)
        elif (isinstance(value, str) and isinstance(old, str)) or (isinstance(value, list) and isinstance(old, list)):
            whole[key] = old + value  # type: ignore[operator]  # both are text, or both are lists
        else:
            whole[key] = value


def _join_calls(whole: dict[str, Any], calls: list[dict[str, Any]]) -> None:
    joined = whole.setdefault("tool_calls", [])
    for i, call in enumerate(calls):
        index = call.get("index")
        at = index if isinstance(index, int) else i
        while len(joined) <= min(at, 1023):
            joined.append({})
        _join(joined[min(at, 1023)], {key: value for key, value in call.items() if key != "index"})
