r"""JSON text seen as the characters it stands for: what a check must judge in the arguments of a tool call.

In raw JSON a phone number after a newline reads `\n138…`, a letter before the first digit, and Chinese may
be all `\u4e2d`. Each character of the view keeps the piece of raw text that it came from, so that what is
not masked leaves as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from noria.contracts.verdict import Finding
from noria.guard.action import Replace, merge

_TOKEN = re.compile(r"[^\\]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\[^u]", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_LONGEST_ESCAPE = 12


class JsonText:
    """Raw JSON text in, characters and their raw pieces out, incrementally."""

    def __init__(self) -> None:
        self._partial = ""

    @property
    def partial(self) -> int:
        """Characters that wait for the rest of their escape."""
        return len(self._partial)

    def feed(self, raw: str, *, last: bool = False) -> list[tuple[str, str]]:
        """(character, raw piece) of what is complete; an escape cut in two waits for its rest."""
        raw = self._partial + raw
        self._partial = ""
        if "\\" not in raw:
            return [(c, c) for c in raw]
        units: list[tuple[str, str]] = []
        at = 0
        while at < len(raw):
            m = _TOKEN.match(raw, at)
            piece = m.group() if m else raw[at]
            if raw[at] == "\\" and not last and self._may_grow(raw, at, piece if m else ""):
                self._partial = raw[at:]
                break
            units.append((_character(piece), piece))
            at += len(piece)
        return units

    @staticmethod
    def _may_grow(raw: str, at: int, piece: str) -> bool:
        """Whether what follows could still change how the escape at `at` is read."""
        rest = raw[at : at + _LONGEST_ESCAPE]
        if not piece:
            return bool(re.fullmatch(r"\\(?:u[0-9a-fA-F]{0,3})?", rest))
        if len(piece) != 6 or piece[2] not in "dD" or piece[3] not in "89abAB":
            return False
        return (
            bool(re.fullmatch(r"\\u....(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?", rest)) and len(rest) < _LONGEST_ESCAPE
        )


def _character(piece: str) -> str:
    if len(piece) == 1:
        return piece
    if piece[1] != "u":
        return _ESCAPES.get(piece[1], piece[1])
    if len(piece) == 12:
        return chr(0x10000 + ((int(piece[2:6], 16) - 0xD800) << 10) + int(piece[8:12], 16) - 0xDC00)
    code = int(piece[2:6], 16)
    return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)


def is_json(text: str) -> bool:
    """Whether the text is a JSON document."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    return True


def escape(text: str) -> str:
    """The text as it stands inside a JSON string."""
    return msgspec.json.encode(text)[1:-1].decode()


def splice(pieces: Sequence[str], replacement: str, *, inside: bool) -> str:
    """The raw text that takes the place of `pieces`: what lies inside strings is replaced, their quotes stay.

    A finding outside of a string is a number; it becomes a string, so that the document stays JSON.
    """
    if '"' not in pieces:
        return replacement if inside else f'"{replacement}"'
    out: list[str] = []
    held: list[str] = []
    for piece in (*pieces, None):
        if piece is not None and piece != '"':
            held.append(piece)
            continue
        if held:
            out.append(replacement if inside else "".join(held))
            held = []
        if piece is not None:
            out.append(piece)
            inside = not inside
    return "".join(out)


def view(raw: str) -> str:
    """The characters that raw JSON text stands for."""
    return "".join(c for c, _ in JsonText().feed(raw, last=True)) if "\\" in raw else raw


def replace_json(raw: str, findings: Iterable[Finding], by: Replace) -> str:
    """Raw JSON text with each (merged) finding replaced; spans are of its `view`."""
    units = JsonText().feed(raw, last=True)
    out: list[str] = []
    at, inside = 0, False
    for f in merge(findings):
        before = [piece for _, piece in units[at : f.start]]
        inside ^= before.count('"') % 2 == 1
        pieces = [piece for _, piece in units[f.start : f.end]]
        original = "".join(c for c, _ in units[f.start : f.end])
        out += (*before, splice(pieces, by(f.label, original), inside=inside))
        inside ^= pieces.count('"') % 2 == 1
        at = f.end
    out += [piece for _, piece in units[at:]]
    return "".join(out)
