"""OpenAI's Responses API, streams: chat chunks as named events that count up by `sequence_number`.

An item is opened by its first piece. Reasoning and text are closed when something else begins; function calls stay
open until the choice ends, because chat may interleave them. The events do not depend on how the stream was cut up.
There is no `[DONE]`: the last event is `response.completed`, `.incomplete` or `.failed`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.exchange import Usage
from noria.dialects.openai_answer import read_usage
from noria.dialects.responses import (
    WITHOUT_END,
    Shape,
    call_item,
    flat,
    message_item,
    reasoning_item,
    text_part,
    texts_in,
    write_failure,
)
from noria.dialects.responses_items import Fields
from noria.dialects.sse import FrameSplitter, data_of

_NONE = msgspec.Raw(b"null")
_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    thinking_blocks: Any = None
    annotations: Any = None


class _Choice(msgspec.Struct):
    index: Any = 0
    delta: _Delta | None = None
    logprobs: Any = None
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    model: Any = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NONE
    error: msgspec.Raw = _NONE
    service_tier: Any = None


_CHUNK = msgspec.json.Decoder(_Chunk)
_encode = msgspec.json.Encoder().encode


class _Text:
    """A text that grows."""

    __slots__ = ("kind", "logprobs", "notes", "pieces")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.pieces: list[str] = []
        self.logprobs: list[Any] = []
        self.notes: list[Any] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def part(self) -> Fields:
        if self.kind == "output_text":
            return text_part(self.text, self.logprobs, self.notes)
        return {"type": self.kind, "refusal" if self.kind == "refusal" else "text": self.text}


class _Item:
    """An output item on its way. `texts` are its content parts; a call has exactly one, its arguments."""

    __slots__ = ("blocks", "call_id", "id", "index", "kind", "name", "prefix", "texts")

    def __init__(self, kind: str, id: str, index: int, *, call_id: str = "", name: str = "") -> None:
        self.kind = kind
        self.id = id
        self.index = index
        self.call_id = call_id
        self.name = name
        self.blocks: list[Any] = []
        self.texts: list[_Text] = []
        self.prefix = (b"", b"")
        """What stands before and behind the `sequence_number` of the next deltas."""

    def write(self, status: str, *, sealed: bool) -> Fields:
        if self.kind == "reasoning":
            text = self.texts[0].text if self.texts else ""
            return reasoning_item(self.id, text, self.blocks, status, sealed=sealed)
        if self.kind == "message":
            return message_item(self.id, [t.part() for t in self.texts], status)
        return call_item(self.id, self.call_id, self.name, self.texts[0].text, status)


class ResponseStream:
    """Translates one stream. `feed` takes it in any chunking; `end` gives what is left."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._splitter = FrameSplitter()
        self._sequence = 0
        self._begun = False
        self._items: list[_Item] = []
        self._current: _Item | None = None
        """The reasoning or the message that is open."""
        self._calls: dict[int, _Item] = {}
        """Function calls that are open, by their index in chat."""
        self._done: dict[int, Fields] = {}
        self._model: Any = None
        self._tier: Any = None
        self._usage: Usage | None = None
        self._reason = ""
        self._error: Fields | None = None

    def feed(self, data: bytes) -> bytes:
        """The events for the bytes. Comments pass; a broken chunk fails the Response. Raises ValueError on an endless frame."""
        frames = self._splitter.feed(data)
        return self._frame(frames[0]) if len(frames) == 1 else b"".join([self._frame(frame) for frame in frames])

    def end(self, ended_s: int) -> bytes:
        """The last events. `ended_s` is the Unix time in seconds."""
        rest = self._splitter.rest()
        out = (self._frame(rest) if rest.strip() else b"") + self._begin()
        if self._error is not None:
            return out + self._fail(self._error)
        out += self._close_all()
        status = "incomplete" if self._reason else "completed"
        whole = self._shape.write(
            "incomplete" if self._reason else "completed", self._output(status), model=self._model, usage=self._usage,
            reason=self._reason, tier=self._tier, ended_s=ended_s,
        )  # fmt: skip
        return out + self._event(f"response.{status}", {"response": whole})

    # -- frames ---------------------------------------------------------------------------------------

    def _frame(self, frame: bytes) -> bytes:
        data = data_of(frame)
        if data is None:
            return frame if frame.startswith(b":") else b""
        if not data.startswith(b"{"):
            return b""
        try:
            return self._chunk(_CHUNK.decode(data))
        except _GARBAGE:  # it may have held text: an answer with a hole must not look whole
            self._error = self._error or {
                "message": "The model sent an event that is no chunk.",
                "code": "bad_upstream_response",
            }
            return b""

    def _chunk(self, chunk: _Chunk) -> bytes:
        if not self._model:
            self._model = chunk.model
        if chunk.service_tier:
            self._tier = chunk.service_tier
        if chunk.usage is not _NONE and bytes(chunk.usage) != b"null":
            self._usage = read_usage(chunk.usage) or self._usage
        if chunk.error is not _NONE and bytes(chunk.error) != b"null":
            error = msgspec.json.decode(chunk.error)
            self._error = error if isinstance(error, dict) else {"message": str(error)}
        out = b"" if self._begun else self._begin()
        for choice in chunk.choices or ():
            if not choice.index:
                said = self._choice(choice)
                out = out + said if out else said
        return out

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        begun = self._shape.write("in_progress", [], model=self._model)
        return self._event("response.created", {"response": begun}) + self._event("response.in_progress", {"response": begun})

    def _choice(self, choice: _Choice) -> bytes:
        out = b"" if choice.delta is None else self._delta(choice.delta, choice.logprobs)
        if choice.finish_reason:
            self._reason = WITHOUT_END.get(str(choice.finish_reason), "")
            out += self._close_all()
        return out

    def _delta(self, delta: _Delta, logprobs: Any) -> bytes:
        content, thought = delta.content, delta.reasoning_content or delta.reasoning
        if content is not None and not isinstance(content, str):
            content, thinking = texts_in(content)
            thought = thought or thinking
        out = self._say("reasoning", "reasoning_text", thought) if thought and isinstance(thought, str) else b""
        if isinstance(delta.thinking_blocks, list):
            out += self._thinking(delta.thinking_blocks)
        if content:
            out += self._say("message", "output_text", content, None if logprobs is None else _tokens(logprobs))
        if isinstance(delta.annotations, list):
            out += self._annotate(delta.annotations)
        if delta.refusal and isinstance(delta.refusal, str):
            out += self._say("message", "refusal", delta.refusal)
        if isinstance(delta.tool_calls, list):
            for i, call in enumerate(delta.tool_calls):
                out += self._call(call, i) if isinstance(call, dict) else b""
        return out

    # -- items ----------------------------------------------------------------------------------------

    def _say(self, kind: str, part: str, more: str, tokens: list[Any] | None = None) -> bytes:
        """More text of the open item, which is opened where there is none of this kind."""
        item, out = self._current, b""
        if item is None or item.kind != kind:
            out = self._close_current()
            item = self._current = self._item(kind, "rs" if kind == "reasoning" else "msg")
            out += self._added(item)
        if not item.texts or item.texts[-1].kind != part:
            if item.texts:
                out += self._part_done(item)
            out += self._part_added(item, part)
        if not more:
            return out
        text = item.texts[-1]
        text.pieces.append(more)
        if tokens:
            text.logprobs += tokens
            return out + self._event("response.output_text.delta", self._place(item) | {"logprobs": tokens, "delta": more})
        return out + self._piece(item, more)

    def _thinking(self, blocks: list[Any]) -> bytes:
        """Signed blocks belong to the reasoning that is open; one without words (redacted) opens its own."""
        out = b""
        if self._current is None or self._current.kind != "reasoning":
            out = self._close_current()
            self._current = self._item("reasoning", "rs")
            out += self._added(self._current)
        self._current.blocks += blocks
        return out

    def _annotate(self, notes: list[Any]) -> bytes:
        item = self._current
        if item is None or item.kind != "message" or not item.texts or item.texts[-1].kind != "output_text":
            return b""
        out = b""
        for note in notes:
            item.texts[-1].notes.append(note)
            place = self._place(item) | {"annotation_index": len(item.texts[-1].notes) - 1, "annotation": flat(note)}
            out += self._event("response.output_text.annotation.added", place)
        return out

    def _call(self, call: Fields, position: int) -> bytes:
        index = call["index"] if isinstance(call.get("index"), int) else position
        function = call["function"] if isinstance(call.get("function"), dict) else {}
        item, out = self._calls.get(index), b""
        if item is None:
            out = self._close_current()
            number = sum(i.kind == "function_call" for i in self._items)
            named = str(call.get("id") or self._shape.id("call", number)), str(function.get("name") or "")
            item = self._item("function_call", "fc", call_id=named[0], name=named[1])
            item.texts.append(_Text("arguments"))
            self._calls[index] = item
            out += self._added(item)
            self._prepare(item, "response.function_call_arguments.delta", content=False)
        arguments = function.get("arguments")
        if not isinstance(arguments, str) or not arguments:
            return out
        item.texts[0].pieces.append(arguments)
        return out + self._piece(item, arguments)

    def _item(self, kind: str, prefix: str, *, call_id: str = "", name: str = "") -> _Item:
        number = sum(i.kind == kind for i in self._items)
        item = _Item(kind, self._shape.id(prefix, number), len(self._items), call_id=call_id, name=name)
        self._items.append(item)
        return item

    def _added(self, item: _Item) -> bytes:
        written = item.write("in_progress", sealed=self._shape.sealed)
        return self._event("response.output_item.added", {"output_index": item.index, "item": written})

    def _part_added(self, item: _Item, part: str) -> bytes:
        item.texts.append(_Text(part))
        name = {"refusal": "refusal", "reasoning_text": "reasoning_text"}.get(part, "output_text")
        self._prepare(item, f"response.{name}.delta", content=True)
        return self._event("response.content_part.added", self._place(item) | {"part": item.texts[-1].part()})

    def _part_done(self, item: _Item) -> bytes:
        """The last part of an item is complete."""
        text = item.texts[-1]
        part, place = text.part(), self._place(item)
        if text.kind == "output_text":
            out = self._event("response.output_text.done", place | {"text": part["text"], "logprobs": part["logprobs"]})
        elif text.kind == "refusal":
            out = self._event("response.refusal.done", place | {"refusal": part["refusal"]})
        else:
            out = self._event("response.reasoning_text.done", place | {"text": part["text"]})
        return out + self._event("response.content_part.done", place | {"part": part})

    def _close_current(self) -> bytes:
        item, self._current = self._current, None
        if item is None:
            return b""
        return (self._part_done(item) if item.texts else b"") + self._item_done(item)

    def _close_all(self) -> bytes:
        out = self._close_current()
        calls, self._calls = self._calls, {}
        for item in calls.values():
            place = {"item_id": item.id, "output_index": item.index, "name": item.name, "arguments": item.texts[0].text}
            out += self._event("response.function_call_arguments.done", place) + self._item_done(item)
        if not self._items and self._error is None:  # an answer without a word is one all the same
            out += self._say("message", "output_text", "") + self._close_current()
        return out

    def _item_done(self, item: _Item) -> bytes:
        status = "incomplete" if self._reason else "completed"
        written = self._done[item.index] = item.write(status, sealed=self._shape.sealed)
        return self._event("response.output_item.done", {"output_index": item.index, "item": written})

    def _output(self, status: str) -> list[Fields]:
        return [self._done.get(i.index) or i.write(status, sealed=self._shape.sealed) for i in self._items]

    def _fail(self, error: Fields) -> bytes:
        told = {"code": error.get("code"), "message": str(error.get("message") or ""), "param": error.get("param")}
        failed = self._shape.write(
            "failed", self._output("incomplete"), model=self._model, usage=self._usage, error=write_failure(error)
        )
        return self._event("error", told) + self._event("response.failed", {"response": failed})

    # -- events ---------------------------------------------------------------------------------------

    def _place(self, item: _Item) -> Fields:
        return {"item_id": item.id, "output_index": item.index, "content_index": len(item.texts) - 1}

    def _event(self, kind: str, fields: Fields) -> bytes:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    def _prepare(self, item: _Item, kind: str, *, content: bool) -> None:
        """The delta event of an item's next pieces: all but its number and its text."""
        fields = {"type": kind, "item_id": item.id, "output_index": item.index}
        if content:
            fields["content_index"] = len(item.texts) - 1
        if kind == "response.output_text.delta":
            fields["logprobs"] = []
        head = b"event: %b\ndata: %b" % (kind.encode(), msgspec.json.encode(fields)[:-1])
        item.prefix = (head + b',"sequence_number":', b',"delta":')

    def _piece(self, item: _Item, text: str) -> bytes:
        before, behind = item.prefix
        out = b"%b%d%b%b}\n\n" % (before, self._sequence, behind, _encode(text))
        self._sequence += 1
        return out


def _tokens(logprobs: Any) -> list[Any] | None:
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return tokens if isinstance(tokens, list) else None
