"""Server-sent events as bytes: cut a stream into frames without changing one byte of it.

Format: WHATWG HTML §9.2 "Server-sent events". Lines end in LF, CRLF or CR; an event is dispatched only
at a blank line. A frame here is everything up to and including its blank line.
"""

from __future__ import annotations

import re

FRAME_LIMIT = 4 * 1024 * 1024
"""Bytes of one frame. A longer one is a broken or hostile upstream."""

# Atomic groups, so that CRLF is never read as two line ends.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class FrameSplitter:
    """Cuts bytes that arrive in any chunking into whole frames; joined, frames and `rest()` are the input.

    The frames do not depend on the chunking. A frame that ends in a bare CR waits for one more byte,
    which may be the LF of its CRLF.
    """

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole now. Raises ValueError on a frame of more than `FRAME_LIMIT` bytes."""
        if self._pending or b"\r" in data:
            return self._feed_slowly(data)
        end = data.find(b"\n\n")
        if end == len(data) - 2 >= 0:  # exactly one frame: what servers that flush each token send
            frames = [data]
        else:
            pieces = data.split(b"\n\n")
            self._pending += pieces.pop()
            frames = [piece + b"\n\n" for piece in pieces]
        if len(data) > FRAME_LIMIT:
            self._refuse_long(frames)
        return frames

    def block(self, data: bytes) -> bytes:
        """The frames that are whole now, joined: the very `data` where it is whole frames, as it mostly is. Raises as `feed`."""
        if not self._pending and data.endswith(b"\n\n") and b"\r" not in data and len(data) <= FRAME_LIMIT:
            return data
        return b"".join(self.feed(data))

    def rest(self) -> bytes:
        """What has come of a frame that is not whole yet."""
        return bytes(self._pending)

    def _feed_slowly(self, data: bytes) -> list[bytes]:
        pending = self._pending
        scan = max(0, len(pending) - 3)  # a blank line is at most CRLF CRLF
        pending += data
        frames = []
        start = 0
        while (end := _frame_end(pending, scan)) >= 0:
            frames.append(bytes(pending[start:end]))
            start = scan = end
        del pending[:start]
        self._refuse_long(frames)
        return frames

    def _refuse_long(self, frames: list[bytes]) -> None:
        if len(self._pending) > FRAME_LIMIT or any(len(frame) > FRAME_LIMIT for frame in frames):
            raise ValueError(f"an event of the stream is longer than {FRAME_LIMIT} bytes")


def _frame_end(data: bytearray, start: int) -> int:
    """Index after the next blank line, or -1. The match must not outlive this call: it locks the bytearray."""
    found = _BLANK_LINE.search(data, start)
    if found is None:
        return -1
    end = found.end()
    return -1 if end == len(data) and data[-1] == 0x0D else end


def frame_end(block: bytes, start: int) -> int:
    """Where the frame that begins at `start` ends, in a block of whole frames."""
    if b"\r" not in block:
        end = block.find(b"\n\n", start)
        return end + 2 if end >= 0 else len(block)
    found = _BLANK_LINE.search(block, start)
    return found.end() if found is not None else len(block)


NEAR_END = 1024
"""Bytes at the end of a block in which the last frame of a stream is looked for."""


def marked(block: bytes, start: int, marks: tuple[bytes, ...], last: bytes = b"") -> int:
    """Where the first frame with a mark begins, at `start` or after it; the end of the block where there is none.

    A frame for each token is what a stream mostly is: a few searches find those that matter (4 to 5 us each in 16 KB, where
    one regular expression takes 250, and 45 by automaton). The mark of the frame that ends a stream (`last`) is looked for
    near the end of the block alone. Blocks with CR are taken frame by frame: any mark gives `start`.
    """
    first = end = len(block)
    for mark in marks:
        at = block.find(mark, start, first)
        if at >= 0:
            first = at
    if last:
        at = block.find(last, max(start, end - NEAR_END), first)
        if at >= 0:
            first = at
    if first == end or b"\r" in block:
        return end if first == end else start
    before = block.rfind(b"\n\n", start, first)
    return start if before < 0 else before + 2


def data_of(frame: bytes) -> bytes | None:
    r"""The joined `data` lines of a frame, or None for a frame without any (comments, a bare event name).

    >>> data_of(b"data: {}\n\n")
    b'{}'
    """
    if frame.startswith(b"data: ") and frame.find(b"\n") == len(frame) - 2 and b"\r" not in frame:
        return frame[6:-2]
    values = _values(frame, b"data")
    return b"\n".join(values) if values else None


def event_of(frame: bytes) -> str | None:
    """The event name of a frame, or None. The last one counts, as the standard says."""
    values = _values(frame, b"event")
    return values[-1].decode("utf-8", "replace") if values else None


def frame_of(data: bytes) -> bytes:
    """One frame that carries `data`, which must not hold line ends (JSON of ours never does)."""
    return b"data: " + data + b"\n\n"


def _values(frame: bytes, field: bytes) -> list[bytes]:
    values = []
    for line in _LINE_END.split(frame):
        name, _, value = line.partition(b":")
        if name == field:
            values.append(value.removeprefix(b" "))
    return values
