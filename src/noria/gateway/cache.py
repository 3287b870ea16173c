"""Answers given again: the exact cache, identical requests under way, and, where configured, questions that mean the same.

Looked up after the inward guard and before money is reserved, so the key is of what the model would be sent. What is
kept is what the model said, before any outward stage: guards judge each replay anew, and what was masked for one
caller is restored only from the vault of the one who asks. A worker looks into its own memory first, then into what all
workers share (`gateway.tier`).
"""

from __future__ import annotations

import asyncio
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
from noria.gateway.tier import Tier, Written
from noria.gateway.vectors import Index

EVENTS = (
    "evaluated", "hit", "semantic", "joined", "stored", "bypassed", "evicted", "expired", "embedder_away",
    "shared", "shared_late", "shared_failed", "shared_unwritten", "purged",
)  # fmt: skip
DROPPED_AT_ONCE = 500
"""Answers looked at in one step of a purge: below 0.5 ms."""

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
        self._release = release
        self._sameness = Sameness(release, caching, cache.secret)
        self._secret = cache.secret
        self._shelf = cache.shelf(release.app, caching.max_bytes)
        self._likeness = likeness

    async def find(self, x: Exchange, account: Noted) -> Turn:
        """What to do with `x`, which is what the model would be sent. Raises 504 (`not_cached`) for `only-if-cached`."""
        counts = self._cache.counts
        counts["evaluated"] += 1
        wish = wishes(x.cache_control)
        if self._secret is not self._cache.secret:
            self._secret = self._cache.secret
            self._sameness = Sameness(self._release, self._caching, self._secret)
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
        if wish.only and self._likeness is None and self._tier is None:
            raise _not_cached()
        return None

    @property
    def _tier(self) -> Tier | None:
        """What all workers share, where this release has a part in it and the keeper has said where it is."""
        return self._cache.tier if self._caching.ttl > 0 and self._caching.shared_bytes > 0 else None

    async def _ask(self, x: Exchange, key: bytes, prefix: bytes, account: Noted, wish: Wishes) -> Turn:
        flights = self._cache.flights
        shared = self._caching.single_flight and wish.read and key not in flights
        tier = self._cache.tier
        since = tier.seen(x.tenant) if tier is not None else 0
        flight = Flight(stream=x.stream, shared=shared, tenant=x.tenant, subject=x.subject, since=since)
        turn = Asking(self, key, flight, store=wish.store and self._caching.ttl > 0)
        if shared:
            flights[key] = flight
        kept, found = None, False
        try:
            if wish.read and self._tier is not None:
                kept = await self._shared(self._tier, x.tenant, key, wish)
            if self._likeness is not None and kept is None:
                turn.probe = await self._likeness.probe(x, prefix, self._sameness)
                self._cache.counts["embedder_away"] += turn.probe is None
                if turn.probe is not None and wish.read:
                    kept = self._likeness.match(turn.probe, lambda k: self._fresh(k, wish))
                    kept = None if kept is None else self._alias(key, kept)
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
        return self._hit(x, kept, account)

    async def _shared(self, tier: Tier, tenant: str, key: bytes, wish: Wishes) -> Kept | None:
        """What another worker, or an earlier one, has kept; from now on in this one's memory too."""
        kept = await tier.find(tenant, key)
        if kept is None:
            return None
        self._shelf.put(key, kept)
        return kept if self._is_fresh(kept, wish) else None

    def _alias(self, key: bytes, kept: Kept) -> Kept:
        """The answer under this wording's own key too, marked as what it is: a repetition needs no embedding."""
        made = replace(kept, semantic=True)
        self._shelf.put(key, made)
        return made

    def _fresh(self, key: bytes, wish: Wishes) -> Kept | None:
        kept = self._shelf.get(key)
        return kept if kept is not None and self._is_fresh(kept, wish) else None

    def _is_fresh(self, kept: Kept, wish: Wishes) -> bool:
        """Whether it may be given: `ttl` binds at once where it was lowered, also to none."""
        now = self._cache.now()
        old, left = (now - kept.stored_ns) / 1e9, (kept.expires_ns - now) / 1e9
        return old <= wish.max_age and old < self._caching.ttl and left >= wish.min_fresh

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
        app, tier = self._release.app, self._cache.tier
        if tier is not None and tier.covered(flight.tenant, app, flight.subject, flight.since):
            return
        now = self._cache.now()
        kept = Kept(
            flight.body, flight.stream, now, now + round(self._caching.ttl * 1e9), cost, flight.upstream_id,
            tenant=flight.tenant, subject=flight.subject,
        )  # fmt: skip
        flight.stored = self._shelf.put(key, kept)
        self._cache.counts["stored"] += flight.stored
        if flight.stored and self._tier is not None:
            self._tier.keep(Written(key, app, kept, self._caching.shared_bytes, flight.since))

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
        self.tier: Tier | None = None
        """What all workers share; None until it is known where it is."""
        self._shelves: dict[str, Shelf] = {}
        self._indexes: dict[tuple[str, bytes, int], Index] = {}
        self._gone = {"evicted": 0, "expired": 0}

    def share(self, secret: bytes) -> None:
        """Name answers as all workers do. What was kept under another secret will not be found again: it is let go."""
        if secret != self.secret:
            self.secret = secret
            self.flights.clear()
            self._indexes.clear()
            for shelf in self._shelves.values():
                shelf.clear()

    async def forget(self, tenant: str, app: str, subject: str) -> None:
        """Drop the tenant's answers of an app, of a subject, or (both empty) all; a few at a time."""
        for name, shelf in list(self._shelves.items()):
            for n, key in enumerate(shelf.keys() if app in ("", name) else ()):
                kept = shelf.peek(key)
                if kept is not None and kept.tenant == tenant and subject in ("", kept.subject):
                    shelf.drop(key)
                    self.counts["purged"] += 1
                if n % DROPPED_AT_ONCE == DROPPED_AT_ONCE - 1:
                    await asyncio.sleep(0)

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
