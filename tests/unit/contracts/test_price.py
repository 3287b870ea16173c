"""What usage costs: golden sums worked out by hand from the vendors' price pages, exact to the nano-dollar."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from noria.contracts.price import Price, Tier, begins, compiled, cost_of, in_force, most, timed_only, untold
from noria.contracts.usage import Usage

GPT5 = Price(1.25, 10.0, cached=0.125, batch=0.5)
SONNET = Price(
    3.0, 15.0, cached=0.3, cache_write=3.75, cache_write_long=6.0,
    tiers=(Tier(200_000, 6.0, 22.5, cached=0.6, cache_write=7.5, cache_write_long=12.0),),
)  # fmt: skip
GEMINI = Price(1.25, 10.0, cached=0.125, tiers=(Tier(200_000, 2.5, 15.0, cached=0.25),))
AUDIO = Price(2.5, 10.0, cached=1.25, audio_input=40.0, audio_output=80.0, image_input=5.0)


@pytest.mark.parametrize(
    ("price", "usage", "usd"),
    [
        (GPT5, Usage(1000, 500), "0.00625"),
        (GPT5, Usage(10_000, 500, cached=8_192), "0.008284"),  # 1,808 × 1.25 + 8,192 × 0.125 + 500 × 10
        (GPT5, Usage(1000, 5000, reasoning=4800), "0.05125"),  # reasoning costs what output costs
        (Price(1.1, 4.4, reasoning=8.8), Usage(100, 1000, reasoning=900), "0.00847"),
        (SONNET, Usage(21_000, 400, cached=18_000, cache_write=2_000), "0.0219"),
        (SONNET, Usage(21_000, 400, cached=0, cache_write=10_000, cache_write_long=10_000), "0.1065"),
        (SONNET, Usage(200_000, 1000), "0.615"),
        (SONNET, Usage(200_001, 1000), "1.222506"),  # all of it at the tier's price
        (GEMINI, Usage(250_000, 2000, cached=100_000), "0.43"),
        (AUDIO, Usage(1500, 700, audio_input=1000, audio_output=500), "0.08325"),
        (AUDIO, Usage(1500, 100, image_input=765), "0.0066625"),
        (Price(0.0, 0.0, request=0.005), Usage(10, 10), "0.005"),
        (Price(0.02, 0.0), Usage(8, 0), "0.00000016"),
        (Price(0.0375, 0.15), Usage(1, 1), "0.000000188"),  # 187.5 nano-dollars: half up
        (GPT5, Usage(0, 0), "0"),
    ],
)
def test_golden_costs(price: Price, usage: Usage, usd: str) -> None:
    assert cost_of(price, usage) == int(Decimal(usd) * 10**9)


def test_a_batch_costs_its_share_of_every_class() -> None:
    assert cost_of(replace(GPT5, share=GPT5.batch), Usage(1000, 500)) == 3_125_000


def test_model_time_is_paid_by_the_hour() -> None:
    assert cost_of(Price(0.0, 0.0, compute_hour=0.05), Usage(), model_ns=36_000_000_000) == 500_000


def test_a_provider_that_counts_a_token_in_two_classes_leaves_no_negative_rest() -> None:
    assert cost_of(Price(1.0, 0.0, cached=0.0), Usage(5, 0, cached=9)) == 0


def test_the_price_of_a_moment_is_the_last_that_has_begun() -> None:
    old, new = Price(1, 1), Price(2, 2, since="2026-10-14")
    midnight = begins("2026-10-14")
    assert in_force((old, new), midnight - 1) is old
    assert in_force((old, new), midnight) is new
    assert in_force((new,), midnight - 1) is None


@pytest.mark.parametrize(
    ("since", "utc"), [("2026-10-14T00:00+08:00", "2026-10-13T16:00"), ("2026-10-14T00:00-07:00", "2026-10-14T07:00")]
)
def test_a_price_may_begin_at_midnight_elsewhere(since: str, utc: str) -> None:
    old, new = Price(1, 1), Price(2, 2, since=since)
    at = begins(utc + "+00:00")
    assert in_force((new, old), at - 1) is old
    assert in_force((new, old), at) is new


def test_the_price_of_an_hour_comes_before_that_of_the_day() -> None:
    day, peak, night = Price(1, 1, since="2026-01-01"), Price(2, 2, hours="01:00-04:00"), Price(3, 3, hours="22:30-00:30")
    at = [
        in_force((day, peak, night), begins(f"2026-10-14T{t}+00:00"))
        for t in ("00:29", "00:30", "01:00", "03:59", "04:00", "22:30")
    ]
    assert at == [night, day, peak, peak, day, night]


def test_searches_and_classes_of_audio_and_images_are_paid_once() -> None:
    price = Price(1.0, 2.0, cached=0.1, audio_input=4.0, cached_audio=0.4, image_output=30.0, search=10.0, batch=0.5, share=0.5)
    usage = Usage(1000, 2290, cached=600, audio_input=100, cached_audio=500, image_output=1290, searches=3)
    half = 300 * 1000 + 100 * 100 + 500 * 400 + 100 * 4000 + 1000 * 2000 + 1290 * 30_000
    assert cost_of(price, usage) == half // 2 + 3 * 10_000_000, "a batch does not lower what a search costs"
    assert not untold(price, usage)
    assert untold(replace(price, search=None), usage)
    assert untold(price, Usage(1, 1, apart=1))


def test_a_price_of_time_alone_needs_no_tokens() -> None:
    assert timed_only(Price(0.0, 0.0, compute_hour=1.0))
    assert not timed_only(Price(0.0, 0.0))
    assert not timed_only(Price(0.0, 1.0, compute_hour=1.0))
    assert not timed_only(Price(0.0, 0.0, compute_hour=1.0, tiers=(Tier(5, input=1.0),)))


COUNTS = st.integers(0, 400_000)


@given(st.sampled_from([GPT5, SONNET, GEMINI, AUDIO]), st.lists(COUNTS, min_size=9, max_size=9))
def test_no_usage_costs_more_than_the_bound_of_its_tokens(price: Price, n: list[int]) -> None:
    usage = Usage(sum(n[:4]) + n[4], n[5] + n[6] + n[8], n[0], n[5], n[1], n[2], n[3], n[6], n[4], n[0] // 2, n[8])
    assert cost_of(price, usage) <= most(price, usage.input or 0, usage.output or 0)


def test_prices_are_whole_pico_dollars() -> None:
    assert compiled(Price(0.0375, 0.1)).tiers[0][1] == 37_500
