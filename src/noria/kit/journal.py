"""Append-only files of JSON lines that survive kill -9: one write a record, a torn end is passed over.

Nothing is fsynced: a record is safe from the death of its process at once, from that of the machine when the kernel
has written it (some seconds). Several processes may append to one folder, each to a file of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")
_OPEN = 32
"""Files that one `Journal` holds open."""


class Journal:
    """Writes records into `<folder>/<topic>/<writer>.jsonl`."""

    def __init__(self, folder: Path, writer: str) -> None:
        self._folder = folder
        self._writer = writer
        self._files: dict[str, int] = {}

    def append(self, topic: str, record: object) -> None:
        """Write a record; it is in the page cache when this returns. Raises `OSError`.

        A newline on both ends keeps it apart from what a killed predecessor left unfinished.
        """
        fd = self._files.get(topic)
        if fd is None:
            fd = self._open(topic)
        data = b"\n" + msgspec.json.encode(record) + b"\n"
        if os.write(fd, data) != len(data):
            raise OSError(f"the journal of {topic} took a part of a record only: the disk is full")

    def close(self) -> None:
        """Let go of the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _open(self, topic: str) -> int:
        if len(self._files) >= _OPEN:
            os.close(self._files.pop(next(iter(self._files))))
        folder = self._folder / topic
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{self._writer}.jsonl"
        fd = self._files[topic] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return fd


def read(folder: Path, topic: str, type: type[T]) -> Iterator[T]:
    """Every whole record of a topic, by whoever wrote it; what is torn or no `type` is passed over."""
    decoder = msgspec.json.Decoder(type)
    for path in sorted((folder / topic).glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                if line:
                    yield decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue


def forget(folder: Path, topic: str) -> None:
    """Remove a topic's files. A writer that still holds one writes into nowhere."""
    shutil.rmtree(folder / topic, ignore_errors=True)
