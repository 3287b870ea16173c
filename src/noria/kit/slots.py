"""What a process has under way, readable after its death: a memory-mapped file of slots, one a thing.

`put` copies a payload into a free slot, `clear` empties it; neither makes a system call. What was put and not cleared when
the process died is still there (kill -9 loses nothing of a shared mapping; a power cut may). The process holds an `flock` on
its file, which the kernel drops with it: a file that nobody holds is of a dead process, whatever its process id has become.

    header: magic 8 bytes | slot bytes u32         slot: length u32 | payload
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = b"NSLOTS1\n"
SUFFIX = ".slots"
_HEADER = 4096
_LENGTH = struct.Struct("<I")


class Slots:
    """The writer's side. `name` and `epoch` (ns) name the process; raises `OSError` where the disk refuses."""

    def __init__(self, folder: Path, name: str, epoch: int, *, slot_bytes: int = 2048, slots: int = 256) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = folder / f"{name}.{epoch}{SUFFIX}"
        self._size = slot_bytes
        fresh = self.path.with_suffix(".new")
        self._fd = os.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.posix_fallocate(self._fd, 0, _HEADER + slots * slot_bytes)
        self._map = mmap.mmap(self._fd, 0)
        self._map[:12] = MAGIC + _LENGTH.pack(slot_bytes)
        fresh.rename(self.path)  # whoever looks sees it locked, or not at all
        self._free = list(range(slots - 1, -1, -1))
        self._count = slots

    @property
    def longest(self) -> int:
        """Bytes that a payload may have."""
        return self._size - _LENGTH.size

    def put(self, payload: bytes) -> int:
        """The slot that keeps `payload` from now on. Raises `ValueError` where it is too long, `OSError` where the disk is full."""
        if len(payload) > self.longest:
            raise ValueError(f"{len(payload)} bytes do not fit into a slot of {self.longest}")
        if not self._free:
            self._grow()
        slot = self._free.pop()
        at = _HEADER + slot * self._size
        body = at + _LENGTH.size
        self._map[body : body + len(payload)] = payload
        self._map[at:body] = _LENGTH.pack(len(payload))  # last: a slot counts once it is whole
        return slot

    def clear(self, slot: int) -> None:
        """The thing in `slot` has ended."""
        at = _HEADER + slot * self._size
        self._map[at : at + _LENGTH.size] = b"\0\0\0\0"
        self._free.append(slot)

    def __len__(self) -> int:
        return self._count - len(self._free)

    def close(self, *, keep: bool = False) -> None:
        """Let go of the file; it is removed where nothing is under way, unless it is to be kept."""
        if self._fd < 0:
            return
        if not keep and not len(self):
            self.path.unlink(missing_ok=True)
        self._map.close()
        os.close(self._fd)
        self._fd = -1

    def _grow(self) -> None:
        more = self._count * 2
        os.posix_fallocate(self._fd, 0, _HEADER + more * self._size)  # never a hole: writing into one kills on a full disk
        self._map.resize(_HEADER + more * self._size)
        self._free.extend(range(more - 1, self._count - 1, -1))
        self._count = more


class Left(NamedTuple):
    """A process's file as another sees it."""

    path: Path
    name: str
    epoch: int
    alive: bool

    @property
    def holder(self) -> str:
        """Name and epoch in one word."""
        return f"{self.name}.{self.epoch}"


def every(folder: Path) -> list[Left]:
    """The files in `folder`, those of dead processes among them."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        name, _, epoch = path.name.removesuffix(SUFFIX).rpartition(".")
        if name and epoch.isdigit():
            found.append(Left(path, name, int(epoch), _held(path)))
    return found


def payloads(path: Path) -> Iterator[bytes]:
    """What lies in the slots of a dead process's file; a file that was never finished has nothing."""
    data = path.read_bytes()
    if data[:8] != MAGIC:
        return
    (size,) = _LENGTH.unpack_from(data, 8)
    for at in range(_HEADER, len(data) - size + 1, size):
        (length,) = _LENGTH.unpack_from(data, at)
        if 0 < length <= size - _LENGTH.size:
            yield data[at + _LENGTH.size : at + _LENGTH.size + length]


def _held(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
