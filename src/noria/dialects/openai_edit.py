"""OpenAI's wire form, streams: edits of the text of a stream as it passes.

A frame waits until the transducer has let go of all its text. If that left as it came, so does the frame, with its own
bytes; if not, the frames that carried what was changed leave as one that says what came of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from noria.contracts.stage import Channel, Transducer
from noria.dialects.openai_answer import (
    FIELDS,
    SPELLED,
    Fields,
    edit_texts,
    hide_logprobs,
    hide_reasoning_echoes,
    integer,
    string,
)
from noria.dialects.openai_frame import (
    CHANNELS,
    FIELDS_LIST,
    GARBAGE,
    Mould,
    holder_of,
    is_silent,
    mould_of,
    reworded,
    says_more,
    sole_text,
)
from noria.dialects.openai_stream import StreamReader
from noria.dialects.sse import data_of, frame_of

Open = Callable[[int, Channel], Transducer | None]
"""A fresh transducer for (choice, channel), or None where that channel passes as it is."""


class _Waiting(msgspec.Struct):
    """A frame that has not left."""

    frame: bytes
    text: str
    """What is still to be said of its text, behind what an earlier frame left unsaid."""
    whole: bool
    """Whether `text` is the frame's own."""


class _Line:
    """One (choice, channel) on its way through a transducer, and the frames that wait for it."""

    __slots__ = ("_loose", "_size", "_transducer", "_waiting", "channel", "edited", "index", "key")

    def __init__(self, index: int, channel: Channel, key: str, transducer: Transducer) -> None:
        self.index = index
        self.channel = channel
        self.key = key
        """Where the delta keeps this channel's text: `content`, `text`, `reasoning`, …"""
        self.edited = False
        self._transducer = transducer
        self._waiting: list[_Waiting] = []
        self._size = 0
        """Characters that were fed and have not left, `_loose` and those of waiting frames."""
        self._loose = ""
        """Text in the transducer whose frame is gone; only where no frame waits."""

    @property
    def tells_all(self) -> bool:
        """Whether everything that came has left as it came."""
        return not self.edited and not self._size

    def pass_on(self, frames: list[tuple[bytes, str]]) -> tuple[list[bytes], str]:
        """Frames with their texts go in; as `_leave`."""
        for frame, text in frames:
            if self._loose:
                self._waiting.append(_Waiting(frame, self._loose + text, whole=False))
                self._loose = ""
            else:
                self._waiting.append(_Waiting(frame, text, whole=True))
        fed = frames[0][1] if len(frames) == 1 else "".join([text for _, text in frames])
        self._size += len(fed)
        return self._leave(self._transducer.feed(fed))

    def flush(self) -> tuple[list[bytes], str]:
        """The end of the channel; as `_leave`."""
        return self._leave(self._transducer.flush())

    def pass_alone(self, text: str, *, last: bool) -> tuple[list[bytes], str]:
        """A text goes in whose frame leaves now, whatever becomes of it.

        What leaves before that frame, and the text that it is to say: text of frames that waited is said by it.
        """
        before = [reworded(w.frame, "") for w in self._waiting if says_more(w.frame)]
        pending = self._loose + "".join([w.text for w in self._waiting]) + text
        self._waiting.clear()
        out = self._transducer.feed(text)
        if last:
            out += self._transducer.flush()
        self._size = 0 if last else self._transducer.held
        self._loose = pending[len(pending) - self._size :]
        self.edited = self.edited or out != text
        return before, out

    def _leave(self, out: str) -> tuple[list[bytes], str]:
        """The frames that leave with `out`, and what of it there is no frame for."""
        left = max(0, self._size - self._transducer.held)
        self._size -= left
        if self._loose:
            self._loose = self._loose[left:]
        frames: list[bytes] = []
        at = 0
        for w in self._waiting:
            size = len(w.text)
            if size > left or not out.startswith(w.text, at):
                break
            frames.append(w.frame if w.whole else reworded(w.frame, w.text))
            at += size
            left -= size
        del self._waiting[: len(frames)]
        if left or at < len(out):
            return self._leave_changed(out[at:], left, frames)
        return frames, ""

    def _leave_changed(self, out: str, left: int, frames: list[bytes]) -> tuple[list[bytes], str]:
        """As `_leave`, where the first frame leaves in part, or its text is not what `out` begins with."""
        gone: list[_Waiting] = []
        while self._waiting and len(self._waiting[0].text) <= left:
            gone.append(self._waiting.pop(0))
            left -= len(gone[-1].text)
        behind: list[bytes] = []
        if left and self._waiting:
            cut = self._waiting[0]
            said, cut.text, cut.whole = cut.text[:left], cut.text[left:], False
            if out.endswith(said):
                behind.append(reworded(cut.frame, said))
                out = out[: len(out) - len(said)]
        while gone and out.endswith(gone[-1].text):
            w = gone.pop()
            behind.append(w.frame if w.whole else reworded(w.frame, w.text))
            out = out[: len(out) - len(w.text)]
        behind.reverse()
        if not gone and not out:
            return frames + behind, ""
        self.edited = True
        if not gone and not self._waiting:
            return frames + behind, out
        carrier = gone[0] if gone else self._waiting[0]
        if out or says_more(carrier.frame):
            frames.append(reworded(carrier.frame, out))
        frames += [reworded(w.frame, "") for w in gone[1:] if says_more(w.frame)]
        return frames + behind, ""


