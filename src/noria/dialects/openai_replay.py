"""OpenAI's wire form, answers given again: whether an answer is complete, a whole one as a stream, a stream as a whole one."""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.exchange import Usage
from noria.dialects.openai_answer import read_usage
from noria.dialects.openai_stream import DONE, assemble
from noria.dialects.sse import FrameSplitter, data_of, frame_of

FINISHED = frozenset({"stop", "tool_calls", "function_call"})
"""Ends of a choice at which the model has said all that it had to say: not `length`, not `content_filter`."""

_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NOTHING = msgspec.Raw(b"null")
_ONCE = ("finish_reason", "index", "logprobs", "message", "text")


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING


_ANSWER = msgspec.json.Decoder(_Answer)


class Ending(msgspec.Struct, frozen=True):
    """How an answer ended. `complete`: every choice came to one of the ends in `FINISHED`, and nothing went wrong."""

    complete: bool
    usage: Usage | None = None


def ending(raw: bytes, *, stream: bool) -> Ending:
    """How the answer `raw`, a whole one or a recorded stream, ended. What cannot be read is not complete."""
    try:
        parts = [_ANSWER.decode(d) for d in _data(raw)] if stream else [_ANSWER.decode(raw)]
    except _GARBAGE:
        return Ending(complete=False)
    ends: dict[int, str] = {}
    usage: Usage | None = None
    for part in parts:
        if bytes(part.error) != b"null":
            return Ending(complete=False)
        usage = read_usage(part.usage) or usage
        for choice in part.choices or ():
            ends[choice.index] = choice.finish_reason or ends.get(choice.index, "")
    whole = not stream or DONE in raw[-64:] or b"[DONE]" in raw[-64:]
    return Ending(complete=whole and bool(ends) and all(end in FINISHED for end in ends.values()), usage=usage)


def as_whole(stream: bytes) -> bytes:
    """The whole answer that a recorded stream amounts to."""
    return msgspec.json.encode(assemble(stream))


def as_stream(answer: bytes) -> bytes:
    """A whole answer as the stream that it could have been: for each choice one frame with all of its text and one with
    its end, then the usage, then `[DONE]`. Raises `ValueError` on what is no answer.
    """
    try:
        fields: dict[str, Any] = msgspec.json.decode(answer, type=dict[str, Any])
        choices: list[dict[str, Any]] = msgspec.convert(fields.pop("choices", None), list[dict[str, Any]])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"not an answer in OpenAI's form: {e}") from None
    usage = fields.pop("usage", None)
    legacy = fields.get("object") == "text_completion" or any("text" in choice for choice in choices)
    fields["object"] = "text_completion" if legacy else "chat.completion.chunk"
    out = []
    for choice in choices:
        head = {"index": choice.get("index", 0)}
        said = {"text": choice.get("text") or ""} if legacy else {"delta": _delta(choice.get("message") or {})}
        rest = {name: value for name, value in choice.items() if name not in _ONCE}
        probable = {"logprobs": choice.get("logprobs"), "finish_reason": None}
        out.append(frame_of(msgspec.json.encode({**fields, "choices": [head | said | probable | rest]})))
        nothing: dict[str, Any] = {"text": ""} if legacy else {"delta": {}}
        end = {"logprobs": None, "finish_reason": choice.get("finish_reason")}
        out.append(frame_of(msgspec.json.encode({**fields, "choices": [head | nothing | end]})))
    if usage is not None:
        out.append(frame_of(msgspec.json.encode({**fields, "choices": [], "usage": usage})))
    return b"".join([*out, DONE])


def _data(stream: bytes) -> list[bytes]:
    """The JSON of a stream's frames."""
    splitter = FrameSplitter()
    data = [data_of(frame) for frame in [*splitter.feed(stream), splitter.rest()]]
    return [d for d in data if d is not None and d.startswith(b"{")]


def _delta(message: dict[str, Any]) -> dict[str, Any]:
    """A message as one delta: calls carry the index that deltas are joined by; what is null is left out."""
    delta = {name: value for name, value in message.items() if value is not None or name == "content"}
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        delta["tool_calls"] = [{"index": i, **call} if isinstance(call, dict) else call for i, call in enumerate(calls)]
    return delta
