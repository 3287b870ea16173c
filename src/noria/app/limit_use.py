"""How a limit stands: what of it is used, what workers hold without using it, and when it begins anew."""

from __future__ import annotations

import msgspec

from noria.contracts.release import Limit
from noria.gateway.bank import Bank
from noria.gateway.limits import Unit, account_of, minute_end


class Lease(msgspec.Struct, frozen=True):
    """What one worker of this node has of a limit, by its last report (each second)."""

    worker: str
    taken: int
    free: int
    """Of it, not used yet."""


class Use(msgspec.Struct, frozen=True):
    """One unit of a limit in the minute that is running. `used` + `leased` + `left` = `limit`, unless it was passed or lowered."""

    unit: Unit
    limit: int
    used: int
    """Requests begun, tokens spent or set aside, requests under way. What other nodes have leased counts as used."""
    leased: int
    """What workers of this node hold and have not used."""
    left: int
    elsewhere: int
    """Of `used`: what other nodes have taken, and what workers that died had."""
    resets_ns: int | None
    """When it begins anew; None for places, which are given back."""
    leases: tuple[Lease, ...]


async def uses_of(limit: Limit, bank: Bank, tenant: str, now_ns: int) -> list[Use]:
    """Each unit that a limit counts. Raises `StoreError`."""
    ceilings: dict[Unit, int | None] = {
        "requests": limit.requests_per_minute,
        "tokens": limit.tokens_per_minute,
        "concurrent": limit.concurrent,
    }
    end = minute_end(now_ns)
    return [
        await _use(unit, ceiling, account_of(limit, unit, end), (bank, tenant, end))
        for unit, ceiling in ceilings.items()
        if ceiling is not None
    ]


async def _use(unit: Unit, ceiling: int, account: str, where: tuple[Bank, str, int]) -> Use:
    bank, tenant, end = where
    leases = tuple(
        Lease(holder.rpartition(".")[0], held.taken, min(held.free, held.taken))
        for holder, held in sorted(bank.leases(tenant, account).items())
    )
    total = await bank.taken(tenant, account)
    leased = min(total, sum(x.free for x in leases))
    return Use(
        unit=unit,
        limit=ceiling,
        used=total - leased,
        leased=leased,
        left=max(0, ceiling - total),
        elsewhere=max(0, total - sum(x.taken for x in leases)),
        resets_ns=None if unit == "concurrent" else end,
        leases=leases,
    )
