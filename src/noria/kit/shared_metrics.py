"""Counters that several processes share: one memory-mapped file of 64-bit integers each, read by all.

Counting is an addition in a mapped page: no lock, no system call, nothing lost by kill -9. Every file gets its blocks
first, because the first write to a page that a full disk cannot hold would kill the process (SIGBUS). Files are named
after slots rather than process ids, so that a replacement goes on counting where its predecessor stopped; gauges count
only while their writer lives, so that no alarm outlives the process that raised it.

A file is, little-endian: magic (8 bytes, a digest of the families), pid u64, bytes of names u64, slots in use u64; then
`SLOTS` × i64; then the names, one line a series: family, labels and first slot, separated by U+001F.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from noria.kit.atomic import alive
from noria.kit.ids import digest

SLOTS = 32_768
NAMES = 1 << 19
SERIES = 500
"""Label sets of one family in one process; what comes later is counted under the label `other`."""
OTHER = "other"
_HEAD = 32
_SEPARATOR = "\x1f"
SUFFIX = ".counts"


class Family(msgspec.Struct, frozen=True):
    """One metric. Values are integers; `per` of them make the exposed unit (1e9 ns a second)."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, in the exposed unit, rising."""
    per: int = 1
    merge: Literal["sum", "min", "max"] = "sum"
    """How a gauge's values of several processes become one."""

    @property
    def width(self) -> int:
        """Slots of a series: buckets, overflow and sum of a histogram, else one."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


class Counts:
    """One process's numbers. `values[slot]` may be added to directly; `slot` finds or makes a series.

    Without a file (`path` None, or a disk without room) they are this process's own; `shared` tells.
    """

    def __init__(self, families: Sequence[Family], path: Path | None = None) -> None:
        self.families = {f.name: f for f in families}
        self._raw = {f.name: tuple(round(b * f.per) for b in f.bounds) for f in families}
        self._magic = magic(families)
        self._slots: dict[tuple[str, ...], int] = {}
        self._made: dict[str, int] = {}
        self.path = path
        self._map, self.shared = _map(path)
        view = memoryview(self._map)
        self._head = view[8:_HEAD].cast("Q")
        self.values = view[_HEAD : _HEAD + 8 * SLOTS].cast("q")
        if bytes(view[:8]) == self._magic:
            for key, slot in _series(view):
                self._slots[key] = slot
                self._made[key[0]] = self._made.get(key[0], 0) + 1
        else:
            view[:_HEAD] = self._magic + bytes(_HEAD - 8)
            view[_HEAD : _HEAD + 8 * SLOTS] = bytes(8 * SLOTS)
        self.view = view
        """The whole of it, as a reader maps it."""
        self._head[0] = os.getpid()
        for family in families:
            if family.kind == "gauge":
                for key, slot in self._slots.items():
                    if key[0] == family.name:
                        self.values[slot] = 0

    def slot(self, family: str, *labels: str) -> int:
        """The first slot of a series. Beyond the room for series, that of the label `other`."""
        key = (family, *labels)
        found = self._slots.get(key)
        return found if found is not None else self._make(key)

    def add(self, family: str, n: int, *labels: str) -> None:
        """Add to a counter."""
        self.values[self.slot(family, *labels)] += n

    def set(self, family: str, n: int, *labels: str) -> None:
        """Set a gauge."""
        self.values[self.slot(family, *labels)] = n

    def observe(self, family: str, value: int, *labels: str) -> None:
        """Add one value, in raw units, to a histogram."""
        put(self.values, self.slot(family, *labels), self._raw[family], value)

    def bounds(self, family: str) -> tuple[int, ...]:
        """A histogram's bounds in raw units, for `put`."""
        return self._raw[family]

    def _make(self, key: tuple[str, ...]) -> int:
        family = self.families[key[0]]
        clean = (key[0], *(_clean(label) for label in key[1:]))
        if clean != key and clean in self._slots:
            return self._slots[clean]
        other = (key[0], *([OTHER] * len(family.labels)))
        if clean != other and self._made.get(key[0], 0) >= SERIES:
            return self.slot(*other)
        used, named = self._head[2], self._head[1]
        line = f"{_SEPARATOR.join(clean)}{_SEPARATOR}{used}\n".encode()
        if used + family.width > SLOTS or named + len(line) > NAMES:
            return self.slot(*other) if clean != other else 0
        at = _HEAD + 8 * SLOTS + named
        self.view[at : at + len(line)] = line
        self._head[2] = used + family.width
        self._head[1] = named + len(line)  # last: a reader takes whole lines only
        self._slots[clean] = used
        self._made[key[0]] = self._made.get(key[0], 0) + 1
        return used


