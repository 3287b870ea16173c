"""What stands in a GGUF file, read without any library: its metadata, its tensors, and whether it is whole.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little-endian).
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from pathlib import Path
from typing import Any

import msgspec

from noria.contracts.error import NoriaError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 24: (1, 1), 25: (1, 2), 26: (1, 4),
    27: (1, 8), 28: (1, 8), 30: (1, 2),
}  # fmt: skip
"""ggml type → (values of a block, bytes of a block); the types of other quantisations are not measured."""
F32, F16, Q8_0, BF16 = 0, 1, 8, 30
ALIGNMENT = 32
"""Bytes between tensors where `general.alignment` says nothing."""


class Tensor(msgspec.Struct, frozen=True):
    """One tensor. `shape` is in ggml's order: the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    """Bytes from the beginning of the file."""

    @property
    def bytes(self) -> int | None:
        """Its size; None for a type that is not measured here."""
        block = _BLOCKS.get(self.type)
        count = 1
        for length in self.shape:
            count *= length
        return None if block is None else count // block[0] * block[1]


class GgufFile(msgspec.Struct, frozen=True):
    """The head of a file."""

    path: str
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def data(self, name: str) -> bytes:
        """The bytes of a tensor. Raises `KeyError`, and `NoriaError` where they are not all there."""
        tensor = self.tensors[name]
        with Path(self.path).open("rb") as file:
            file.seek(tensor.start)
            data = file.read(tensor.bytes or 0)
        if len(data) != tensor.bytes:
            raise _cut(Path(self.path), f"the tensor {name} ends before its time")
        return data


def read(path: Path) -> GgufFile:
    """The head of a file, after making sure that every tensor lies inside of it.

    Raises `NoriaError`: `gguf_unreadable`, `gguf_truncated` (the file ends too early).
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(path, data, len(data))
    except (OSError, ValueError) as e:
        raise NoriaError(f"{path} cannot be read: {e}.", code="gguf_unreadable") from e
    except struct.error as e:
        raise _cut(path, "its head ends in the middle") from e


def _read(path: Path, data: mmap.mmap, size: int) -> GgufFile:
    if data[:4] != b"GGUF":
        raise NoriaError(f"{path} is not a GGUF file (it begins with {data[:4]!r}).", code="gguf_unreadable")
    version, tensors, pairs = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise NoriaError(f"{path} is GGUF version {version}; 2 and 3 are understood.", code="gguf_unreadable")
    cursor = _Cursor(data, 24)
    metadata = {}
    for _ in range(pairs):
        name = cursor.text()
        metadata[name] = cursor.value(cursor.number("<I"))
    found = [_tensor_head(cursor) for _ in range(tensors)]
    alignment = int(metadata.get("general.alignment", ALIGNMENT))
    base = -(-cursor.at // alignment) * alignment
    placed = {name: Tensor(name, shape, kind, base + offset) for name, shape, kind, offset in found}
    for tensor in placed.values():
        end = tensor.start + (tensor.bytes or 1)
        if end > size:
            raise _cut(path, f"the tensor {tensor.name} should end at byte {end}, the file at {size}")
    return GgufFile(str(path), metadata, placed)


def _tensor_head(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text()
    shape = tuple(cursor.number("<Q") for _ in range(cursor.number("<I")))
    return name, shape, cursor.number("<I"), cursor.number("<Q")


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self._data = data
        self.at = at

    def number(self, form: str) -> int:
        """One scalar."""
        (value,) = struct.unpack_from(form, self._data, self.at)
        self.at += struct.calcsize(form)
        return value  # type: ignore[no-any-return]  # struct tells no types

    def text(self) -> str:
        """One string."""
        length = self.number("<Q")
        end = self.at + length
        if end > len(self._data):
            raise struct.error("a string ends outside of the file")
        value = self._data[self.at : end].decode("utf-8", "surrogateescape")
        self.at = end
        return value

    def value(self, kind: int) -> Any:
        """One value of a kind; arrays of scalars as tuples."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_form(kind))
        inner, count = self.number("<I"), self.number("<Q")
        if inner in (_STRING, _ARRAY):
            return tuple(self.value(inner) for _ in range(count))
        form = _form(inner)
        values = struct.unpack_from(f"<{count}{form[1]}", self._data, self.at)
        self.at += count * struct.calcsize(form)
        return values


def _form(kind: int) -> str:
    if kind not in _SCALARS:
        raise struct.error(f"the value type {kind} does not exist")
    return _SCALARS[kind]


def _cut(path: Path, why: str) -> NoriaError:
    return NoriaError(f"{path} is truncated: {why}.", code="gguf_truncated", hint="Copy or export it again; do not serve it.")


def tokenizer_digest(metadata: dict[str, Any]) -> str:
    """SHA-256 over what turns text into tokens: the vocabulary in its order, the merges, the pre-tokenizer."""
    whole = hashlib.sha256()
    for key in ("model", "pre", "tokens", "merges"):
        value = metadata.get(f"tokenizer.ggml.{key}", "")
        for part in (value,) if isinstance(value, str) else value:
            whole.update(str(part).encode("utf-8", "surrogateescape") + b"\0")
        whole.update(b"\1")
    return whole.hexdigest()


def template_digest(metadata: dict[str, Any]) -> str:
    """SHA-256 of the chat template; of nothing where there is none."""
    return hashlib.sha256(str(metadata.get("tokenizer.chat_template", "")).encode()).hexdigest()
