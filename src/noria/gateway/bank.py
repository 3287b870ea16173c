"""The keeper's side of leases: who holds what, and the counters put right from the ledger.

The counter of an account is an upper bound of the truth at every moment: it rises before a worker learns of its grant and
falls after the worker has given back. It is what living workers have taken, and what others spent: workers that died, the
keeper itself. What makes it wrong (a worker killed with a slice, an answer lost, a keeper killed between two steps) is found by
`mend`: others spent what the ledger says less what living workers say to have paid. At most that, where the workers spoke before
the ledger was read (and everything that their spools held then); at least that, where they spoke after it.

Counters that several nodes share are not rebuilt: a node's ledger is not the whole of it. There each node vouches for the
places that its workers hold (`Tenure`), and what a dead worker had of a minute or of a budget ends with its window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from noria.contracts.error import StoreError
from noria.contracts.port import Clock, Counter
from noria.gateway.lease import Grant, Holding, Want

HUGE = 2**62
BUDGET, PERMITS, RATE = "budget:", "permits:", "rate:"
"""Accounts with a ledger; accounts of things that are held and given back, never spent; accounts that end with their minute."""
PATIENCE = 40
"""Looks, of 20 ms each, for workers that have not told yet what they hold to a keeper that has just begun."""
REST_NS = 10_000_000_000
"""Least time between two rebuilds of one account that a refusal asks for."""
TOLD_NS = 3_000_000_000
"""Time within which every living worker has told what it had paid: each does so every second."""


class Ledger(Protocol):
    """What was spent according to the recorded exchanges, and who lives."""

    def holders(self) -> set[str]:
        """Every worker that lives now (`Want.holder`)."""
        ...

    async def level(self) -> None:
        """Returns when everything that the spools held at the call is recorded. Raises `StoreError` where that takes long."""
        ...

    async def spent(self, tenant: str, account: str) -> int | None:
        """What the exchanges of an account cost; None for an account that has no ledger (a rate, an unknown budget)."""
        ...


class Tenure(Protocol):
    """Places of several nodes in one counter: each vouches for its own, from time to time."""

    async def vouch(self, tenant: str, account: str, held: int, *, all_told: bool, now_ns: int) -> None:
        """This node's workers hold so many now; more where not `all_told`: some have not spoken yet. Raises `StoreError`."""
        ...


class Held(msgspec.Struct):
    """What one holder has of one account, as the keeper knows it."""

    op: int = 0
    taken: int = 0
    paid: int = 0
    free: int = 0


