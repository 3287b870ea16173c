"""Requests per minute and budgets of a key, by leased slices (DESIGN §5.2-3, §3a.11).

A worker takes a slice of a shared counter and spends it without asking again; only an empty slice waits
for the keeper. So a limit can be under-used by at most one slice a worker, and is never passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Raw
from msgspec.structs import replace

from noria.contracts.error import LimitExceeded, StoreError, Unavailable
from noria.contracts.exchange import Exchange
from noria.contracts.port import Clock
from noria.contracts.release import Key, Price

MINUTE_NS = 60_000_000_000
DEFAULT_OUTPUT = 1024
"""Output limit injected under a budget where neither caller nor release states one (DESIGN §5.3)."""


class Leases(Protocol):
    """The shared counters, as a worker reaches them."""

    async def take(self, tenant: str, key: str, *, want: int, least: int, ceiling: int, expires_ns: int) -> int:
        """As `Counter.take`. Raises `StoreError` where the keeper is away."""
        ...

    async def give(self, tenant: str, key: str, amount: int) -> None:
        """As `Counter.give`."""
        ...


class Slice:
    """What is left of the amounts this worker has leased of one counter."""

    __slots__ = ("expires_ns", "left", "renewal")

    def __init__(self, expires_ns: int) -> None:
        self.left = 0
        self.expires_ns = expires_ns
        self.renewal: asyncio.Future[int] | None = None


class Reservation:
    """Money set aside for one exchange; settled exactly once."""

    __slots__ = ("_settle", "amount")

    def __init__(self, amount: int, settle: Callable[[int, int | None], None]) -> None:
        self.amount = amount
        self._settle: Callable[[int, int | None], None] | None = settle

    def settle(self, cost: int | None) -> None:
        """Pay `cost` and free the rest; None (unknown) pays the whole reservation. Later calls do nothing."""
        if self._settle is not None:
            settle, self._settle = self._settle, None
            settle(self.amount, cost)


class Limits:
    """Takes a request's share of its key's limits before the model is called."""

    def __init__(self, leases: Leases, clock: Clock, *, workers: int = 1) -> None:
        self._leases = leases
        self._clock = clock
        self._workers = max(1, workers)
        self._slices: dict[str, Slice] = {}
        self.evaluated = 0
        self.acted = 0
        self.unchecked = 0
        """Requests let through because the keeper was away (rate limits only; money never)."""

    async def rate(self, x: Exchange) -> None:
        """Count one request of the key. Raises `LimitExceeded` (429) where the minute is full."""
        if x.key is not None and x.key.rpm is not None:
            self.evaluated += 1
            await self._request(x.key, x.key.rpm)

    async def reserve(self, x: Exchange) -> tuple[Exchange, Reservation | None]:
        """The Exchange, bounded in cost where its key has a budget, and the money set aside for it.

        `x` is what the model will be sent, so that the prompt template and remembered turns are counted.
        Raises `LimitExceeded` (429) or `Unavailable` (503).
        """
        key = x.key
        if key is None or key.budget_nanousd is None:
            return x, None
        self.evaluated += 1
        if x.kind != "embedding" and output_limit(x) is None:
            x = replace(x, body={**x.body, "max_tokens": Raw(b"%d" % DEFAULT_OUTPUT)})
        return x, await self._money(x, key, key.budget_nanousd)

    async def _request(self, key: Key, rpm: int) -> None:
        now = self._clock.now_ns()
        end = (now // MINUTE_NS + 1) * MINUTE_NS
        name = f"rpm:{key.id}:{end // MINUTE_NS}"
        size = max(1, rpm // (8 * self._workers))
        try:
            granted = await self._spend(key.tenant, name, 1, size=size, ceiling=rpm, expires_ns=end)
        except StoreError:
            self.unchecked += 1
            return
        if not granted:
            self.acted += 1
            raise LimitExceeded(
                f"Rate limit of this key reached: {rpm} requests per minute.",
                code="rate_limit_exceeded",
                retry_after=max(0.001, (end - now) / 1e9),
            )

    async def _money(self, x: Exchange, key: Key, budget: int) -> Reservation:
        amount = reserve_amount(x)
        if amount is None:
            raise LimitExceeded(
                "This key has a budget, but the price of this model is not known.",
                code="price_unknown",
                hint="Give the model a `price` in noria.yaml.",
            )
        name = f"budget:{key.id}"
        size = max(amount, min(budget // (8 * self._workers), amount * 16))
        try:
            granted = await self._spend(key.tenant, name, amount, size=size, ceiling=budget, expires_ns=0)
        except StoreError as e:
            raise Unavailable("Budgets cannot be checked right now.", code="budget_unavailable") from e
        if not granted:
            self.acted += 1
            raise LimitExceeded(f"The budget of this key is spent ({budget / 1e9:.2f} USD).", code="insufficient_quota")
        slice_ = self._slices[name]

        def settle(reserved: int, cost: int | None) -> None:
            slice_.left += reserved - (reserved if cost is None else cost)

        return Reservation(amount, settle)

    async def _spend(self, tenant: str, name: str, amount: int, *, size: int, ceiling: int, expires_ns: int) -> bool:
        slice_ = self._slices.get(name)
        if slice_ is None:
            self._forget_expired()
            slice_ = self._slices[name] = Slice(expires_ns)
        while slice_.left < amount:
            if slice_.renewal is not None:
                await asyncio.shield(slice_.renewal)
                if slice_.left >= amount:
                    break
                if slice_.renewal is not None:
                    continue
            missing = amount - slice_.left
            take = self._leases.take(
                tenant, name, want=max(missing, size), least=missing, ceiling=ceiling, expires_ns=expires_ns
            )
            granted = await self._renew(slice_, take)
            if granted == 0:
                return False
        slice_.left -= amount
        return True

    async def _renew(self, slice_: Slice, take: Awaitable[int]) -> int:
        """One renewal at a time a slice; whoever waits for it looks again afterwards. It goes on where its caller
        leaves, so that nothing that was granted is lost.
        """

        async def renew() -> int:
            try:
                granted = await take
                slice_.left += granted
                return granted
            finally:
                slice_.renewal = None

        slice_.renewal = asyncio.ensure_future(renew())
        return await asyncio.shield(slice_.renewal)

    async def give_back(self, tenant: str = "local") -> None:
        """Return what is left of budgets to the shared counters (on drain, and when idle)."""
        for name, slice_ in list(self._slices.items()):
            if name.startswith("budget:") and slice_.left > 0:
                amount, slice_.left = slice_.left, 0
                try:
                    await self._leases.give(tenant, name, amount)
                except StoreError:
                    slice_.left += amount

    def _forget_expired(self) -> None:
        now = self._clock.now_ns()
        for name in [n for n, s in self._slices.items() if s.expires_ns and s.expires_ns <= now]:
            del self._slices[name]


def reserve_amount(x: Exchange) -> int | None:
    """Nano-dollars that `x` can cost at most by its dearest endpoint; None where a price is unknown.

    Input: UTF-8 bytes of the request (tokens never outnumber them). Output: the caller's limit times `n`.
    """
    assert x.release is not None, "admit comes first"
    prices = [e.price for e in x.release.route]
    if any(p is None for p in prices):
        return None
    size = sum(len(v) for v in x.body.values())
    output = output_limit(x) or DEFAULT_OUTPUT
    many = _int(x.body.get("n")) or 1
    return max(_most(p, size, output * many) for p in prices if p is not None)


def output_limit(x: Exchange) -> int | None:
    """The caller's limit of output tokens, or the release's, or None."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = _int(x.body.get(name))
        if value is not None:
            return value
    for name in ("max_completion_tokens", "max_tokens"):
        value = x.release.params.get(name) if x.release else None
        if isinstance(value, int):
            return value
    return None


def _most(price: Price, size: int, output: int) -> int:
    return int((size * price.input + output * price.output) * 1000) + 1


def _int(raw: object) -> int | None:
    text = bytes(raw).strip() if raw is not None else b""  # type: ignore[call-overload]  # msgspec.Raw is a buffer
    return int(text) if text.isdigit() else None