def put(values: memoryview, slot: int, bounds: tuple[int, ...], value: int) -> None:
    """Add one value to the histogram that begins at `slot`: its bucket, and the sum behind the buckets."""
    values[slot + bisect_left(bounds, value)] += 1
    values[slot + len(bounds) + 1] += value


Totals = dict[tuple[str, ...], list[int]]
"""(family, labels…) → its slots, over all processes."""


def totals(folder: Path, own: Counts) -> Totals:
    """The numbers of every process whose file lies in `folder` and has the same families; `own` ones are read as they are."""
    merged: Totals = {}
    _merge(merged, own.families, _read(own.view), living=True)
    if own.shared:
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            with contextlib.suppress(OSError):
                data = memoryview(path.read_bytes())
                pid = int.from_bytes(data[8:16], "little")
                if data[:8] == own.view[:8] and path != own.path and len(data) >= _HEAD + 8 * SLOTS + NAMES:
                    _merge(merged, own.families, _read(data), living=alive(pid))
    return merged


def read_folder(folder: Path, families: Sequence[Family]) -> Totals:
    """`totals` for a process that counts nothing itself."""
    own = Counts(families)
    own.shared = True
    return totals(folder, own)


def exposition(families: Iterable[Family], numbers: Totals) -> bytes:
    """Prometheus text, format 0.0.4."""
    lines: list[str] = []
    by_family: dict[str, list[tuple[tuple[str, ...], list[int]]]] = {}
    for key, values in sorted(numbers.items()):
        by_family.setdefault(key[0], []).append((key[1:], values))
    for family in families:
        name = family.name + ("_total" if family.kind == "counter" else "")
        lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
        for labels, values in by_family.get(family.name, ()):
            named = dict(zip(family.labels, labels, strict=False))
            if family.kind == "histogram":
                lines += _histogram(family, name, named, values)
            else:
                lines.append(f"{name}{_labels(named)} {_number(values[0], family.per)}")
    return ("\n".join(lines) + "\n").encode()


def magic(families: Sequence[Family]) -> bytes:
    """What a file of these families begins with: another version's layout is not mistaken for this one's."""
    return digest(msgspec.json.encode(list(families))).encode()[-8:]


def _map(path: Path | None) -> tuple[mmap.mmap, bool]:
    size = _HEAD + 8 * SLOTS + NAMES
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
                return mmap.mmap(descriptor, size), True
            except OSError:
                path.unlink()
                raise
            finally:
                os.close(descriptor)
    return mmap.mmap(-1, size), False


def _series(view: memoryview) -> list[tuple[tuple[str, ...], int]]:
    named = int.from_bytes(view[16:24], "little")
    at = _HEAD + 8 * SLOTS
    found = []
    for line in bytes(view[at : at + min(named, NAMES)]).decode("utf-8", "replace").split("\n"):
        *key, slot = line.split(_SEPARATOR)
        if key and slot.isdigit() and int(slot) < SLOTS:
            found.append((tuple(key), int(slot)))
    return found


def _read(view: memoryview) -> list[tuple[tuple[str, ...], int, memoryview]]:
    values = view[_HEAD : _HEAD + 8 * SLOTS].cast("q")
    return [(key, slot, values) for key, slot in _series(view)]


def _merge(
    into: Totals, families: Mapping[str, Family], series: list[tuple[tuple[str, ...], int, memoryview]], *, living: bool
) -> None:
    for key, slot, values in series:
        family = families.get(key[0])
        if family is None or (family.kind == "gauge" and not living):
            continue
        new = values[slot : slot + family.width].tolist()
        old = into.get(key)
        if old is None:
            into[key] = new
        elif family.kind == "gauge" and family.merge != "sum":
            into[key] = [min(old[0], new[0]) if family.merge == "min" else max(old[0], new[0])]
        else:
            into[key] = [a + b for a, b in zip(old, new, strict=True)]


def _histogram(family: Family, name: str, labels: dict[str, str], values: list[int]) -> list[str]:
    lines, count = [], 0
    for bound, n in zip((*family.bounds, float("inf")), values, strict=False):
        count += n
        le = "+Inf" if bound == float("inf") else f"{bound:g}" if bound < 1e6 else str(int(bound))
        lines.append(f"{name}_bucket{_labels({**labels, 'le': le})} {count}")
    lines.append(f"{name}_sum{_labels(labels)} {_number(values[-1], family.per)}")
    lines.append(f"{name}_count{_labels(labels)} {count}")
    return lines


def _labels(labels: Mapping[str, str]) -> str:
    shown = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels.items())
    return f"{{{shown}}}" if shown else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: int, per: int) -> str:
    return f"{value / per:.9g}" if per != 1 else str(value)


def _clean(label: str) -> str:
    """A label as it is kept: one line, at most 100 characters."""
    return label.replace(_SEPARATOR, " ").replace("\n", " ")[:100]
