"""What models cost by the price table that comes along: the data of `genai-prices`, pinned by its version, read offline.

Reading it takes 0.3 s and 100 MB, so it is done once, when a configuration is applied, in a process of its own:
`python -m noria.gateway.prices` takes `[[provider, model, url], …]` on stdin and gives each one's prices on stdout.
"""

from __future__ import annotations

import datetime as dt
import sys
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import msgspec

from noria.contracts.price import Price, Tier

PACKAGE = "genai-prices"
VENDORS = {
    "moonshot": "moonshotai", "moonshot_intl": "moonshotai", "zhipu": "zhipuai", "xai": "x-ai", "gemini": "google",
    "openai_compatible": "", "bedrock": "aws", "vertex": "google",
}  # fmt: skip
"""Our names of vendors that the table has under another; empty = found by URL."""
_CLASSES = {
    "input": "input_mtok", "output": "output_mtok", "cached": "cache_read_mtok", "cache_write": "cache_write_mtok",
    "cache_write_long": "cache_write_1h_mtok", "reasoning": "output_reasoning_mtok", "audio_input": "input_audio_mtok",
    "audio_output": "output_audio_mtok", "image_input": "input_image_mtok", "cached_audio": "cache_audio_read_mtok",
    "image_output": "output_image_mtok", "search": "web_searches_kcount",
}  # fmt: skip
_TIERED = ("input", "output", "cached", "cache_write", "cache_write_long", "reasoning")


class Found(msgspec.Struct, frozen=True):
    """What the table has of a model; no prices where it does not know it."""

    prices: tuple[Price, ...] = ()
    model: str = ""
    """The table's own name of it: `anthropic/claude-sonnet-4-5`."""
    apart: tuple[str, ...] = ()
    """What is priced besides and therefore not counted: `storage_searches_kcount`, …"""


def source() -> str:
    """The table and its version."""
    return f"{PACKAGE} {version(PACKAGE)}"


def look_up(provider: str, model: str, url: str = "") -> Found:
    """A model's prices by rising day; nothing where the table does not know the provider or the model."""
    from genai_prices.data_snapshot import get_snapshot

    name = VENDORS.get(provider, provider)
    if not name and not url:
        return Found()
    try:
        vendor, info = get_snapshot().find_provider_model(model, None, name or None, None if name else url)
    except LookupError:
        return Found()
    dated = info.prices if isinstance(info.prices, list) else [None]
    batch = next((v.prices for v in info.price_variants or () if v.when == {"processing": "batch"}), None)
    prices: dict[tuple[str, str], Price] = {}
    apart: set[str] = set()
    for entry in dated:
        stated = info.prices if entry is None else entry.prices
        since, hours = _when(None if entry is None else entry.constraint)
        made = _price(stated, batch, since, hours)
        if made is not None:
            prices[since, hours] = made
        apart |= {k for k, v in vars(stated).items() if v is not None and k not in _CLASSES.values() and k != "requests_kcount"}
    return Found(tuple(prices[when] for when in sorted(prices)), f"{vendor.id}/{info.id}", tuple(sorted(apart)))


def _when(constraint: Any) -> tuple[str, str]:
    """`since` and `hours` of a price. Hours of the day come before what has none, as in the table's own reckoning."""
    if constraint is None:
        return "", ""
    if hasattr(constraint, "start_date"):
        return constraint.start_date.isoformat(), ""
    day = dt.date(2000, 1, 1)  # its times have zones; `hours` are UTC
    times = [dt.datetime.combine(day, t) for t in (constraint.start_time, constraint.end_time)]
    first, last = ((t.astimezone(dt.UTC) if t.tzinfo else t).strftime("%H:%M") for t in times)
    return "", f"{first}-{last}"


def _price(stated: Any, batch: Any, since: str, hours: str) -> Price | None:
    values = {ours: getattr(stated, theirs, None) for ours, theirs in _CLASSES.items()}
    if values["input"] is None:
        return None
    flat = {k: float(_base(v)) for k, v in values.items() if v is not None}
    starts = sorted({t.start for k in _TIERED if (v := values[k]) is not None and hasattr(v, "tiers") for t in v.tiers})
    tiers = tuple(
        Tier(start, **{k: float(_at(values[k], start)) for k in _TIERED if hasattr(values[k], "tiers")}) for start in starts
    )
    request = getattr(stated, "requests_kcount", None)
    return Price(
        **{"output": 0.0, **flat},  # a model of embeddings gives no tokens
        request=float(_base(request) / 1000) if request is not None else 0.0,
        batch=_share(stated, batch),
        tiers=tiers,
        since=since,
        hours=hours,
        source=source(),
    )


def _base(value: Any) -> Decimal:
    return Decimal(value.base if hasattr(value, "tiers") else value)


def _at(value: Any, start: int) -> Decimal:
    found = Decimal(value.base)
    for tier in value.tiers:
        if tier.start <= start:
            found = Decimal(tier.price)
    return found


def _share(stated: Any, batch: Any) -> float:
    """What a batch costs of the ordinary price: the dearest of its classes, so that it is never priced too low."""
    if batch is None:
        return 1.0
    shares = [
        _base(cheap) / _base(full)
        for name in ("input_mtok", "output_mtok")
        if (cheap := getattr(batch, name, None)) is not None and (full := getattr(stated, name, None)) and _base(full)
    ]
    return float(max(shares)) if shares else 1.0


def main() -> None:
    """See the module."""
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=list[tuple[str, str, str]])
    sys.stdout.buffer.write(msgspec.json.encode([look_up(*a) for a in asked]))


if __name__ == "__main__":
    main()
