"""Text as it was meant: NFC, plain line ends, nothing invisible. Code inside lines is left alone.

Removed are zero-width characters, bidirectional controls and tag characters, which hide words from
readers and guards (OWASP LLM01, "invisible prompt injection"). Kept are the joiners that scripts need:
ZWJ and ZWNJ between letters of Arabic and Indic scripts, ZWJ inside emoji, the tags of the three
subdivision flags that Unicode recommends. NFKC would change meaning (x², ①), so it is not used.
"""

from __future__ import annotations

import re
import unicodedata

import msgspec

from noria.contracts.exchange import Exchange
from noria.contracts.message import Message, Part
from noria.dialects.openai import read_messages

_ROLES = frozenset({"user", "tool", "function"})
_JOINED = "\u0600-\u08ff\u0900-\u0dff\u0e00-\u109f\u1780-\u17ff\u1800-\u18af\ufb50-\ufdff\ufe70-\ufefc"
_EMOJI = "\u00a9\u00ae\u203c-\u3299\ufe0f\U0001f000-\U0001faff"
_INVISIBLE = re.compile("[\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\U000e0000-\U000e007f]+")
_FLAG_TAGS = tuple("".join(chr(0xE0000 + ord(c)) for c in region) + "\U000e007f" for region in ("gbeng", "gbsct", "gbwls"))
_LETTER = re.compile(f"[{_JOINED}]")
_PICTURE = re.compile(f"[{_EMOJI}]")
_LINE_END = re.compile("\r\n?|[\u0085\u2028\u2029]")


class Normalize:
    """Normalises what users and tools wrote; an exchange in which nothing changes is returned as it is."""

    name = "normalize"
    behaviour = 1

    def __call__(self, x: Exchange, /) -> Exchange:
        """As `Inward`."""
        if x.release is not None and not x.release.normalize:
            return x
        messages = x.messages
        if messages is None:
            if "messages" not in x.body:
                return x
            if _untouched(bytes(x.body["messages"])):
                return x
            messages = read_messages(x.body["messages"])
        new = [_message(m) if m.role in _ROLES else m for m in messages]
        for a, b in zip(new, messages, strict=True):
            if a is not b:
                return msgspec.structs.replace(x, messages=tuple(new), edited=True)
        return x


def _untouched(raw: bytes) -> bool:
    """Whether normalising cannot change the JSON of these messages: ASCII without escapes that spell anything else,
    without carriage returns, and without blanks at the end of a line or of a text (as `json.dumps` writes between keys).
    """
    if not raw.isascii() or b' "' in raw:
        return False
    if b"\\" not in raw:
        return True
    return not (b"\\u" in raw or b"\\r" in raw or b'\\t"' in raw or b" \\n" in raw or b"\\t\\n" in raw)


def _message(message: Message) -> Message:
    parts = [_part(p) for p in message.parts]
    for a, b in zip(parts, message.parts, strict=True):
        if a is not b:
            return msgspec.structs.replace(message, parts=tuple(parts))
    return message


def _part(part: Part) -> Part:
    if not part.text or (text := normalize(part.text)) == part.text:
        return part
    return Part(text, part.raw)


def normalize(text: str) -> str:
    r"""The normalised text; normalising it again changes nothing.

    >>> normalize("a\u200bb \r\nc")
    'ab\nc'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", _INVISIBLE.sub(_visible, text))
        text = _LINE_END.sub("\n", text)
    elif "\r" in text:
        text = _LINE_END.sub("\n", text)
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return text


def _visible(m: re.Match[str]) -> str:
    """What stays of a run of invisible characters: a joiner where its neighbours need one, a flag's tags."""
    run, text = m.group(), m.string
    before, after = text[m.start() - 1 : m.start()] if m.start() else "", text[m.end() : m.end() + 1]
    if before == "\U0001f3f4":
        return next((tags for tags in _FLAG_TAGS if run.startswith(tags)), "")
    joiner = next((c for c in run if c in "\u200c\u200d"), "")
    if joiner and _LETTER.match(before) and (_LETTER.match(after) or joiner == "\u200d"):
        return joiner
    if "\u200d" in run and _is_picture(before) and _is_picture(after):
        return "\u200d"
    return ""


def _is_picture(c: str) -> bool:
    return bool(_PICTURE.match(c))
