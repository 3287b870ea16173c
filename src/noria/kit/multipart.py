"""multipart/form-data in a file, read piece by piece: what its fields say, then its one file's bytes.

Two passes: fields may stand behind the file, and who stores it wants to know its size before the first byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

READ = 256 * 1024
MOST_FIELDS = 16
LONGEST_FIELD = 64 * 1024
"""Bytes of all fields together, the file apart."""


class Form(msgspec.Struct):
    """What a form says. `filename` is None where it has no file."""

    fields: dict[str, str]
    filename: str | None
    size: int
    """Bytes of the file."""


class BadForm(Exception):
    """Not multipart/form-data, or beyond the bounds; the text says which."""


def read_form(path: Path, content_type: str, *, file: str = "file") -> Form:
    """The fields of the form at `path`, and how large the part `file` is. Raises `BadForm`."""
    reader = _Reader(content_type, file)
    for _ in reader.feed(path):
        continue
    return Form({k: v.decode("utf-8", "replace") for k, v in reader.fields.items()}, reader.filename, reader.size)


def read_file(path: Path, content_type: str, piece: int, *, file: str = "file") -> Iterator[bytes]:
    """The bytes of the part `file`, in pieces of `piece` bytes, the last one shorter. Raises `BadForm`."""
    held = bytearray()
    for data in _Reader(content_type, file).feed(path):
        held += data
        while len(held) >= piece:
            yield bytes(held[:piece])
            del held[:piece]
    if held:
        yield bytes(held)


class _Reader:
    """The callbacks of one pass."""

    def __init__(self, content_type: str, file: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise BadForm("it needs the content type multipart/form-data with a boundary")
        self.fields: dict[str, bytes] = {}
        self.filename: str | None = None
        self.size = 0
        self._file = file
        self._named: tuple[str, str | None] = ("", None)
        self._header = (b"", b"")
        self._disposition = b""
        self._taken: list[bytes] = []
        self._ended = False
        self._parts = 0
        self._held = 0
        calls: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(options[b"boundary"], calls)
        except FormParserError as e:
            raise BadForm(str(e)) from None

    def feed(self, path: Path) -> Iterator[bytes]:
        """Read the whole form; the file's bytes as they come."""
        with path.open("rb", buffering=0) as form:
            while data := form.read(READ):
                try:
                    self._parser.write(data)
                except FormParserError as e:
                    raise BadForm(str(e)) from None
                yield from self._taken
                self._taken.clear()
        if not self._ended:
            raise BadForm("it ends before its last boundary")

    # ── called by the parser ──

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_FIELDS + 1:
            raise BadForm(f"it has more than {MOST_FIELDS} fields")
        self._disposition = b""

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0] + data[start:end], b"")

    def _value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + data[start:end])

    def _header_end(self) -> None:
        name, value = self._header
        self._header = (b"", b"")
        if name.lower() == b"content-disposition":
            self._disposition = value

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise BadForm("a part has no name")
        given = options.get(b"filename")
        if name == self._file and given is not None:
            if self.filename is not None:
                raise BadForm(f"it has more than one {self._file!r}")
            self.filename = given.decode("utf-8", "replace")
        elif given is not None:
            raise BadForm(f"the part {name[:60]!r} is a file; only {self._file!r} may be one")
        self._named = (name, self.filename if given is not None else None)

    def _data(self, data: bytes, start: int, end: int) -> None:
        name, filename = self._named
        if filename is not None:
            self.size += end - start
            self._taken.append(data[start:end])
            return
        self._held += end - start
        if self._held > LONGEST_FIELD:
            raise BadForm(f"its fields have more than {LONGEST_FIELD} bytes")
        self.fields[name] = self.fields.get(name, b"") + data[start:end]

    def _end(self) -> None:
        self._ended = True
