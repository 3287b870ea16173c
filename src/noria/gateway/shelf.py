"""Bounded memory for answers: S3-FIFO by bytes, with times to live.

S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): what is new goes into a small
queue of a tenth of the memory; what is asked for again there moves to the main queue, where it gets another round
each time it was asked for; a ghost remembers the keys of what left the small queue unasked, so that their return
counts as a second time. Most prompts come once: they leave without having pushed out what is asked for often.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

OVERHEAD = 512
"""Bytes that an entry takes besides its answer: key, queue slots, objects (measured: 375)."""
SMALL_SHARE = 10
"""The small queue has one part in so many."""
MOST_ROUNDS = 3
SWEPT = 256
"""Entries looked at in one sweep: below 0.1 ms."""


class Kept(msgspec.Struct, frozen=True):
    """One answer as the model gave it, before any outward stage has touched it."""

    body: bytes
    """In OpenAI's wire form."""
    stream: bool
    """Whether `body` is a stream's frames rather than a whole answer."""
    stored_ns: int
    """By the shelf's own clock."""
    expires_ns: int
    cost_nanousd: int | None
    """What it cost when it was made; None = unknown."""
    upstream_id: str = ""
    semantic: bool = False
    """Made for another wording of the question."""
    tenant: str = ""
    subject: str = ""
    """Whose question it answered: what is erased, or purged, is found by them."""


class _Entry:
    __slots__ = ("asked", "kept", "size")

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.size = len(kept.body) + OVERHEAD
        self.asked = 0


class Shelf:
    """Answers by key, at most `max_bytes` of them. Expired ones are never given out."""

    def __init__(self, max_bytes: int, now: Callable[[], int]) -> None:
        self.max_bytes = max_bytes
        self.evicted = 0
        """Left for want of room."""
        self.expired = 0
        self._now = now
        self._small: dict[bytes, _Entry] = {}
        self._main: dict[bytes, _Entry] = {}
        self._ghost: dict[bytes, None] = {}
        self._small_bytes = 0
        self._main_bytes = 0

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    @property
    def held(self) -> int:
        """Bytes held now, overhead included."""
        return self._small_bytes + self._main_bytes

    def get(self, key: bytes) -> Kept | None:
        """The answer under `key`, or None where there is none (any more)."""
        entry = self._small.get(key) or self._main.get(key)
        if entry is None:
            return None
        if entry.kept.expires_ns <= self._now():
            self.drop(key)
            self.expired += 1
            return None
        entry.asked = min(entry.asked + 1, MOST_ROUNDS)
        return entry.kept

    def put(self, key: bytes, kept: Kept) -> bool:
        """Keep an answer; whether there is room for one of its size at all. Replaces what was there."""
        entry = _Entry(kept)
        if entry.size > self.max_bytes:
            return False
        self.drop(key)
        if key in self._ghost:
            del self._ghost[key]
            self._main[key] = entry
            self._main_bytes += entry.size
        else:
            self._small[key] = entry
            self._small_bytes += entry.size
        self.shrink()
        return True

    def drop(self, key: bytes) -> None:
        """Forget one answer."""
        entry = self._small.pop(key, None)
        if entry is not None:
            self._small_bytes -= entry.size
            return
        entry = self._main.pop(key, None)
        if entry is not None:
            self._main_bytes -= entry.size

    def clear(self) -> None:
        """Forget all answers."""
        self._small.clear()
        self._main.clear()
        self._small_bytes = self._main_bytes = 0

    def keys(self) -> list[bytes]:
        """Of what is held now."""
        return [*self._small, *self._main]

    def peek(self, key: bytes) -> Kept | None:
        """The answer under `key`, expired or not, without counting as asked for."""
        entry = self._small.get(key) or self._main.get(key)
        return entry.kept if entry else None

    def shrink(self) -> None:
        """Let go of answers until the rest fits."""
        while self.held > self.max_bytes:
            if self._small_bytes * SMALL_SHARE > self.max_bytes or not self._main:
                self._leave_small()
            else:
                self._leave_main()

    def sweep(self) -> None:
        """Let go of what has expired among the oldest: a prompt that nobody repeats must not outstay its time."""
        now = self._now()
        for queue in (self._small, self._main):
            oldest = [key for key, _ in zip(queue, range(SWEPT), strict=False) if queue[key].kept.expires_ns <= now]
            for key in oldest:
                self.drop(key)
            self.expired += len(oldest)

    def _leave_small(self) -> None:
        key = next(iter(self._small))
        entry = self._small.pop(key)
        self._small_bytes -= entry.size
        if entry.asked > 0:  # the paper says > 1 where a miss counts as an access; here asking begins after it
            entry.asked = 0
            self._main[key] = entry
            self._main_bytes += entry.size
            return
        self.evicted += 1
        self._ghost[key] = None
        while len(self._ghost) > len(self._main) + 1024:
            del self._ghost[next(iter(self._ghost))]

    def _leave_main(self) -> None:
        key = next(iter(self._main))
        entry = self._main.pop(key)
        if entry.asked > 0:
            entry.asked -= 1
            self._main[key] = entry
            return
        self._main_bytes -= entry.size
        self.evicted += 1
