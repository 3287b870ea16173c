"""Anthropic's Messages API, streams: its named events as OpenAI chat chunks.

Order of events: message_start, then for each block content_block_start, content_block_delta…, content_block_stop,
then message_delta (stop_reason, cumulative usage) and message_stop; `ping` and `error` anywhere, unknown ones too.
"""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.error import UpstreamError
from noria.contracts.exchange import Hear, unheard
from noria.dialects.anthropic import Fields, finish_of, refusal_of, searched, told_apart, usage_of
from noria.dialects.openai_answer import read_usage
from noria.dialects.openai_stream import DONE
from noria.dialects.sse import FrameSplitter, data_of, frame_of
from noria.dialects.upstream import stream_refusal

_CONTENT = {"text_delta": ("text", "content"), "thinking_delta": ("thinking", "reasoning_content")}


class MessagesStream:
    """Translates one stream; a `Tap`. Always ends with a usage frame: whoever asked for none takes it out.

    `created` is Unix time in seconds: it is the same in every chunk, and Anthropic does not send it.
    """

    def __init__(self, created: int, *, who: str = "Anthropic", hear: Hear = unheard) -> None:
        self._created = created
        self._hear = hear
        self._who = who
        self._splitter = FrameSplitter()
        self._usage: Fields = {}
        self._tools: dict[int, int] = {}
        """Block index → tool call index."""
        self._thinking: dict[int, Fields] = {}
        self.id = ""
        self.model = ""
        self.started = False
        self.complete = False
        self.failure: UpstreamError | None = None

    def feed(self, data: bytes) -> bytes:
        """OpenAI frames for the bytes. Raises ValueError on an event that is not JSON."""
        return b"".join([self._translate(frame) for frame in self._splitter.feed(data)])

    def end(self) -> bytes:
        """The last event, where its blank line is missing."""
        rest = self._splitter.rest()
        return self._translate(rest) if rest.strip() else b""

    def _translate(self, frame: bytes) -> bytes:
        data = data_of(frame)
        if data is None or self.failure is not None:
            return b""
        try:
            event = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise ValueError(f"an event is not JSON: {e}") from None
        handle = getattr(self, f"_on_{event.get('type')}", None)
        made: bytes = handle(event) if handle is not None else b""
        return made

    def _on_message_start(self, event: Fields) -> bytes:
        message = event.get("message") or {}
        self.id, self.model = message.get("id") or "", message.get("model") or ""
        self._note(message.get("usage"))
        return self._chunk({"role": "assistant", "content": ""})

    def _on_content_block_start(self, event: Fields) -> bytes:
        index, block = event.get("index") or 0, event.get("content_block") or {}
        if block.get("type") == "tool_use":
            call = self._tools[index] = len(self._tools)
            self.started = True
            function = {"name": block.get("name") or "", "arguments": ""}
            return self._chunk(
                {"tool_calls": [{"index": call, "id": block.get("id") or "", "type": "function", "function": function}]}
            )
        if ran := searched(block, self._usage):
            self._note(ran)
        if block.get("type") in ("thinking", "redacted_thinking"):
            self._thinking[index] = dict(block)
        return self._text("content", block.get("text")) if block.get("type") == "text" else b""

    def _on_content_block_delta(self, event: Fields) -> bytes:
        index, delta = event.get("index") or 0, event.get("delta") or {}
        kind = delta.get("type")
        if kind == "input_json_delta" and index in self._tools:
            piece = delta.get("partial_json") or ""
            call = {"index": self._tools[index], "function": {"arguments": piece}}
            return self._chunk({"tool_calls": [call]}) if piece else b""
        if index in self._thinking:
            for key in ("thinking", "signature"):
                self._thinking[index][key] = (self._thinking[index].get(key) or "") + (delta.get(key) or "")
        source, target = _CONTENT.get(kind or "", ("", ""))
        return self._text(target, delta.get(source)) if source else b""

    def _on_content_block_stop(self, event: Fields) -> bytes:
        block = self._thinking.pop(event.get("index") or 0, None)
        return self._chunk({"thinking_blocks": [block]}) if block else b""

    def _on_message_delta(self, event: Fields) -> bytes:
        delta = event.get("delta") or {}
        self._note(event.get("usage"))
        finish = finish_of(delta)
        if finish is None:
            return b""
        self.started = True
        refusal = refusal_of(delta)
        return self._chunk({"refusal": refusal} if refusal else {}, finish, told_apart(delta))

    def _on_message_stop(self, event: Fields) -> bytes:  # noqa: ARG002  every handler is called with its event
        self.complete = True
        usage = frame_of(msgspec.json.encode(self._top() | {"choices": [], "usage": usage_of(self._usage)}))
        return usage + DONE

    def _on_ping(self, event: Fields) -> bytes:  # noqa: ARG002  every handler is called with its event
        return b": ping\n\n"

    def _on_error(self, event: Fields) -> bytes:
        error = msgspec.json.encode(event.get("error") or {})
        self.failure = stream_refusal(error, who=self._who, started=self.started)
        return b""

    def _note(self, usage: Any) -> None:
        """What was used so far; a caller that leaves before the end has used that much."""
        if isinstance(usage, dict):
            self._usage |= {key: value for key, value in usage.items() if value is not None}
            self._hear(read_usage(msgspec.json.encode(usage_of(self._usage))))

    def _text(self, key: str, text: Any) -> bytes:
        if not text:
            return b""
        self.started = True
        return self._chunk({key: text})

    def _chunk(self, delta: Fields, finish: str | None = None, more: Fields | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish} | (more or {})
        return frame_of(msgspec.json.encode(self._top() | {"choices": [choice]}))

    def _top(self) -> Fields:
        return {"id": self.id, "object": "chat.completion.chunk", "created": self._created, "model": self.model}
