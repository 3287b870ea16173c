"""What a case costs, by a plain table and decimals: nothing here asks Noria's own arithmetic."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from tests.golden.fixtures import CLASSES, PRICES, Case

_ELSE = {
    "cached": "input", "cached_audio": "cached", "cache_write": "input", "cache_write_long": "cache_write", "audio_input": "input",
    "image_input": "input", "reasoning": "output", "audio_output": "output", "image_output": "output",
}  # fmt: skip
"""What a class costs that the vendor's page states no price of."""


def rates(case: Case) -> dict[str, Decimal]:
    """US dollars a million tokens of each class, at the tier of the case's prompt."""
    row = dict(PRICES[case.model])
    for tier in row.pop("tiers", []):
        if case.sent > tier["above"]:
            row |= tier
    found: dict[str, Decimal] = {}
    for name in CLASSES:
        stated = name
        while stated not in row:
            stated = _ELSE[stated]
        found[name] = Decimal(str(row[stated]))
    return found


def usd(case: Case, tokens: dict[str, int], *, searched: bool = True) -> Decimal:
    """US dollars of these tokens, and of the searches where their price is stated."""
    row, each = PRICES[case.model], rates(case)
    sum_ = sum((Decimal(many) * each[name] for name, many in tokens.items()), Decimal(0)) / 1_000_000
    searches = Decimal(case.searches * searched) * Decimal(str(row.get("search", 0))) / 1000
    return sum_ + searches + Decimal(str(row.get("request", 0)))


def so_far(case: Case) -> Decimal:
    """US dollars that were due when a caller left before the end. Gemini grounds an answer at its end."""
    return usd(case, case.so_far(), searched=case.kind != "gemini")


def nano(amount: Decimal) -> int:
    """Whole nano-dollars, half up."""
    return int((amount * 10**9).to_integral_value(ROUND_HALF_UP))


def usage(case: Case) -> dict[str, int]:
    """The row's counts, inclusive as OpenAI has them."""
    c = case.of
    return {
        "input": case.sent, "output": case.said, "cached": c("cached") + c("cached_audio"), "reasoning": c("reasoning"),
        "cache_write": c("cache_write"), "cache_write_long": c("cache_write_long"), "audio_input": c("audio_input"),
        "audio_output": c("audio_output"), "image_input": c("image_input"), "cached_audio": c("cached_audio"),
        "image_output": c("image_output"), "searches": case.searches,
    }  # fmt: skip
