"""OpenAI's wire form, streams: facts of a stream as it passes, edits of its text, a whole answer made of it.

A chunk's text sits in `choices[].delta` (chat) or `choices[].text` (completions). The frame with a choice's
`finish_reason` is its last; then may come one with `choices: []` and `usage`; then `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from noria.contracts.exchange import Usage
from noria.contracts.stage import Channel, Transducer
from noria.dialects.openai_answer import (
    FIELDS,
    SPELLED,
    Fields,
    edit_texts,
    hide_logprobs,
    hide_reasoning_echoes,
    integer,
    object_of,
    read_usage,
    string,
)
from noria.dialects.sse import FrameSplitter, data_of, frame_of, marked

DONE = b"data: [DONE]\n\n"

Open = Callable[[int, Channel], Transducer | None]
"""A fresh transducer for (choice, channel), or None where that channel passes as it is."""

OTHER, CONTENT, USAGE_ONLY = range(3)
"""What `StreamReader.read` says of a frame: `is_content`, `is_usage_only`, or neither."""

_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_FIELDS_LIST = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
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


_MARKS = (b'finish_reason":"', b'reason": ', b'"usage":{', b'"usage": {', b'"error"', b"DONE]")
"""In the frames that tell something new once content has come: a field that is not null, or the end. Quotes inside a text
are escaped, so that no answer looks like one. Writers that put blanks after colons are read frame by frame."""


class StreamReader:
    """Collects the facts of a stream, frame by frame. Garbage is skipped: relaying is not judging.

    `content_frames` approximates the number of output tokens where the upstream sends no usage.
    """

    __slots__ = ("_read", "_skimmed", "done", "error", "finish_reason", "id", "model", "usage")

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self.finish_reason = ""
        """Of the first choice that ended."""
        self.usage: Usage | None = None
        self._read = 0
        self._skimmed: list[tuple[bytes, int, int]] = []
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

    def skim(self, block: bytes, start: int) -> int:
        """Pass over frames of mere content: where the next one begins that must be read."""
        stop = marked(block, start, _MARKS)
        if stop > start:
            self._skimmed.append((block, start, stop))
        return stop

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
            if not self.finish_reason:
                self.finish_reason = next((str(c.finish_reason) for c in chunk.choices or () if c.finish_reason), "")
        if _given(chunk.usage):
            self.usage = read_usage(chunk.usage) or self.usage
            if not chunk.choices:
                kind = USAGE_ONLY
        if _given(chunk.error):
            self.error = bytes(chunk.error)
        return kind


class _Line(msgspec.Struct):
    """One (choice, channel) on its way through a transducer."""

    transducer: Transducer
    key: str
    """Where the delta keeps this channel's text: `content`, `text`, `reasoning`, …"""


