"""What tokens cost: prices by class of token, and exact arithmetic on them.

A price is stated in US dollars a million tokens, which is exactly 10^6 pico-dollars (1e-12 USD) a token. Rates are
integers of that unit, products and sums of integers are exact, and the sum is rounded once, half up, to nano-dollars.
`Usage` counts in OpenAI's inclusive sense; here it is split into disjoint classes, each at its own rate.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

import msgspec

from noria.contracts.usage import Usage

PICO = 1_000
"""Pico-dollars a nano-dollar."""
HOUR_NS = 3_600_000_000_000


class Tier(msgspec.Struct, frozen=True):
    """Prices of exchanges whose whole input has more than `above` tokens: they apply to all of its tokens, not only to
    those beyond. What is None costs what it costs below.
    """

    above: int
    input: float | None = None
    output: float | None = None
    cached: float | None = None
    cache_write: float | None = None
    cache_write_long: float | None = None
    reasoning: float | None = None


class Price(msgspec.Struct, frozen=True, cache_hash=True):
    """US dollars per million tokens. An absent price is unknown, which is not free; an absent class costs what the
    class costs that it is part of.
    """

    input: float
    output: float
    cached: float | None = None
    """Input read from the provider's prompt cache; as `input` where absent, and so are the other kinds of input."""
    cache_write: float | None = None
    cache_write_long: float | None = None
    """As `cache_write` where absent."""
    reasoning: float | None = None
    """As `output` where absent."""
    audio_input: float | None = None
    audio_output: float | None = None
    """As `output` where absent."""
    image_input: float | None = None
    cached_audio: float | None = None
    """As `cached` where absent."""
    image_output: float | None = None
    """As `output` where absent."""
    search: float | None = None
    """US dollars a thousand web searches that the provider runs; None = unknown. A batch's share does not lower it."""
    request: float = 0.0
    """US dollars an exchange, whatever its tokens."""
    batch: float = 1.0
    """What a batch costs of all this: 0.5 = half."""
    share: float = 1.0
    """What is paid of all this: `batch`, in a batch of the provider's own."""
    compute_hour: float = 0.0
    """US dollars an hour of measured model time: for models that run on one's own machines."""
    tiers: tuple[Tier, ...] = ()
    """By rising `above`."""
    since: str = ""
    """When it begins: a day (its midnight in UTC) or a moment with its offset (`2027-01-01T00:00+08:00`); empty = always."""
    hours: str = ""
    """The hours of the day (UTC, `16:30-00:30`) in which it comes before prices without hours; empty = all."""
    source: str = ""
    """Where it is stated: `noria.yaml`, `prices.json`, or a data package with its version."""


class Rates(NamedTuple):
    """Pico-dollars a token, by disjoint class, for inputs of more than `above` tokens."""

    above: int
    input: int
    cached: int
    cache_write: int
    cache_write_long: int
    audio_input: int
    image_input: int
    cached_audio: int
    output: int
    reasoning: int
    audio_output: int
    image_output: int


class Compiled(NamedTuple):
    """A price made ready for arithmetic."""

    tiers: tuple[Rates, ...]
    """Highest `above` first; the last one always applies."""
    request: int
    """Pico-dollars an exchange."""
    search: int
    """Pico-dollars a search; 0 where that is unknown (`untold`)."""
    hour: int
    """Nano-dollars an hour of model time."""
    most_input: int
    """The dearest that a token of input can be, in pico-dollars."""
    most_output: int


@lru_cache(maxsize=4096)
def compiled(price: Price) -> Compiled:
    """`price` as integers."""
    share = Decimal(str(price.share))
    base = _rates(price, None, share)
    tiers = (*(_rates(price, t, share) for t in sorted(price.tiers, key=lambda t: -t.above)), base)
    return Compiled(
        tiers,
        _pico(price.request * 1e6, share),
        _pico((price.search or 0.0) * 1e3, Decimal(1)),
        int(Decimal(str(price.compute_hour)) * 10**9),
        max(max(t[1:8]) for t in tiers),
        max(max(t[8:]) for t in tiers),
    )


