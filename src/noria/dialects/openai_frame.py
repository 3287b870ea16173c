"""OpenAI's wire form, one frame of a stream: which text it says, the same frame saying another, frames that differ in nothing else.

Most frames of a stream say one piece of text and are, but for it, bytes that came before: such a frame is a `Mould`
around its text, and is read by comparing bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from noria.contracts.stage import Channel
from noria.dialects.openai_answer import FIELDS, SPELLED, Fields, edit_texts, hide_logprobs, object_of
from noria.dialects.sse import data_of, frame_of

GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
FIELDS_LIST = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])

CHANNELS: dict[str, Channel] = {
    "content": "content",
    "text": "content",
    "refusal": "refusal",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
}
"""Keys of a delta, or of a legacy choice, that hold a text."""
_BESIDES = frozenset({"tool_calls", "function_call", "reasoning_details", "thinking_blocks"})
"""Keys that hold texts elsewhere: other channels, or second copies."""
_EMPTY = frozenset({b"null", b'""', b"[]"})

_TEXT = msgspec.json.Decoder(str)


def holder_of(choice: Fields) -> Fields:
    """Where a choice holds its texts: its delta, or itself in the legacy form."""
    delta = choice.get("delta")
    return object_of(delta) if delta is not None and bytes(delta).startswith(b"{") else choice


def sole_text(choice: Fields, holder: Fields) -> str:
    """The key of the one text that a choice says; empty where it says none, several, or repeats one elsewhere."""
    found = ""
    for key, raw in holder.items():
        if key in CHANNELS:
            value = bytes(raw)
            if value in _EMPTY:
                continue
            if found or not value.startswith(b'"'):
                return ""
            found = key
        elif key in _BESIDES and bytes(raw) not in _EMPTY:
            return ""
    return "" if "message" in choice else found


def reworded(frame: bytes, text: str) -> bytes:
    """A frame that says one text, saying `text` instead; it says so without log probabilities, which spell the old one."""
    fields: Fields = dict(FIELDS.decode(data_of(frame) or b""))
    choices: list[Fields] = FIELDS_LIST.decode(fields["choices"])
    choice = choices[0]
    holder = holder_of(choice)
    if edit_texts(holder, lambda _channel, _text: text) & SPELLED:
        hide_logprobs(choice)
    if holder is not choice:
        choice["delta"] = holder
    return frame_of(msgspec.json.encode(fields | {"choices": choices}))


def says_more(frame: bytes) -> bool:
    """Whether a frame that says one text says anything besides: who speaks, or what was used."""
    fields = FIELDS.decode(data_of(frame) or b"")
    choice: Fields = FIELDS_LIST.decode(fields["choices"])[0]
    holder = dict(holder_of(choice))
    holder.pop(sole_text(choice, holder), None)
    return not is_silent(holder) or bytes(fields.get("usage") or b"null") != b"null"


def is_silent(holder: Fields) -> bool:
    """Whether nothing but empty text and nulls is left of a delta (or of a legacy choice)."""
    for key, value in holder.items():
        said = value not in ("", None) and not (isinstance(value, msgspec.Raw) and bytes(value) in _EMPTY)
        if said and key not in ("index", "logprobs", "finish_reason"):
            return False
    return True


_PADDING = b'"obfuscation":"'
"""OpenAI's own streams end in padding, so that the length of a frame does not betray its text."""


class Mould(NamedTuple):
    """What stands around the text of a frame: up to its opening quote, and from its closing one on."""

    head: bytes
    tail: bytes
    """As far as the padding, where there is some."""
    close: bytes = b""
    """What comes behind the padding."""

    def texts(self, block: bytes, at: int) -> list[tuple[bytes, str]]:
        """(frame, its text) of the frames from `at` on that are this mould around a text: none, where the first is not."""
        found: list[tuple[bytes, str]] = []
        while block.startswith(self.head, at):
            stop = block.find(b"\n\n", at) + 2
            frame = block[at:stop]
            end = frame.rfind(self.tail, len(self.head))
            padding = frame[end + len(self.tail) : len(frame) - len(self.close)]
            if end < 0 or not frame.endswith(self.close) or (padding and not (self.close and padding.isalnum())):
                break
            try:
                text = _TEXT.decode(b'"%b"' % frame[len(self.head) : end])
            except (msgspec.DecodeError, UnicodeDecodeError):  # not this mould after all, or no JSON: to be read as a whole
                break
            found.append((frame, text))
            at = stop
        return found


def mould_of(frame: bytes, choice: Fields, key: str, raw: bytes) -> Mould | None:
    """The mould of a frame whose one text is `raw`, a JSON string under `key`; None where it cannot be told from the bytes."""
    mark = b'"%b":' % key.encode()
    start = frame.find(mark) + len(mark)
    start += frame.startswith(b" ", start)
    if mark not in frame or not frame.startswith(raw, start) or bytes(choice.get("logprobs") or b"null") != b"null":
        return None
    head, tail = frame[: start + 1], frame[start + len(raw) - 1 :]
    around = head + tail
    if b"\\" in around or b"\r" in around or around.count(mark[:-1]) != 1:  # the key is there once, however spelt
        return None
    if not frame.startswith(b"data: ") or around.find(b"\n") != len(around) - 2:
        return None
    before, padded, behind = tail.partition(_PADDING)
    padding, quote, close = behind.partition(b'"')
    return Mould(head, before + padded, quote + close) if padding.isalnum() else Mould(head, tail)
