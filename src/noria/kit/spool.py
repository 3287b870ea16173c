"""An append-only log of records in segment files: what a process has said survives its death (DESIGN §3a.7).

A spool is a folder `<folder>/<name>/` of segments `<number>.spool`; numbers rise, a new writer always begins a new
segment. A record is, little-endian:

    length u32 | CRC32C u32 | format u8 | epoch u64 | seq u64 | payload

`length` and the checksum cover everything after the checksum, so that a reader can step over a format it does not
know. `epoch` is the writer's start (ns), `seq` counts from 1 within it.

`append` returns once the record is in the page cache: kill -9 loses nothing; `fdatasync` in groups bounds what a
power cut loses. A writer holds an `flock` on its live segment, which the kernel drops with the process: a segment
that has a newer one beside it and no lock is dead, and only there is a torn or damaged record stepped over.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from noria.contracts.error import StoreError
from noria.contracts.trace import SpoolPosition

FORMAT = 1
SUFFIX = ".spool"
POISON = "poison"
"""A folder beside the spools for single records that could not be consumed; it is no spool."""
RECORD_LIMIT = 256 * 1024 * 1024
"""No record is longer; a length above it is damage."""

_FRAME = struct.Struct("<II")
_HEAD = struct.Struct("<BQQ")
_MARK = struct.Struct("<BQ")
_OVERHEAD = _FRAME.size + _HEAD.size
_CHUNK = 1024 * 1024
_PIECES = 512
"""Pieces that one `writev` takes (Linux allows 1,024)."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")


class SpoolCounts(NamedTuple):
    """What a writer has done since its start. `pending` records wait in memory for the disk to take them."""

    appended: int
    dropped: int
    pending: int
    pending_bytes: int
    flushes: int
    errors: int