class StreamEditor:
    """Sends the text of a stream through transducers, one for each (choice, channel).

    A frame whose text comes out as it went in keeps its original bytes. What a transducer holds back at
    the end of a choice leaves before the frame with its `finish_reason` does. Frames that have nothing
    left to say are dropped. Transducers may raise `Blocked`; it passes through.

    A frame waits for its text where that is all it says. One with several texts, or with a copy of one, leaves at once, with
    what its transducers let go.
    """

    def __init__(self, open: Open, reader: StreamReader | None = None) -> None:
        self._open = open
        self._reader = reader
        """Is told of the frames that `skim` takes: nobody else has read them."""
        self._lines: dict[int, dict[Channel, _Line | None]] = {}
        self._edited: set[tuple[int, Channel]] = set()
        """Channels that have ended."""
        self._mould: Mould | None = None
        self._moulded: _Line | None = None
        """The line of the frames of `_mould`."""
        self._like: Fields = {}
        """Top level of the last chunk: what an extra frame is cloned from."""

    def skim(self, block: bytes, at: int) -> tuple[int, list[bytes]]:
        """Take the frames from `at` on that say mere text, like the last one: where the next begins, and what leaves for them."""
        if self._mould is None or self._moulded is None or not (frames := self._mould.texts(block, at)):
            return at, []
        stop = at + sum([len(frame) for frame, _ in frames])
        if self._reader is not None:
            self._reader.pass_over(block, at, stop)
        return stop, self._told(self._moulded, self._moulded.pass_on(frames))

    def edit(self, frame: bytes) -> list[bytes]:
        """The frames that leave for `frame`. Raises ValueError on data that is not a chunk: it cannot be judged."""
        data = data_of(frame)
        if data is None:
            return [frame]
        if data.startswith(b"[DONE]"):
            return [*self.end(), frame]
        try:
            fields: Fields = dict(FIELDS.decode(data))
            choices: list[Fields] = list(FIELDS_LIST.decode(fields.get("choices") or b"[]")) if _is_list(fields) else []
            if not choices:
                return [frame]
            self._like = fields
            waits = self._wait(frame, choices[0]) if len(choices) == 1 else None
            return self._edit_chunk(frame, fields, choices) if waits is None else waits
        except GARBAGE as e:
            raise ValueError(f"an event of the stream is no chunk in OpenAI's form: {e}") from None

    def end(self) -> list[bytes]:
        """The frames with what is still held back, for a stream that ends without a word."""
        return [frame for index in list(self._lines) for frame in self._flush(index, set())]

    def _wait(self, frame: bytes, choice: Fields) -> list[bytes] | None:
        """What leaves for a frame that says one text and nothing that cannot wait for it; None for others."""
        holder = holder_of(choice)
        key = sole_text(choice, holder)
        if not key or string(choice.get("finish_reason")):
            return None
        raw = bytes(holder[key])
        line = self._line(integer(choice.get("index")), CHANNELS[key], holder)
        if line is None:
            return [frame]
        self._mould, self._moulded = mould_of(frame, choice, key, raw), line
        return self._told(line, line.pass_on([(frame, string(raw))]))

    def _told(self, line: _Line, left: tuple[list[bytes], str]) -> list[bytes]:
        """The frames that leave a line; one more for a text that none of them says."""
        frames, text = left
        return [*frames, self._extra(line, text)] if text else frames

    def _edit_chunk(self, frame: bytes, fields: Fields, choices: list[Fields]) -> list[bytes]:
        before: list[bytes] = []
        edited = [self._edit_choice(choice, before) for choice in choices]
        if not any(changed for changed, _ in edited):
            return [*before, frame]
        if all(silent for _, silent in edited) and bytes(fields.get("usage") or b"null") == b"null":
            return before
        return [*before, frame_of(msgspec.json.encode(fields | {"choices": choices}))]

    def _edit_choice(self, choice: Fields, before: list[bytes]) -> tuple[bool, bool]:
        """Edit one choice in place; (it changed, it has nothing left to say). Frames due first go to `before`."""
        index = integer(choice.get("index"))
        last = bool(string(choice.get("finish_reason")))
        holder = holder_of(choice)
        flushed: set[Channel] = set()

        def through(channel: Channel, text: str) -> str:
            line = self._line(index, channel, holder)
            if line is None:
                return text
            due, out = line.pass_alone(text, last=last)
            before.extend(due)
            if last:
                flushed.add(channel)
            return out

        changed = edit_texts(holder, through)
        if last:
            before += self._flush(index, flushed)
        hidden = self._hide_echoes(index, choice, holder)
        if not changed and not hidden:
            return False, False
        if changed & SPELLED:
            hide_logprobs(choice)
        if holder is not choice:
            choice["delta"] = holder
        return True, not last and is_silent(holder)

    def _hide_echoes(self, index: int, choice: Fields, holder: Fields) -> bool:
        """Leave out second copies of text that has been edited, or not left yet: the cumulative `message` (Perplexity),
        reasoning blocks.
        """
        size = len(choice) + len(holder)
        lines = self._lines.get(index, {})
        untold = {channel for channel, line in lines.items() if line is not None and not line.tells_all}
        untold |= {channel for i, channel in self._edited if i == index}
        if "message" in choice and untold:
            del choice["message"]
        if "reasoning" in untold:
            hide_reasoning_echoes(holder)
        return len(choice) + len(holder) != size

    def _line(self, index: int, channel: Channel, holder: Fields) -> _Line | None:
        lines = self._lines.setdefault(index, {})
        if channel not in lines:
            transducer = self._open(index, channel)
            lines[channel] = None if transducer is None else _Line(index, channel, _key_of(channel, holder), transducer)
        return lines[channel]

    def _flush(self, index: int, flushed: set[Channel]) -> list[bytes]:
        frames: list[bytes] = []
        for channel, line in self._lines.pop(index, {}).items():
            if line is None:
                continue
            if channel not in flushed:
                frames += self._told(line, line.flush())
            if line.edited:
                self._edited.add((index, channel))
        self._mould = None
        return frames

    def _extra(self, line: _Line, text: str) -> bytes:
        """A chunk of our own with `text`, like the last one in id, created and model."""
        line.edited = True
        choice: dict[str, Any] = {"index": line.index}
        if line.key == "text":
            choice |= {"text": text, "logprobs": None}
        elif line.key == "function_call":
            choice["delta"] = {line.key: {"arguments": text}}
        elif line.key in _INNER:
            call = {"index": int(line.channel.partition(".")[2]), line.key: {_INNER[line.key]: text}}
            choice["delta"] = {"tool_calls": [call]}
        else:
            choice["delta"] = {line.key: text}
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
