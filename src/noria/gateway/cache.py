"""Answers given again: the exact cache, identical requests under way, and, where configured, questions that mean the same.

Looked up after the inward guard and before money is reserved, so the key is of what the model would be sent. What is
kept is what the model said, before any outward stage: guards judge each replay anew, and what was masked for one
caller is restored only from the vault of the one who asks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from msgspec.structs import replace

from noria.contracts.error import RequestError
from noria.contracts.exchange import Exchange, ModelReply, Usage
from noria.contracts.release import Caching, Release
from noria.contracts.trace import CacheUse
from noria.gateway.flight import Flight, Gate, Send, given
from noria.gateway.sameness import Sameness, Wishes, wishes
from noria.gateway.shelf import Kept, Shelf
from noria.gateway.vectors import Index

EVENTS = ("evaluated", "hit", "semantic", "joined", "stored", "bypassed", "evicted", "expired", "embedder_away")

MOST_INDEXES = 3
"""Indexes of one app that are kept besides a new one: those of its releases, and of a configuration that may come back."""


class Noted(Protocol):
    """The part of the account that the cache fills."""

    cache: CacheUse
    headers: list[tuple[str, str]]
    usage: Usage
    error: BaseException | None
    native: bool
    model_ns: int

    def cost(self) -> tuple[int | None, Any]:
        """Nano-dollars, and how they are known."""
        ...


class Likeness(Protocol):
    """Finds a question that means the same (`gateway.semantic`)."""

    async def probe(self, x: Exchange, prefix: bytes, sameness: Sameness) -> Any:
        """What is compared of `x`; None where it is no question that can be, or the embedder is away."""
        ...

    def match(self, probe: Any, get: Callable[[bytes], Kept | None]) -> Kept | None:
        """The answer to the nearest question that may share it, or None."""
        ...

    def add(self, probe: Any, key: bytes) -> None:
        """The answer to this question is under `key`."""
        ...


class Turn:
    """What the cache says to one exchange. This one: ask the model as if there were no cache."""

    asks = True
    """Whether the model is asked, so that money must be reserved."""

    def through(self, send: Send) -> Send:
        """How the answer is fetched, in place of `Router.send`."""
        return send

    def close(self, account: Noted) -> None:
        """The exchange has ended, however it did; its account is complete."""


class Hit(Turn):
    """The answer is here."""

    asks = False

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def through(self, send: Send) -> Send:
        """The kept answer."""
        del send
        return self._give

    async def _give(self, x: Exchange, gate: Gate, account: Any, began: int) -> ModelReply:
        del began
        del account
        return given(self._kept.body, stream=self._kept.stream, to=x, gate=gate, upstream_id=self._kept.upstream_id)


class Joined(Turn):
    """The answer is on its way to somebody else."""

    asks = False

    def __init__(self, recall: Recall, key: bytes, flight: Flight) -> None:
        self._recall = recall
        self._key = key
        self._flight = flight

    def through(self, send: Send) -> Send:
        """The answer of the call under way."""
        del send
        return self._follow

    async def _follow(self, x: Exchange, gate: Gate, account: Any, began: int) -> ModelReply:
        del began
        start = time.perf_counter_ns()
        try:
            return await self._flight.follow(x, gate)
        finally:
            account.model_ns += time.perf_counter_ns() - start

    def close(self, account: Noted) -> None:
        """Let go of the call; keep its answer where its leader did not come to."""
        self._flight.leave()
        if account.error is None:
            self._recall.saved(self._flight.cost)
            self._recall.keep(self._key, self._flight, account, self._flight.cost)


class Asking(Turn):
    """The model is asked; others may join, and the answer may be kept."""

    def __init__(self, recall: Recall, key: bytes, flight: Flight, *, store: bool) -> None:
        self._recall = recall
        self._key = key
        self._flight = flight
        self._store = store
        self.probe: Any = None

    def through(self, send: Send) -> Send:
        """The call, shared."""

        async def lead(x: Exchange, gate: Gate, account: Any, began: int) -> ModelReply:
            return await self._flight.lead(send, x, gate, account, began)

        return lead

    def close(self, account: Noted) -> None:
        """Keep the answer, and let nobody join any more."""
        self._flight.abandon()
        if account.error is None and self._store:
            self._flight.cost = account.cost()[0]
            self._recall.keep(self._key, self._flight, account, self._flight.cost)
            if self.probe is not None and self._flight.stored:
                self._recall.resembles(self.probe, self._key)
        self._recall.landed(self._key, self._flight)


_PASS = Turn()


class Recall:
    """The cache as one release uses it."""

    name = "cache"
    behaviour = 1

    def __init__(self, release: Release, caching: Caching, cache: Cache, likeness: Likeness | None = None) -> None:
        self._cache = cache
        self._caching = caching
        self._sameness = Sameness(release, caching, cache.secret)
        self._shelf = cache.shelf(release.app, caching.max_bytes)
        self._likeness = likeness

    async def find(self, x: Exchange, account: Noted) -> Turn:
        """What to do with `x`, which is what the model would be sent. Raises 504 (`not_cached`) for `only-if-cached`."""
        counts = self._cache.counts
        counts["evaluated"] += 1
        wish = wishes(x.cache_control)
        prefix = self._sameness.prefix(x)
        if prefix is None or not (wish.read or wish.store):
            counts["bypassed"] += 1
            if wish.only:
                raise _not_cached()
            account.headers.append(("x-noria-cache", "bypass"))
            return _PASS
        key = self._sameness.key(x, prefix)
        while True:
            turn = self._here(x, key, wish, account)
            if turn is not None:
                return turn
            flight = self._cache.flights.get(key)
            if flight is None or not flight.open or not wish.read:
                return await self._ask(x, key, prefix, account, wish)
            flight.board()
            begun = False
            try:
                begun = await flight.begun()
            finally:
                if not begun:
                    flight.leave()
            if begun:
                self._tell(account, "joined")
                return Joined(self, key, flight)

    def _here(self, x: Exchange, key: bytes, wish: Wishes, account: Noted) -> Turn | None:
        kept = self._fresh(key, wish) if wish.read else None
        if kept is not None:
            return self._hit(x, kept, account)
        if wish.only and self._likeness is None:
            raise _not_cached()
        return None

    async def _ask(self, x: Exchange, key: bytes, prefix: bytes, account: Noted, wish: Wishes) -> Turn:
        flights = self._cache.flights
        shared = self._caching.single_flight and wish.read and key not in flights
        flight = Flight(stream=x.stream, shared=shared)
        turn = Asking(self, key, flight, store=wish.store and self._caching.ttl > 0)
        if shared:
            flights[key] = flight
        kept, found = None, False
        try:
            if self._likeness is not None:
                turn.probe = await self._likeness.probe(x, prefix, self._sameness)
                self._cache.counts["embedder_away"] += turn.probe is None
                if turn.probe is not None and wish.read:
                    kept = self._likeness.match(turn.probe, lambda k: self._fresh(k, wish))
            if kept is None and wish.only:
                raise _not_cached()
            found = kept is None
        finally:
            if not found:
                flight.abandon()
                self.landed(key, flight)
        if kept is None:
            account.headers.append(("x-noria-cache", "miss"))
            return turn
        return self._hit(x, self._alias(key, kept), account)

    def _alias(self, key: bytes, kept: Kept) -> Kept:
        """The answer under this wording's own key too, marked as what it is: a repetition needs no embedding."""
        made = replace(kept, semantic=True)
        self._shelf.put(key, made)
        return made

    def _fresh(self, key: bytes, wish: Wishes) -> Kept | None:
        kept = self._shelf.get(key)
        if kept is None:
            return None
        now = self._cache.now()
        old, left = (now - kept.stored_ns) / 1e9, (kept.expires_ns - now) / 1e9
        return kept if old <= wish.max_age and left >= wish.min_fresh else None

    def _hit(self, x: Exchange, kept: Kept, account: Noted) -> Turn:
        self._tell(account, "semantic" if kept.semantic else "hit")
        self.saved(kept.cost_nanousd)
        now = self._cache.now()
        account.headers.append(("age", str((now - kept.stored_ns) // 1_000_000_000)))
        if not x.stream:  # a stream says `no-cache` to the proxies that would hold it back
            left = max(0, kept.expires_ns - now) // 1_000_000_000
            account.headers.append(("cache-control", f"private, max-age={left}"))
        return Hit(kept)

    def _tell(self, account: Noted, use: CacheUse) -> None:
        account.cache = use
        account.headers.append(("x-noria-cache", use))
        self._cache.counts[use] += 1

    # -- what the turns report ----------------------------------------------------------------------

    def keep(self, key: bytes, flight: Flight, account: Noted, cost: int | None) -> None:
        """Put a call's answer on the shelf, once, where it came whole to a good end."""
        if flight.stored or flight.end is None or not flight.end.complete or account.native or self._caching.ttl <= 0:
            return
        now = self._cache.now()
        kept = Kept(flight.body, flight.stream, now, now + round(self._caching.ttl * 1e9), cost, flight.upstream_id)
        flight.stored = self._shelf.put(key, kept)
        self._cache.counts["stored"] += flight.stored

    def resembles(self, probe: Any, key: bytes) -> None:
        """Let questions that mean the same find the answer under `key`."""
        if self._likeness is not None:
            self._likeness.add(probe, key)

    def landed(self, key: bytes, flight: Flight) -> None:
        """Nobody joins this call any more."""
        if self._cache.flights.get(key) is flight:
            del self._cache.flights[key]

    def saved(self, cost: int | None) -> None:
        """An answer that would have cost so much was given for nothing."""
        self._cache.saved_nanousd += cost or 0


class Cache:
    """What a worker keeps, whatever configuration is in force."""

    def __init__(self, *, now: Callable[[], int] = time.monotonic_ns, secret: bytes | None = None) -> None:
        self.now = now
        self.secret = secret or os.urandom(32)
        self.flights: dict[bytes, Flight] = {}
        self.counts: dict[str, int] = dict.fromkeys(EVENTS, 0)
        self.saved_nanousd = 0
        self._shelves: dict[str, Shelf] = {}
        self._indexes: dict[tuple[str, bytes, int], Index] = {}
        self._gone = {"evicted": 0, "expired": 0}

    def shelf(self, app: str, max_bytes: int) -> Shelf:
        """The app's answers; its releases share the room, the last one wired says how much there is."""
        shelf = self._shelves.get(app)
        if shelf is None:
            shelf = self._shelves[app] = Shelf(max_bytes, self.now)
        shelf.max_bytes = max_bytes
        shelf.shrink()
        return shelf

    def index(self, app: str, embedder: bytes, entries: int) -> Index:
        """The app's questions as this embedder sees them; vectors of two embedders are never compared."""
        name = app, embedder, entries
        if name not in self._indexes:
            for old in [n for n in self._indexes if n[0] == app][:-MOST_INDEXES]:
                del self._indexes[old]
            self._indexes[name] = Index(entries)
        return self._indexes[name]

    def keep_only(self, apps: Iterable[str]) -> None:
        """Forget the answers of all other apps."""
        kept = set(apps)
        for app in self._shelves.keys() - kept:
            self._count(self._shelves.pop(app))
        for name in [n for n in self._indexes if n[0] not in kept]:
            del self._indexes[name]

    @property
    def held(self) -> int:
        """Bytes that all apps hold."""
        return sum(shelf.held for shelf in self._shelves.values())

    def tally(self) -> dict[str, int]:
        """Every event's number since the start."""
        live = self._shelves.values()
        self.counts["evicted"] = self._gone["evicted"] + sum(shelf.evicted for shelf in live)
        self.counts["expired"] = self._gone["expired"] + sum(shelf.expired for shelf in live)
        return dict(self.counts)

    def sweep(self) -> None:
        """Let go of what has expired."""
        for shelf in self._shelves.values():
            shelf.sweep()

    def _count(self, shelf: Shelf) -> None:
        self._gone["evicted"] += shelf.evicted
        self._gone["expired"] += shelf.expired


def _not_cached() -> RequestError:
    return RequestError(
        "There is no fresh answer to this request in the cache, and only a cached one was asked for.",
        code="not_cached", param="Cache-Control", status=504, hint="Leave only-if-cached out.",
    )  # fmt: skip