class SpoolWriter:
    """Appends to one spool. One writer a process and name; `append` and `sync` may be called from any thread.

    Args:
        folder: where the spools of this machine lie.
        name: the spool: node and worker slot, `[A-Za-z0-9._-]+`.
        segment_bytes: a segment that has reached this size is followed by a new one.
        backlog_bytes: how much may wait in memory while the disk refuses; more is dropped and counted.
        flush_s: the longest time that a record stays unsynced.
        retry_s: the pause before a refused write is tried again.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        segment_bytes: int = 64 * 1024 * 1024,
        backlog_bytes: int = 32 * 1024 * 1024,
        flush_s: float = 0.05,
        retry_s: float = 0.5,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.name = name
        self.epoch = now_ns()
        self._place = _place(folder, name)
        self._segment_bytes = segment_bytes
        self._backlog_bytes = backlog_bytes
        self._flush_s = flush_s
        self._retry_s = retry_s
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._fd = -1
        self._offset = 0
        self._rolled = False
        self._seq = self._dropped = self._pending_bytes = self._flushes = self._errors = 0
        self._error = ""
        self._backlog: deque[tuple[bytes, bytes]] = deque()
        self._retired: list[int] = []
        self._waiting: list[Future[None]] = []
        self._dirty = threading.Event()
        self._hurry = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def append(self, payload: bytes) -> int:
        """Append one record; its sequence number. It is in the page cache on return, or counted as pending or dropped.

        Never raises for the disk's sake: the answer that this record tells of must still leave.
        """
        return self.extend((payload,))

    def extend(self, payloads: Sequence[bytes]) -> int:
        """Append several records with one system call; the sequence number of the last. Each is as safe as by `append`."""
        with self._lock:
            records: list[bytes] = []
            size = 0
            for payload in payloads:
                self._seq += 1
                head = _HEAD.pack(FORMAT, self.epoch, self._seq)
                length = _HEAD.size + len(payload)
                head = _FRAME.pack(length & 0xFFFFFFFF, google_crc32c.extend(google_crc32c.value(head), payload)) + head
                if length > RECORD_LIMIT or self._closed:
                    self._dropped += 1
                else:
                    records += (head, payload)
                    size += len(head) + len(payload)
            if records and (self._backlog or not self._write(records, size)):
                for i in range(0, len(records), 2):
                    self._keep(records[i], records[i + 1])
        if not self._dirty.is_set():
            self._wake()
        return self._seq

    def sync(self) -> Future[None]:
        """A future that is done once everything appended before this call is on the disk itself.

        Wait with `.result()`, or `await asyncio.wrap_future(...)`. Fails with `StoreError` where the disk refused.
        """
        done: Future[None] = Future()
        with self._lock:
            if self._closed:
                done.set_exception(StoreError(f"The spool {self.name} is closed."))
                return done
            self._waiting.append(done)
        self._hurry.set()
        self._wake()
        return done

    @property
    def alarm(self) -> str | None:
        """What is wrong with the disk, in a sentence; None when all is well."""
        if not self._error:
            return None
        return (
            f"The spool {self._place} cannot be written ({self._error}): {len(self._backlog)} records wait in memory, "
            f"{self._dropped} were dropped. Free some space; writing goes on by itself."
        )

    @property
    def counts(self) -> SpoolCounts:
        """The counters, for /metrics."""
        return SpoolCounts(self._seq, self._dropped, len(self._backlog), self._pending_bytes, self._flushes, self._errors)

    def close(self) -> None:
        """Write what waits, sync, and let go of the segment. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._hurry.set()
        self._dirty.set()
        if self._thread is not None:
            self._thread.join()
        self._flush()
        with self._lock:
            self._dropped += len(self._backlog)
            self._backlog.clear()
            self._retire()
        self._flush()

    def _write(self, records: Sequence[bytes], size: int) -> bool:
        """Whether the whole records (`size` bytes) went to the page cache; otherwise nothing of them is left behind."""
        try:
            if self._fd < 0 or self._offset >= self._segment_bytes:
                self._roll()
            if len(records) > _PIECES:
                _write_all(self._fd, memoryview(b"".join(records)))
            elif (done := os.writev(self._fd, records)) != size:
                _write_all(self._fd, memoryview(b"".join(records))[done:])
        except OSError as e:
            self._refused(e)
            self._undo()
            return False
        self._offset += size
        return True

    def _roll(self) -> None:
        """Begin a new segment, numbered above every other; the old one is synced and closed by the flush thread."""
        self._place.mkdir(parents=True, exist_ok=True)
        number = max([self._now_ns(), *(n + 1 for n in _segments(self._place))])
        fd = os.open(_file(self._place, number), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self._retire()
        self._fd, self._offset, self._rolled = fd, 0, True

    def _retire(self) -> None:
        """Leave the segment: readers may pass it from now on, the flush thread syncs and closes it."""
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self._retired.append(self._fd)
            self._fd = -1

    def _undo(self) -> None:
        """Cut off a half-written record; where even that fails, leave the segment: its torn tail is seen as such."""
        if self._fd < 0:
            return
        try:
            os.ftruncate(self._fd, self._offset)
        except OSError:
            self._retire()

    def _refused(self, error: OSError) -> None:
        self._errors += 1
        self._error = error.strerror or str(error)

    def _keep(self, head: bytes, payload: bytes) -> None:
        size = len(head) + len(payload)
        if self._pending_bytes + size > self._backlog_bytes:
            self._dropped += 1
            return
        self._backlog.append((head, payload))
        self._pending_bytes += size

    def _drain(self) -> None:
        """Write what waits, at most a chunk a time: `append` waits for this lock."""
        budget = _CHUNK
        while self._backlog and budget > 0:
            head, payload = self._backlog[0]
            if not self._write((head, payload), len(head) + len(payload)):
                return
            self._error = ""
            self._backlog.popleft()
            budget -= len(head) + len(payload)
            self._pending_bytes -= len(head) + len(payload)

    def _wake(self) -> None:
        self._dirty.set()
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._flush_forever, name=f"spool-{self.name}", daemon=True)
                self._thread.start()

    def _flush_forever(self) -> None:
        while not self._closed:
            self._dirty.wait()
            self._hurry.wait(self._retry_s if self._error else self._flush_s)
            self._dirty.clear()
            self._hurry.clear()
            self._flush()
            if self._backlog:
                self._dirty.set()

    def _flush(self) -> None:
        """One group: what waits is written, what is written is synced, who waits is told."""
        with self._lock:
            self._drain()
            retired, self._retired = self._retired, []
            waiting, self._waiting = self._waiting, []
            rolled, self._rolled = self._rolled, False
            refused = (self._error or "earlier records wait") if self._backlog else ""
            live = [self._fd] if self._fd >= 0 else []
        try:
            for fd in retired + live:
                os.fdatasync(fd)
            if rolled:
                _sync_folder(self._place)
            self._flushes += 1
        except OSError as e:
            self._refused(e)
            refused = self._error
        for fd in retired:
            os.close(fd)
        if not refused:
            self._error = ""
        for done in waiting:
            if refused:
                done.set_exception(StoreError(f"The spool {self.name} could not be synced: {refused}."))
            else:
                done.set_result(None)