class Bank:
    """Grants slices. One a keeper; `tenure` is given where other keepers share the counters."""

    def __init__(self, counters: Counter, ledger: Ledger, clock: Clock, *, tenure: Tenure | None = None) -> None:
        self._counters = counters
        self._ledger = ledger
        self._clock = clock
        self._tenure = tenure
        self._rebuilds = tenure is None
        self._began = clock.now_ns()
        self._held: dict[str, dict[tuple[str, str], Held]] = {}
        self._complete: set[str] = set()
        """Holders that have told all they hold since this keeper began."""
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._stale: dict[tuple[str, str], int] = {}
        """Accounts whose counter may be wrong, in order of discovery, and when to look (ns)."""
        self._read: dict[tuple[str, str], tuple[int, int]] = {}
        """What the ledger said of an account, and when."""
        self._sound: dict[tuple[str, str], int] = {}
        """When each account was last put right."""
        self._expires: dict[tuple[str, str], int] = {}
        """Accounts that this keeper has met."""
        self.rebuilt = 0
        self.released = 0
        """Amounts that nobody held any more, given back by rebuilds."""

    # -- what workers ask ---------------------------------------------------------------------------

    async def take(self, want: Want) -> Grant:
        """As `Leases.take`. An operation that its holder has given up is refused: the answer would reach nobody."""
        key = (want.tenant, want.account)
        async with self._lock(key):
            held = self._of(want.holder, key)
            if want.op <= held.op:
                return Grant(0)
            await self._told(key, held, Holding(want.account, want.op, want.taken, want.paid))
            if key not in self._expires:
                await self._meet(key, want.expires_ns)
            amount, total = await self._grant(key, want)
            held.taken += amount
        if not amount and key in self._sound and self._clock.now_ns() - self._sound[key] > REST_NS:
            self._stale.setdefault(key, 0)
        return Grant(amount, max(0, want.ceiling - total), max(0, total - self.reserved(key)))

    async def _meet(self, key: tuple[str, str], expires_ns: int) -> None:
        """The first that this keeper hears of an account. One that no keeper knew begins with what was spent before it was
        there, and with what workers hold, of whom all must have spoken.
        """
        if key[1].startswith(BUDGET) or (self._rebuilds and key[1].startswith(PERMITS)):
            now = self._clock.now_ns()
            known = (key[0], f"known:{key[1]}")
            if not await self._counters.read(*known, now_ns=now):
                for _ in range(PATIENCE):
                    if not (self._rebuilds and self._silent()):
                        break
                    await asyncio.sleep(0.02)
                else:
                    raise StoreError("The keeper has just begun and does not know yet what is held.", code="keeper_begins")
                spent, held = await self._ledger.spent(*key) or 0, self._holders(key).values()
                least = sum(h.taken for h in held) + max(0, spent - sum(h.paid for h in held))
                await self._set(key, at_least=least, expires_ns=expires_ns)
                await self._counters.take(*known, want=1, least=1, ceiling=1, expires_ns=expires_ns, now_ns=now)
            self._sound[key] = 0
            self._stale[key] = 0
        self._expires[key] = expires_ns

    async def _grant(self, key: tuple[str, str], want: Want) -> tuple[int, int]:
        """What is granted, and what is taken in all then. The nearer the ceiling, the less: half of what is left, shared among
        the holders.
        """
        now = self._clock.now_ns()
        total = await self._counters.read(*key, now_ns=now)
        fair = (want.ceiling - total) // (2 * max(1, len(self._held)))
        size = max(want.least, min(want.want, fair))
        amount = await self._counters.take(
            *key, want=size, least=want.least, ceiling=want.ceiling, expires_ns=want.expires_ns, now_ns=now
        )
        return amount, total + amount

    async def hold(self, tenant: str, holder: str, holdings: list[Holding], *, full: bool) -> bool:
        """As `Leases.hold`."""
        for h in holdings:
            key = (tenant, h.account)
            async with self._lock(key):
                await self._told(key, self._of(holder, key), h)
        if full:
            self._complete.add(holder)
        return holder not in self._complete

    async def _told(self, key: tuple[str, str], held: Held, said: Holding) -> None:
        """Take a holder at its word, unless an operation of ours came after it."""
        if said.op < held.op:
            return
        over = held.taken - said.taken
        held.op, held.taken, held.paid, held.free = said.op, said.taken, said.paid, said.free
        if over > 0:
            await self._counters.give(*key, over, now_ns=self._clock.now_ns())

    # -- what is known ------------------------------------------------------------------------------

    def reserved(self, key: tuple[str, str]) -> int:
        """What living workers hold of an account and have not paid with: free, or set aside for exchanges under way."""
        return sum(max(0, h.taken - h.paid) for h in self._holders(key).values())

    def leases(self, tenant: str, account: str) -> dict[str, Held]:
        """What each living worker of this node has taken of an account, and paid, as of its last word."""
        return {holder: h for holder, h in self._holders((tenant, account)).items() if h.taken}

    def met(self, tenant: str, account: str) -> bool:
        """Whether a worker of this node has asked for some of an account since this keeper began."""
        return (tenant, account) in self._expires

    async def used(self, tenant: str, account: str) -> tuple[int, int]:
        """(spent for good, held by workers) of an account."""
        total = await self.taken(tenant, account)
        held = min(total, self.reserved((tenant, account)))
        return total - held, held

    async def taken(self, tenant: str, account: str) -> int:
        """What is spent and what is held of an account, together. Raises `StoreError`."""
        return await self._counters.read(tenant, account, now_ns=self._clock.now_ns())

    async def vouch(self) -> None:
        """For the places that this node's workers hold, where other nodes count them too. Raises `StoreError`."""
        if self._tenure is None:
            return
        all_told = not self._silent()
        for key in {key for holdings in self._held.values() for key in holdings} | set(self._expires):
            if key[1].startswith(PERMITS):
                async with self._lock(key):
                    await self._tenure.vouch(*key, self.reserved(key), all_told=all_told, now_ns=self._clock.now_ns())

    # -- putting right ------------------------------------------------------------------------------

    def _silent(self) -> bool:
        """Whether somebody lives who may hold what this keeper does not know of: older than it, and not heard yet."""
        return any(h not in self._complete and _epoch(h) < self._began for h in self._ledger.holders())

    def known(self) -> set[str]:
        """Holders that have said something and have not ended."""
        return set(self._held) | self._complete

    def ended(self, holder: str) -> None:
        """A worker is dead, and what it had under way is in the ledger: what it held is nobody's."""
        # where this keeper is younger than the worker was, it may have held any account
        unknown = self._sound if _epoch(holder) < self._began else {}
        for key in (*self._held.pop(holder, {}), *unknown):
            self._stale[key] = 0
            self._read.pop(key, None)  # it was not read after the worker's last word
        self._complete.discard(holder)

    async def mend(self, most: int = 50) -> int:
        """Rebuild accounts that may be wrong, oldest suspicion first; how many. Raises `StoreError`."""
        if not self._rebuilds or not self._stale:
            return 0
        now = self._clock.now_ns()
        keys = [key for key, at in self._stale.items() if at <= now][:most]
        if not keys or self._silent():
            return 0
        paid = {key: {holder: h.paid for holder, h in self._holders(key).items()} for key in keys}
        await self._ledger.level()
        for key in keys:
            if await self._rebuild(key, paid[key]):
                self._stale.pop(key, None)
            else:
                self._stale[key] = self._clock.now_ns() + TOLD_NS
        return len(keys)

    async def _rebuild(self, key: tuple[str, str], before: dict[str, int]) -> bool:
        """Whether the account is sound now; else the counter may still be too low, which only a later look can tell.

        `before` is what each living holder had paid, by reports older than the ledger's last row: what was paid since is
        counted twice rather than not at all. What was paid beyond what was taken is a debt that its holder will take
        yet (`Slice.tick`): it must not be counted here, or it would be counted twice for good.
        """
        spent = await self._ledger.spent(*key)
        async with self._lock(key):
            if spent is None and not key[1].startswith(PERMITS):
                return True
            spent, now, held = spent or 0, self._clock.now_ns(), self._holders(key)
            taken = sum(h.taken for h in held.values())
            most = max(0, taken + spent - sum(before.get(holder, 0) for holder in held))
            read, at = self._read.get(key, (0, now)) if held else (spent, now - TOLD_NS)
            sound = at <= now - TOLD_NS
            least = taken + max(0, read - sum(h.paid for h in held.values())) if sound else 0
            await self._set(key, at_most=most, at_least=min(least, most), expires_ns=self._expires.get(key, 0))
            if sound or key not in self._read:
                self._read[key] = (spent, now)
            self._sound[key] = now
            self.rebuilt += 1
            return sound

    def _holders(self, key: tuple[str, str]) -> dict[str, Held]:
        return {holder: h for holder, accounts in self._held.items() if (h := accounts.get(key)) is not None}

    def suspect(self, tenant: str) -> None:
        """Look at every budget of a tenant again."""
        for key in self._sound:
            if key[0] == tenant:
                self._stale.setdefault(key, 0)

    def sweep(self) -> None:
        """Forget accounts whose window is long over."""
        now = self._clock.now_ns()
        for key in [k for k, at in self._expires.items() if at and at <= now]:
            for known in (self._expires, self._sound, self._stale, self._read, *self._held.values()):
                known.pop(key, None)  # type: ignore[attr-defined]  # dicts of several kinds
            if not self._locks[key].locked():
                del self._locks[key]

    async def _set(self, key: tuple[str, str], *, at_least: int = 0, at_most: int = HUGE, expires_ns: int = 0) -> None:
        now = self._clock.now_ns()
        there = await self._counters.read(*key, now_ns=now)
        if there > at_most:
            self.released += there - at_most
            await self._counters.give(*key, there - at_most, now_ns=now)
        elif there < at_least:
            more = at_least - there
            await self._counters.take(*key, want=more, least=more, ceiling=HUGE, expires_ns=expires_ns, now_ns=now)

    def _of(self, holder: str, key: tuple[str, str]) -> Held:
        return self._held.setdefault(holder, {}).setdefault(key, Held())

    def _lock(self, key: tuple[str, str]) -> asyncio.Lock:
        found = self._locks.get(key)
        if found is None:
            found = self._locks[key] = asyncio.Lock()
        return found


def _epoch(holder: str) -> int:
    """When a holder began (ns); 0 where its name does not tell."""
    at = holder.rpartition(".")[2]
    return int(at) if at.isdigit() else 0


class DirectLeases:
    """`Leases` without a keeper between: for tests and for a process that is its own keeper."""

    def __init__(self, bank: Bank, holder: str, *, pause: Callable[[], Awaitable[None]] | None = None) -> None:
        self._bank = bank
        self._holder = holder
        self._pause = pause

    @property
    def holder(self) -> str:
        """As `Leases.holder`."""
        return self._holder

    async def take(self, want: Want) -> Grant:
        """As `Leases.take`."""
        if self._pause is not None:
            await self._pause()
        grant = await self._bank.take(want)
        if self._pause is not None:
            await self._pause()
        return grant

    async def hold(self, tenant: str, holdings: list[Holding], *, full: bool) -> bool:
        """As `Leases.hold`."""
        if self._pause is not None:
            await self._pause()
        return await self._bank.hold(tenant, self._holder, holdings, full=full)
