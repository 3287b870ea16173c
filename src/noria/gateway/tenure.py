"""Counters that several nodes share: nodes that end without a word, and a server that is away.

**Places** (what is held and given back) are counted anew in each term of `TERM_NS`: one counter a term. A place is taken under
the ceiling of the running term and noted in the next; each node notes what it still holds (`vouch`). So what a dead node held
is free once the term after its last one is over, and a node may be cut off for a whole term before others can take its places.
What a node has noted stands beside the sum, under its own name: it is raised after the sum and lowered before it, so a keeper
that begins anew may rely on it, whatever step its forerunner was killed at.

**While the server is away**, each node keeps rates and places by itself: what it takes in a minute stays within the limit, what
all take within (nodes × limit). Money is refused. What was taken meanwhile is noted once the server is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from noria.contracts.error import NoriaError, StoreError, Unavailable
from noria.contracts.port import Clock, Counter
from noria.gateway.bank import HUGE, PERMITS, RATE

log = logging.getLogger("noria.limits")
T = TypeVar("T")

TERM_NS = 15_000_000_000
SKEW_NS = 1_000_000_000
"""How far the clocks of nodes may be apart: so long after its beginning what is taken must have room in the term before, too."""
WITHIN = 0.5
"""Seconds within which the server answers, or counts as away."""
AGAIN = 0.5
"""Seconds between two looks for a server that is away."""
Name = tuple[str, str]


class SharedCounter:
    """`Counter` and `gateway.bank.Tenure` of one node, over a counter that other nodes use too."""

    def __init__(self, shared: Counter, alone: Counter, clock: Clock, *, node: str) -> None:
        self._shared = shared
        self._alone = alone
        """What this node has taken itself: what holds while the server is away."""
        self._clock = clock
        self._node = node
        self._noted: dict[Name, dict[int, int]] = {}
        """By place account and term: what this node has noted."""
        self._owed: dict[Name, tuple[int, int]] = {}
        """By rate account: what was taken (given back: below 0) while the server was away, and when the account ends."""
        self._watch: asyncio.Task[None] | None = None
        self.outages = 0

    @property
    def away(self) -> bool:
        """Whether the server is."""
        return self._watch is not None

    # -- Counter ------------------------------------------------------------------------------------

    async def take(self, tenant: str, key: str, *, want: int, least: int, ceiling: int, expires_ns: int, now_ns: int) -> int:
        """As `Counter.take`. Rates and places are answered from here while the server is away; money raises `StoreError`."""
        terms = {"want": want, "least": least, "ceiling": ceiling, "now_ns": now_ns}
        try:
            if key.startswith(PERMITS):
                got = await self._take_place(tenant, key, **terms)
            else:
                got = await self._ask(self._shared.take(tenant, key, **terms, expires_ns=expires_ns))
        except StoreError:
            if not key.startswith((PERMITS, RATE)):
                raise
            got = await self._alone.take(tenant, key, **terms, expires_ns=expires_ns)
            self._owe((tenant, key), got, expires_ns)
            return got
        if got and key.startswith((PERMITS, RATE)):
            await self._alone.take(tenant, key, want=got, least=got, ceiling=HUGE, expires_ns=expires_ns, now_ns=now_ns)
        return got

    async def give(self, tenant: str, key: str, amount: int, *, now_ns: int) -> None:
        """As `Counter.give`. Never fails for rates and places: it is made up for."""
        if not key.startswith((PERMITS, RATE)):
            await self._ask(self._shared.give(tenant, key, amount, now_ns=now_ns))
            return
        await self._alone.give(tenant, key, amount, now_ns=now_ns)
        try:
            if key.startswith(PERMITS):
                await self._give_place((tenant, key), amount, now_ns)
            else:
                await self._ask(self._shared.give(tenant, key, amount, now_ns=now_ns))
        except StoreError:
            self._owe((tenant, key), -amount, 0)

    async def read(self, tenant: str, key: str, *, now_ns: int) -> int:
        """As `Counter.read`; while the server is away, what this node has taken."""
        name = f"{key}#{now_ns // TERM_NS}" if key.startswith(PERMITS) else key
        try:
            return await self._ask(self._shared.read(tenant, name, now_ns=now_ns))
        except StoreError:
            if not key.startswith((PERMITS, RATE)):
                raise
            return await self._alone.read(tenant, key, now_ns=now_ns)

    async def close(self) -> None:
        """Release both. Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        await self._shared.close()
        await self._alone.close()

    # -- places -------------------------------------------------------------------------------------

    async def vouch(self, tenant: str, account: str, held: int, *, all_told: bool, now_ns: int) -> None:
        """As `gateway.bank.Tenure.vouch`: note what is missing in the running term and the next, take back what is too much."""
        name = (tenant, account)
        more = held - await self._alone.read(tenant, account, now_ns=now_ns)
        if more > 0:
            await self._alone.take(tenant, account, want=more, least=more, ceiling=HUGE, expires_ns=0, now_ns=now_ns)
        elif more < 0 and all_told:
            await self._alone.give(tenant, account, -more, now_ns=now_ns)
        term = now_ns // TERM_NS
        for each in (term, term + 1):
            more = held - await self._own(name, each, now_ns)
            if more > 0:
                await self._note(name, each, more, now_ns)
            elif more < 0 and all_told:
                await self._take_back(name, each, -more, now_ns)
        terms = self._noted.get(name, {})
        for old in [t for t in terms if t < term - 1]:
            del terms[old]

    async def _take_place(self, tenant: str, key: str, *, want: int, least: int, ceiling: int, now_ns: int) -> int:
        name, got, checked = (tenant, key), want, list[tuple[int, int]]()
        *before, term = _terms(now_ns)
        for each in (*before, term):
            await self._own(name, each, now_ns)
            got = await self._ask(
                self._shared.take(
                    tenant, f"{key}#{each}", want=got, least=least, ceiling=ceiling, expires_ns=_end(each), now_ns=now_ns
                )
            )
            checked.append((each, got))
            if not got:
                break
        for each, taken in checked:
            if taken > got:
                await self._ask(self._shared.give(tenant, f"{key}#{each}", taken - got, now_ns=now_ns))
            if got:
                await self._own_more(name, each, got, now_ns)
        if got:
            await self._note(name, term + 1, got, now_ns)
        return got

    async def _give_place(self, name: Name, amount: int, now_ns: int) -> None:
        terms = _terms(now_ns)
        for each in (terms[-1] + 1, *reversed(terms)):
            noted = await self._own(name, each, now_ns)
            if noted:
                await self._take_back(name, each, min(noted, amount), now_ns)

    async def _note(self, name: Name, term: int, amount: int, now_ns: int) -> None:
        """Raise the sum, whatever the ceiling: these places are held already."""
        await self._own(name, term, now_ns)
        await self._raise(name[0], f"{name[1]}#{term}", amount, _end(term), now_ns)
        await self._own_more(name, term, amount, now_ns)

    async def _take_back(self, name: Name, term: int, amount: int, now_ns: int) -> None:
        await self._ask(self._shared.give(name[0], self._beside(name, term), amount, now_ns=now_ns))
        self._count(name, term, -amount)
        await self._ask(self._shared.give(name[0], f"{name[1]}#{term}", amount, now_ns=now_ns))

    async def _own_more(self, name: Name, term: int, amount: int, now_ns: int) -> None:
        await self._raise(name[0], self._beside(name, term), amount, _end(term), now_ns)
        self._count(name, term, amount)

    def _count(self, name: Name, term: int, amount: int) -> None:
        terms = self._noted.get(name, {})
        if term in terms:  # else it is read again
            terms[term] += amount

    async def _own(self, name: Name, term: int, now_ns: int) -> int:
        """What this node has noted, perhaps by a keeper before this one."""
        terms = self._noted.setdefault(name, {})
        if term not in terms:
            found = await self._ask(self._shared.read(name[0], self._beside(name, term), now_ns=now_ns))
            return terms.setdefault(term, found)
        return terms[term]

    def _beside(self, name: Name, term: int) -> str:
        return f"{name[1]}#{term}@{self._node}"

    async def _raise(self, tenant: str, key: str, amount: int, expires_ns: int, now_ns: int) -> None:
        await self._ask(
            self._shared.take(tenant, key, want=amount, least=amount, ceiling=HUGE, expires_ns=expires_ns, now_ns=now_ns)
        )

    # -- away ---------------------------------------------------------------------------------------

    async def _ask(self, call: Awaitable[T]) -> T:
        """The server's answer. Raises `StoreError` at once while it is away, else within `WITHIN`."""
        if self._watch is not None:
            if asyncio.iscoroutine(call):
                call.close()
            raise StoreError("The shared counters are away.", code="counters_away")
        try:
            async with asyncio.timeout(WITHIN):
                return await call
        except TimeoutError as e:
            lost = StoreError(f"The shared counters did not answer within {WITHIN:g} s.", code="counters_away")
            self._lose(lost)
            raise lost from e
        except (StoreError, Unavailable) as e:
            self._lose(e)
            raise StoreError(e.message, code="counters_away") from e

    def _lose(self, why: NoriaError) -> None:
        if self._watch is None:
            self.outages += 1
            log.warning("the shared counters are away, this node keeps rates and places by itself: %s", why.text)
            self._watch = asyncio.create_task(self._return())

    async def _return(self) -> None:
        """Until the server answers, and knows what was taken meanwhile."""
        while True:
            await asyncio.sleep(AGAIN)
            with suppress(TimeoutError, StoreError, Unavailable):
                async with asyncio.timeout(WITHIN):
                    await self._shared.read("", "back", now_ns=self._clock.now_ns())
                    await self._settle()
                break
        self._noted = {}  # it may have lost everything: what it knows of this node is read again
        self._watch = None
        log.info("the shared counters are back")

    async def _settle(self) -> None:
        now = self._clock.now_ns()
        while self._owed:
            name, (amount, expires) = next(iter(self._owed.items()))
            if amount > 0 and expires > now:
                await self._shared.take(*name, want=amount, least=amount, ceiling=HUGE, expires_ns=expires, now_ns=now)
            elif amount < 0:
                await self._shared.give(*name, -amount, now_ns=now)
            self._owe(name, -amount, 0)  # what came on top meanwhile stays

    def _owe(self, name: Name, amount: int, expires_ns: int) -> None:
        if not name[1].startswith(RATE):
            return  # for places `vouch` sees to it
        owed, until = self._owed.pop(name, (0, 0))
        if owed + amount:
            self._owed[name] = (owed + amount, max(until, expires_ns))


def _terms(now_ns: int) -> tuple[int, ...]:
    """The running term, after the one before where a node with a slower clock may still be in it."""
    term = now_ns // TERM_NS
    return (term - 1, term) if now_ns % TERM_NS < SKEW_NS else (term,)


def _end(term: int) -> int:
    """When a term's counters may go: a term later, by any clock."""
    return (term + 2) * TERM_NS