class SpoolRecord(NamedTuple):
    """One record as it was appended."""

    epoch: int
    seq: int
    payload: bytes


class SpoolReader:
    """Reads the spools below a folder, from any process, while they are written.

    `damaged` counts places where a torn or corrupt record was stepped over, `unknown` records of a format of the
    future: both count a place again when it is read again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged = 0
        self.unknown = 0

    def spools(self) -> list[str]:
        """Names of the spools that are there, sorted."""
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if p.is_dir() and _NAME.match(p.name) and p.name != POISON)

    def read(
        self, position: SpoolPosition, *, max_records: int = 1000, max_bytes: int = 8 * 1024 * 1024
    ) -> tuple[list[SpoolRecord], SpoolPosition]:
        """The next whole records after `position`, in order, and the position after them.

        Takes `max_records` at most and stops after the record that passes `max_bytes`. Stops before what is not
        complete yet. `SpoolPosition(name, 0, 0)` is the beginning.
        """
        place = _place(self.folder, position.spool)
        segments = _segments(place)
        records: list[SpoolRecord] = []
        number, offset = position.segment, position.offset
        room = [max_records, max_bytes]
        for segment in (n for n in segments if n >= position.segment):
            if segment != number:
                number, offset = segment, 0
            # Looked at before reading: what is appended after this look is then not mistaken for "nothing more".
            dead = segment != segments[-1] and not _locked(_file(place, segment))
            offset, ended = self._read_segment(_file(place, segment), offset, dead, (records, room))
            if not (dead and ended):
                break
        return records, SpoolPosition(position.spool, number, offset)

    def behind(self, position: SpoolPosition) -> int:
        """Bytes that lie after `position`."""
        place = _place(self.folder, position.spool)
        later = [n for n in _segments(place) if n >= position.segment]
        total = sum(_file(place, n).stat().st_size for n in later)
        return total - position.offset if position.segment in later else total

    def tail(self, spool: str) -> SpoolPosition:
        """Where a spool ends now: whoever has read as far has read everything that was in it at the call."""
        place = _place(self.folder, spool)
        segments = _segments(place)
        return (
            SpoolPosition(spool, segments[-1], _file(place, segments[-1]).stat().st_size)
            if segments
            else SpoolPosition(spool, 0, 0)
        )

    def trim(self, position: SpoolPosition) -> int:
        """Delete the segments wholly before `position`; how many. The newest and the locked ones stay."""
        place = _place(self.folder, position.spool)
        old = [n for n in _segments(place)[:-1] if n < position.segment and not _locked(_file(place, n))]
        for number in old:
            _file(place, number).unlink(missing_ok=True)
        return len(old)

    def _read_segment(self, path: Path, offset: int, dead: bool, into: tuple[list[SpoolRecord], list[int]]) -> tuple[int, bool]:
        """The new offset, and whether the segment's end was reached."""
        records, room = into
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            while offset < size:
                if room[0] <= 0 or room[1] <= 0:
                    return offset, False
                window = os.pread(file.fileno(), _window(file.fileno(), offset, size, room[1]), offset)
                step = self._parse(window, records, room)
                offset += step
                if step == 0:
                    if not dead:
                        return offset, False
                    self.damaged += 1
                    offset = _resync(file.fileno(), offset, size)
        return offset, True

    def _parse(self, window: bytes, records: list[SpoolRecord], room: list[int]) -> int:
        """Take the whole records at the beginning of `window`; how many bytes they had, 0 where the first is not whole."""
        at = 0
        while room[0] > 0 and room[1] > 0 and (end := _end(window, at)) is not None:
            head, payload = window[at + _FRAME.size : at + _OVERHEAD], window[at + _OVERHEAD : end]
            if head[0] == FORMAT and end - at >= _OVERHEAD:
                _, epoch, seq = _HEAD.unpack(head)
                records.append(SpoolRecord(epoch, seq, payload))
                room[0] -= 1
                room[1] -= len(payload)
            else:
                self.unknown += 1
            at = end
        return at