class StreamEditor:
    """Sends the text of a stream through transducers, one for each (choice, channel).

    A frame whose text comes out as it went in keeps its original bytes. What a transducer holds back at
    the end of a choice leaves before the frame with its `finish_reason` does. Frames that have nothing
    left to say are dropped. Transducers may raise `Blocked`; it passes through.
    """

    def __init__(self, open: Open) -> None:
        self._open = open
        self._lines: dict[int, dict[Channel, _Line | None]] = {}
        self._edited: set[tuple[int, Channel]] = set()
        self._like: Fields = {}
        """Top level of the last chunk: what an extra frame is cloned from."""

    def edit(self, frame: bytes) -> list[bytes]:
        """The frames that leave for `frame`. Raises ValueError on data that is not a chunk: it cannot be judged."""
        data = data_of(frame)
        if data is None:
            return [frame]
        if data.startswith(b"[DONE]"):
            return [*self.end(), frame]
        try:
            fields: Fields = dict(FIELDS.decode(data))
            choices: list[Fields] = list(_FIELDS_LIST.decode(fields.get("choices") or b"[]")) if _is_list(fields) else []
            return self._edit_chunk(frame, fields, choices) if choices else [frame]
        except _GARBAGE as e:
            raise ValueError(f"an event of the stream is no chunk in OpenAI's form: {e}") from None

    def end(self) -> list[bytes]:
        """The frames with what is still held back, for a stream that ends without a word."""
        return [frame for index in list(self._lines) for frame in self._flush(index, set())]

    def _edit_chunk(self, frame: bytes, fields: Fields, choices: list[Fields]) -> list[bytes]:
        self._like = fields
        before: list[bytes] = []
        edited = [self._edit_choice(choice, before) for choice in choices]
        if not any(changed for changed, _ in edited):
            return [*before, frame]
        if all(silent for _, silent in edited) and not _given(fields.get("usage")):
            return before
        return [*before, frame_of(msgspec.json.encode(fields | {"choices": choices}))]

    def _edit_choice(self, choice: Fields, before: list[bytes]) -> tuple[bool, bool]:
        """Edit one choice in place; (it changed, it has nothing left to say). Frames due first go to `before`."""
        index = integer(choice.get("index"))
        last = bool(string(choice.get("finish_reason")))
        holder = object_of(choice["delta"]) if _is_object(choice.get("delta")) else choice
        flushed: set[Channel] = set()

        def through(channel: Channel, text: str) -> str:
            line = self._line(index, channel, holder)
            if line is None:
                return text
            out = line.transducer.feed(text)
            if last:
                flushed.add(channel)
                out += line.transducer.flush()
            return out

        changed = edit_texts(holder, through)
        self._edited |= {(index, channel) for channel in changed}
        if last:
            before += self._flush(index, flushed)
        hidden = self._hide_echoes(index, choice, holder)
        if not changed and not hidden:
            return False, False
        if changed & SPELLED:
            hide_logprobs(choice)
        if holder is not choice:
            choice["delta"] = holder
        return True, not last and _is_silent(holder)

    def _hide_echoes(self, index: int, choice: Fields, holder: Fields) -> bool:
        """Leave out second copies of text that has been edited: the cumulative `message` (Perplexity), reasoning blocks."""
        size = len(choice) + len(holder)
        if "message" in choice and any(i == index for i, _ in self._edited):
            del choice["message"]
        if (index, "reasoning") in self._edited:
            hide_reasoning_echoes(holder)
        return len(choice) + len(holder) != size

    def _line(self, index: int, channel: Channel, holder: Fields) -> _Line | None:
        lines = self._lines.setdefault(index, {})
        if channel not in lines:
            transducer = self._open(index, channel)
            lines[channel] = None if transducer is None else _Line(transducer, _key_of(channel, holder))
        return lines[channel]

    def _flush(self, index: int, flushed: set[Channel]) -> list[bytes]:
        frames = []
        for channel, line in self._lines.pop(index, {}).items():
            if line is not None and channel not in flushed and (text := line.transducer.flush()):
                self._edited.add((index, channel))
                frames.append(self._extra(index, channel, line.key, text))
        return frames

    def _extra(self, index: int, channel: Channel, key: str, text: str) -> bytes:
        """A chunk of our own with `text`, like the last one in id, created and model."""
        choice: dict[str, Any] = {"index": index}
        if key == "text":
            choice |= {"text": text, "logprobs": None}
        elif key == "function_call":
            choice["delta"] = {key: {"arguments": text}}
        elif key in _INNER:
            choice["delta"] = {"tool_calls": [{"index": int(channel.partition(".")[2]), key: {_INNER[key]: text}}]}
        else:
            choice["delta"] = {key: text}
        like = {name: None if name == "usage" else value for name, value in self._like.items()}
        return frame_of(msgspec.json.encode(like | {"choices": [choice | {"finish_reason": None}]}))


_INNER = {"function": "arguments", "custom": "input"}


def _key_of(channel: Channel, holder: Fields) -> str:
    if channel == "content":
        return "text" if "text" in holder else "content"
    if channel == "reasoning":
        return "reasoning_content" if string(holder.get("reasoning_content")) else "reasoning"
    if channel.startswith("tool."):
        return "function_call" if "function_call" in holder else "function"
    return "custom" if channel.startswith("custom.") else channel


def _is_list(fields: Fields) -> bool:
    return bytes(fields.get("choices") or b"").startswith(b"[")


def _is_object(raw: Any) -> bool:
    return raw is not None and bytes(raw).startswith(b"{")


def _is_silent(holder: Fields) -> bool:
    """Whether nothing but empty text and nulls is left of a delta (or of a legacy choice)."""
    return all(
        value in ("", None) or (isinstance(value, msgspec.Raw) and bytes(value) in (b'""', b"null", b"[]"))
        for key, value in holder.items()
        if key not in ("index", "logprobs", "finish_reason")
    )


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