def cost_of(price: Price, usage: Usage, *, model_ns: int = 0) -> int:
    """Nano-dollars that `usage` costs; `model_ns` is what a `compute_hour` is paid for.

    >>> cost_of(Price(2.5, 10.0, cached=1.25), Usage(1000, 100, cached=600))
    2750000
    """
    made = compiled(price)
    total = usage.input or 0
    for rates in made.tiers:  # the last one always applies
        if total > rates.above:
            break
    pico = made.request + parts(rates, usage) + usage.searches * made.search
    nano = (pico + PICO // 2) // PICO
    return nano + (made.hour * model_ns + HOUR_NS // 2) // HOUR_NS if made.hour else nano


def parts(rates: Rates, u: Usage) -> int:
    """Pico-dollars of a usage at these rates. Classes that together exceed the whole leave nothing of the plain class:
    a provider that counts a token in two classes is paid for both.
    """
    plain = (u.input or 0) - u.cached - u.cache_write - u.cache_write_long - u.audio_input - u.image_input
    spoken = (u.output or 0) - u.reasoning - u.audio_output - u.image_output
    return (
        (plain * rates.input if plain > 0 else 0)
        + max(0, u.cached - u.cached_audio) * rates.cached
        + u.cached_audio * rates.cached_audio
        + u.cache_write * rates.cache_write
        + u.cache_write_long * rates.cache_write_long
        + u.audio_input * rates.audio_input
        + u.image_input * rates.image_input
        + (spoken * rates.output if spoken > 0 else 0)
        + u.reasoning * rates.reasoning
        + u.audio_output * rates.audio_output
        + u.image_output * rates.image_output
    )


def untold(price: Price, usage: Usage) -> bool:
    """Whether `usage` has something that costs and whose price is not known: then `cost_of` is an estimate."""
    return usage.apart > 0 or (usage.searches > 0 and price.search is None)


def timed_only(price: Price) -> bool:
    """Whether nothing but model time is paid for, which is measured and not told."""
    if not price.compute_hour or price.request or price.search:
        return False
    return not any(any(rates[1:]) for rates in compiled(price).tiers)


def most(price: Price, input: int, output: int, *, seconds: float = 0.0) -> int:
    """Nano-dollars that no exchange of at most `input` and `output` tokens and `seconds` of model time can exceed."""
    made = compiled(price)
    nano = -(-(made.request + input * made.most_input + output * made.most_output) // PICO)
    return nano + -(-made.hour * int(seconds * 1e9) // HOUR_NS)


def in_force(schedule: tuple[Price, ...], at_ns: int) -> Price | None:
    """The price at a moment (Unix ns): of those that have begun, one of the hour before one of all day, then the latest; None
    where none has begun.
    """
    begun = [p for p in schedule if begins(p.since) <= at_ns and _within(p.hours, at_ns)]
    return max(begun, key=lambda p: (p.hours != "", begins(p.since))) if begun else None


@lru_cache(maxsize=4096)
def begins(since: str) -> int:
    """The moment (Unix ns) that a `since` names. Raises ValueError on what names none.

    >>> begins("2027-01-01") - begins("2027-01-01T00:00+08:00")
    28800000000000
    """
    if not since:
        return 0
    at = datetime.fromisoformat(since)
    return round((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()) * 1_000_000_000


@lru_cache(maxsize=4096)
def minutes_of(hours: str) -> tuple[int, int]:
    """First minute of the day, and the one after the last. Raises ValueError on what are no hours.

    >>> minutes_of("16:30-00:30")
    (990, 30)
    """
    first, _, last = hours.partition("-")
    times = [datetime.strptime(text, "%H:%M") for text in (first, last)]  # noqa: DTZ007  times of the day have no zone
    return times[0].hour * 60 + times[0].minute, times[1].hour * 60 + times[1].minute


def _within(hours: str, at_ns: int) -> bool:
    if not hours:
        return True
    first, last = minutes_of(hours)
    minute = at_ns // 60_000_000_000 % 1440
    return first <= minute < last if first < last else minute >= first or minute < last


def _rates(price: Price, tier: Tier | None, share: Decimal) -> Rates:
    def of(name: str, default: float | None) -> float | None:
        value = getattr(tier, name, None) if tier is not None else None
        return value if value is not None else default

    plain, spoken = of("input", price.input), of("output", price.output)
    cached, write, long = (of(n, getattr(price, n)) for n in ("cached", "cache_write", "cache_write_long"))
    choice = (
        plain,
        plain if cached is None else cached,
        plain if write is None else write,
        (plain if write is None else write) if long is None else long,
        plain if price.audio_input is None else price.audio_input,
        plain if price.image_input is None else price.image_input,
        (plain if cached is None else cached) if price.cached_audio is None else price.cached_audio,
        spoken,
        of("reasoning", spoken if price.reasoning is None else price.reasoning),
        spoken if price.audio_output is None else price.audio_output,
        spoken if price.image_output is None else price.image_output,
    )
    return Rates(tier.above if tier else -1, *(_pico(v, share) for v in choice if v is not None))


def _pico(usd_per_million: float, share: Decimal) -> int:
    return round(Decimal(str(usd_per_million)) * share * 1_000_000)