def _end(window: bytes, at: int) -> int | None:
    """Where the record at `at` ends; None where it is not whole, or its checksum is wrong."""
    if at + _FRAME.size > len(window):
        return None
    length, checksum = _FRAME.unpack_from(window, at)
    end: int = at + _FRAME.size + length
    if length == 0 or end > len(window) or google_crc32c.value(window[at + _FRAME.size : end]) != checksum:
        return None
    return end


def _window(fd: int, offset: int, size: int, room: int) -> int:
    """How much to read at once: a chunk, or what may still be taken, or the next record where that is longer."""
    head = os.pread(fd, _FRAME.size, offset)
    length = _FRAME.unpack(head)[0] if len(head) == _FRAME.size else 0
    return int(min(size - offset, max(min(_CHUNK, room), length + _FRAME.size if length <= RECORD_LIMIT else 0)))


def _resync(fd: int, offset: int, size: int) -> int:
    """The next whole record of a dead segment after damage at `offset`, or its end.

    A segment has one writer, so each of its records carries the same format and epoch bytes: they are looked for.
    """
    first = os.pread(fd, _OVERHEAD, 0)
    data = os.pread(fd, size - offset, offset)
    for mark in {first[_FRAME.size : _FRAME.size + _MARK.size], data[_FRAME.size : _FRAME.size + _MARK.size]}:
        found = data.find(mark, _FRAME.size + 1) if len(mark) == _MARK.size else -1
        while found >= 0:
            if _end(data, found - _FRAME.size) is not None:
                return offset + found - _FRAME.size
            found = data.find(mark, found + 1)
    return size


def _place(folder: Path, name: str) -> Path:
    if not _NAME.match(name) or name == POISON:
        raise ValueError(f"{name!r} cannot name a spool: use letters, digits, '.', '_' and '-', but not {POISON!r}")
    return folder / name


def _file(place: Path, number: int) -> Path:
    return place / f"{number:020d}{SUFFIX}"


def _segments(place: Path) -> list[int]:
    """Segment numbers, rising."""
    try:
        names = [p.name for p in place.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(n.removesuffix(SUFFIX)) for n in names if n.endswith(SUFFIX) and n.removesuffix(SUFFIX).isdigit())


def _locked(path: Path) -> bool:
    """Whether a living writer holds this segment."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _write_all(fd: int, rest: memoryview) -> None:
    while rest:
        rest = rest[os.write(fd, rest) :]


def _sync_folder(place: Path) -> None:
    """Make the names of new segments durable."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
