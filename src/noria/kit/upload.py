"""Bodies of requests that are too large for memory: each goes to a file as it arrives, under bounds.

A worker writes, the keeper reads; what a killed worker left behind is swept by age.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path

from noria.kit.http_request import Refusal

FOLDER = "uploads"
ABANDONED = 900.0
"""Seconds since the last write after which nobody works on an upload any more: pieces come every 30 s, or it is refused."""
_NAME = re.compile(r"[0-9a-f]{32}\.part").fullmatch


class Uploads:
    """The unfinished uploads of one process: `used` bytes now, `most` together."""

    def __init__(self, home: Path, most: int = 2 * 1024**3) -> None:
        self.used = 0
        self.most = most
        self._folder = home / FOLDER

    def begin(self, limit: int, larger: str) -> Upload | Refusal:
        """A place for one body of at most `limit` bytes; `larger` is what a longer one is told."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            return Upload(self, self._folder, limit=limit, larger=larger)
        except OSError as e:
            return _full(e)


class Upload:
    """One body on its way to disk (`kit.http_request.Spill`). `name` is what a reader opens it by (`opened`)."""

    def __init__(self, room: Uploads, folder: Path, *, limit: int, larger: str) -> None:
        self.name = f"{secrets.token_hex(16)}.part"
        self.limit = limit
        self.size = 0
        self._room = room
        self._larger = larger
        self._path = folder / self.name
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def too_large(self) -> Refusal:
        """The answer to a body beyond `limit`."""
        return Refusal(413, "file_too_large", self._larger)

    def write(self, part: bytes) -> Refusal | None:
        """Take the next piece, into the page cache; why not, where there is no place for it."""
        self.size += len(part)
        self._room.used += len(part)
        if self.size > self.limit:
            return self.too_large()
        if self._room.used > self._room.most:
            return Refusal(503, "overloaded", "The server holds too many unfinished uploads. Try again later.")
        try:
            left = memoryview(part)
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as e:
            return _full(e)
        return None

    def close(self) -> None:
        """Remove the file. Idempotent."""
        if self._file < 0:
            return
        self._room.used -= self.size
        os.close(self._file)
        self._file = -1
        self._path.unlink(missing_ok=True)


def path_of(home: Path, name: str) -> Path:
    """Where an upload lies. Raises `ValueError` for what is no upload's name."""
    if _NAME(name) is None:
        raise ValueError("this names no upload")
    return home / FOLDER / name


def sweep(home: Path) -> int:
    """Remove what killed workers have left behind; how many."""
    gone = 0
    oldest = time.time() - ABANDONED
    for path in (home / FOLDER).glob("*.part"):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
                gone += 1
        except FileNotFoundError:  # its worker was quicker
            continue
    return gone


def _full(e: OSError) -> Refusal:
    return Refusal(507, "storage_full", f"The upload cannot be stored: {e.strerror}.")
