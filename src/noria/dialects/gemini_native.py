"""Gemini's API passing through: facts of answers that keep their bytes."""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.exchange import Answer, Usage
from noria.dialects.gemini import blocked_because, finish_of, said_in
from noria.dialects.gemini_stream import spelled
from noria.dialects.gemini_usage import Grounded, grounded, more, usage_of
from noria.dialects.openai_answer import read_usage
from noria.dialects.openai_stream import CONTENT, OTHER
from noria.dialects.sse import FrameSplitter, data_of
from noria.dialects.upstream import ReaderTap

_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_native(body: bytes) -> Answer:
    """The facts of a whole answer. Raises ValueError on what is none."""
    try:
        answer = msgspec.json.decode(body, type=dict[str, Any])
    except _GARBAGE as e:
        raise ValueError(f"not an answer of generateContent: {e}") from None
    if not isinstance(answer.get("candidates"), list) and not blocked_because(answer):
        raise ValueError("not an answer of generateContent: it has no candidates")
    return Answer(
        str(answer.get("responseId") or ""),
        str(answer.get("modelVersion") or ""),
        _finish(answer),
        _usage(answer.get("usageMetadata"), grounded(answer)),
    )


class NativeReader:
    """Collects the facts of a native stream, event by event; as `dialects.openai_stream.StreamReader`."""

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self.finish_reason = ""
        self.content_frames = 0
        self.done = False
        """Whether a candidate has finished: what comes from then on waits until the exchange is recorded."""
        self.final = False
        self.error: bytes | None = None
        self._told: Any = None
        self._grounded: Grounded = (0, 0)
        self._called = False

    @property
    def usage(self) -> Usage | None:
        """The last that was told."""
        return _usage(self._told, self._grounded)

    @property
    def started(self) -> bool:
        """Whether content has come."""
        return self.content_frames > 0

    def skim(self, block: bytes, start: int) -> int:  # noqa: ARG002  every event counts its tokens so far
        """As `dialects.native.Reader`: none is passed over."""
        return start

    def read(self, frame: bytes) -> int:
        """Take note of one event; `CONTENT` or `OTHER`."""
        answer = _answer(frame)
        self.id = self.id or str(answer.get("responseId") or "")
        self.model = self.model or str(answer.get("modelVersion") or "")
        self._told = answer.get("usageMetadata") or self._told
        if b'"groundingMetadata"' in frame:
            self._grounded = more(self._grounded, grounded(answer))
        if isinstance(answer.get("error"), dict):
            self.error = msgspec.json.encode(spelled(answer["error"]))
            return OTHER
        self._called = self._called or b'"functionCall"' in frame
        finish = _finish(answer, called=self._called)
        self.finish_reason = self.finish_reason or finish
        self.done = self.done or bool(finish)
        self.final = self.final or (self.done and bool(answer.get("usageMetadata")))
        if finish or answer.get("candidates"):
            self.content_frames += 1
            return CONTENT
        return OTHER


class NativeTap(ReaderTap):
    """The tap of this dialect."""

    def __init__(self, who: str) -> None:
        super().__init__(NativeReader(), who)


def assemble_native(stream: bytes) -> dict[str, Any]:
    """The whole answer that a recorded native stream amounts to; texts that follow each other are joined."""
    splitter = FrameSplitter()
    whole: dict[str, Any] = {}
    candidates: dict[int, dict[str, Any]] = {}
    for frame in [*splitter.feed(stream), splitter.rest()]:
        answer = _answer(frame)
        for candidate in answer.pop("candidates", None) or ():
            if isinstance(candidate, dict):
                _join(candidates.setdefault(candidate.get("index") or 0, {}), candidate)
        whole |= answer
    return whole | {"candidates": [candidates[index] for index in sorted(candidates)]}


def text_of_native(answer: dict[str, Any]) -> str:
    """What the first candidate says, or the functions that it calls."""
    candidates = answer.get("candidates")
    first = candidates[0] if isinstance(candidates, list) and candidates and isinstance(candidates[0], dict) else {}
    said = said_in((first.get("content") or {}).get("parts"), answer)
    calls = ", ".join(f"{call['function']['name']}()" for call in said.get("tool_calls") or ())
    return str(said.get("content") or calls or blocked_because(answer))


def _join(whole: dict[str, Any], candidate: dict[str, Any]) -> None:
    content = candidate.pop("content", None) or {}
    held = whole.setdefault("content", {"role": "model", "parts": []})
    for part in content.get("parts") or ():
        last = held["parts"][-1] if held["parts"] else {}
        if set(part) <= {"text", "thought"} and "text" in last and last.get("thought") == part.get("thought"):
            last["text"] += part.get("text") or ""
        else:
            held["parts"].append(dict(part))
    whole |= candidate


def _answer(frame: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data_of(frame) or b"", type=dict[str, Any])
    except _GARBAGE:
        return {}


def _finish(answer: dict[str, Any], *, called: bool | None = None) -> str:
    for candidate in answer.get("candidates") or ():
        if isinstance(candidate, dict) and candidate.get("finishReason"):
            found = called if called is not None else "functionCall" in str(candidate.get("content"))
            return finish_of(candidate, called=found) or ""
    return "content_filter" if blocked_because(answer) else ""


def _usage(told: Any, ran: Grounded) -> Usage | None:
    made = usage_of(told, ran)
    return read_usage(msgspec.json.encode(made)) if made else None
