"""Gemini's API, streams: server-sent `GenerateContentResponse`s as OpenAI chat chunks.

Each event is a whole answer in miniature; the one with a `finishReason` is the candidate's last. There is no mark of the
end: a stream is complete once a candidate has finished, or the prompt was blocked.
"""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.error import UpstreamError
from noria.contracts.exchange import Hear, unheard
from noria.dialects.gemini import Fields, blocked_because, finish_of, said_in, told_apart
from noria.dialects.gemini_usage import Grounded, grounded, more, usage_of
from noria.dialects.openai_answer import read_usage
from noria.dialects.openai_stream import DONE
from noria.dialects.sse import FrameSplitter, data_of, frame_of
from noria.dialects.upstream import stream_refusal


class GenerateStream:
    """Translates one stream; a `dialects.upstream.Tap`. Always ends with a usage frame: whoever asked for none takes it out."""

    def __init__(self, created: int, *, who: str = "Gemini", hear: Hear = unheard) -> None:
        self._created = created
        self._hear = hear
        self._grounded: Grounded = (0, 0)
        self._who = who
        self._splitter = FrameSplitter()
        self._usage: Any = None
        self._calls: dict[int, int] = {}
        self._begun: set[int] = set()
        self.id = ""
        self.model = ""
        self.started = False
        self.complete = False
        self.failure: UpstreamError | None = None

    def feed(self, data: bytes) -> bytes:
        """OpenAI frames for the bytes. Raises ValueError on an event that is not JSON."""
        return b"".join([self._translate(frame) for frame in self._splitter.feed(data)])

    def end(self) -> bytes:
        """What the last event gives, where its blank line is missing, and the end of the stream."""
        rest = self._splitter.rest()
        try:
            out = self._translate(rest) if rest.strip() else b""
        except ValueError:  # half an event: the stream was cut, which its missing end tells
            return b""
        if not self.complete or self.failure is not None:
            return out
        usage = frame_of(msgspec.json.encode(self._top() | {"choices": [], "usage": usage_of(self._usage, self._grounded)}))
        return out + usage + DONE

    def _translate(self, frame: bytes) -> bytes:
        data = data_of(frame)
        if data is None or self.failure is not None:
            return b""
        try:
            answer = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise ValueError(f"an event is not JSON: {e}") from None
        if isinstance(answer.get("error"), dict):
            self.failure = stream_refusal(msgspec.json.encode(spelled(answer["error"])), who=self._who, started=self.started)
            return b""
        self.id = self.id or answer.get("responseId") or ""
        self.model = self.model or answer.get("modelVersion") or ""
        self._note(answer)
        candidates = [c for c in answer.get("candidates") or () if isinstance(c, dict)]
        blocked = blocked_because(answer)
        if not candidates and blocked:
            self.started = self.complete = True
            return self._chunk(0, {"role": "assistant", "refusal": blocked}, "content_filter")
        return b"".join([self._candidate(c, answer) for c in candidates])

    def _note(self, answer: Fields) -> None:
        """What was used so far; a caller that leaves before the end has used that much."""
        if isinstance(answer.get("candidates"), list):
            self._grounded = more(self._grounded, grounded(answer))
        if answer.get("usageMetadata"):
            self._usage = answer["usageMetadata"]
            self._hear(read_usage(msgspec.json.encode(usage_of(self._usage, self._grounded))))

    def _candidate(self, candidate: Fields, answer: Fields) -> bytes:
        index = candidate.get("index") or 0
        before = self._calls.get(index, 0)
        delta = said_in((candidate.get("content") or {}).get("parts"), answer | {"responseId": self.id}, before)
        for i, call in enumerate(delta.get("tool_calls") or ()):
            call["index"] = before + i
        self._calls[index] = before + len(delta.get("tool_calls") or ())
        finish = finish_of(candidate, called=self._calls[index] > 0)
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", "content": ""} | delta
        if not delta and finish is None:
            return b""
        self.started = (
            self.started or bool(finish) or bool(delta.keys() - {"role"} and any(v for k, v in delta.items() if k != "role"))
        )
        self.complete = self.complete or bool(finish)
        return self._chunk(index, delta, finish, told_apart(candidate))

    def _chunk(self, index: int, delta: Fields, finish: str | None, more: Fields | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish} | (more or {})
        return frame_of(msgspec.json.encode(self._top() | {"choices": [choice]}))

    def _top(self) -> Fields:
        return {"id": self.id, "object": "chat.completion.chunk", "created": self._created, "model": self.model}


def spelled(error: Fields) -> Fields:
    """An error of Google's with `type` and `code` as the words that tell what it was."""
    status = str(error.get("status") or "")
    kind = {"RESOURCE_EXHAUSTED": "rate_limit_error", "UNAVAILABLE": "overloaded_error"}.get(status, "upstream_error")
    return {"message": error.get("message"), "type": kind, "code": status.lower() or str(error.get("code"))}
