"""The running account of one exchange, and the row it becomes."""

from __future__ import annotations

import asyncio

import pytest

from noria.contracts.error import Blocked, LimitExceeded, NotFound, StoreError, Unavailable, UpstreamError
from noria.contracts.exchange import Exchange, Usage
from noria.contracts.price import cost_of as price_of
from noria.contracts.release import Endpoint, Key, Price, Release
from noria.contracts.trace import StageTime
from noria.kit.step import Stopwatch
from noria.observe.account import Account, error_code, outcome

X = Exchange("x", "t", "s", "local", "chat", "support", False, {}, 5)
PRICED = Endpoint("gpt", "openai_compatible", "gpt-5", vendor="openai", price=Price(input=0.25, output=2.0, cached=0.025))


def account(endpoint: Endpoint | None = PRICED, usage: Usage | None = None, error: BaseException | None = None) -> Account:
    made = Account(Stopwatch())
    made.endpoint, made.error = endpoint, error
    made.usage = usage or Usage()
    return made


def test_prices_are_dollars_a_million_tokens_and_costs_nano_dollars() -> None:
    assert price_of(Price(input=1.0, output=0.0), Usage(1, 0)) == 1000
    assert price_of(Price(input=0.25, output=2.0), Usage(1_000_000, 1_000_000)) == 2_250_000_000


def test_cached_tokens_are_part_of_the_input_and_cost_their_own_price() -> None:
    usage = Usage(input=1000, output=0, cached=800)
    assert price_of(Price(input=1.0, output=0.0, cached=0.1), usage) == 200 * 1000 + 800 * 100
    assert price_of(Price(input=1.0, output=0.0), usage) == 1000 * 1000


def test_reasoning_is_part_of_the_output() -> None:
    assert price_of(Price(input=0.0, output=1.0), Usage(0, 10, reasoning=8)) == 10_000


def test_more_cached_than_sent_is_not_a_credit() -> None:
    assert price_of(Price(input=1.0, output=0.0, cached=0.0), Usage(5, 0, cached=9)) == 0


def test_a_known_price_and_count_is_exact() -> None:
    assert account(usage=Usage(4, 1)).cost() == (3000, "exact")


def test_an_unknown_price_is_unknown_and_not_zero() -> None:
    assert account(Endpoint("m", "p", "m"), Usage(4, 1)).cost() == (None, "unknown")


def test_what_asked_no_endpoint_costs_nothing() -> None:
    assert account(None, Usage(4, 1)).cost() == (0, "exact")


def test_an_unknown_count_is_unknown_and_not_zero() -> None:
    assert account(usage=Usage()).cost() == (None, "unknown")
    assert account(usage=Usage(None, 5)).cost() == (None, "unknown")


def test_what_reached_no_model_cost_nothing() -> None:
    assert account(None, error=NotFound("no")).cost() == (0, "exact")


@pytest.mark.parametrize(
    ("error", "word", "code"),
    [
        (None, "ok", ""),
        (Blocked("no", check="pii", side="input"), "blocked", "content_filter"),
        (NotFound("no", code="model_not_found"), "refused", "model_not_found"),
        (LimitExceeded("no", code="rate_limit_exceeded"), "refused", "rate_limit_exceeded"),
        (UpstreamError("no", code="upstream_timeout"), "error", "upstream_timeout"),
        (Unavailable("no"), "error", "unavailable"),
        (StoreError("no"), "error", "StoreError"),
        (KeyError("k"), "error", "KeyError"),
        (asyncio.CancelledError(), "cancelled", "cancelled"),
    ],
)
def test_an_end_has_one_word_and_a_stable_code(error: BaseException | None, word: str, code: str) -> None:
    assert (outcome(error), error_code(error)) == (word, code)


def test_a_row_tells_who_asked_what_of_whom() -> None:
    made = account(usage=Usage(4, 1))
    made.status, made.served_model, made.cut_tokens = 200, "gpt-5-2026", 7
    made.watch.times.append(("admit", 1, 2))
    release = Release("r1:x", "main", "support", (PRICED,))
    x = Exchange(
        "x",
        "t",
        "s",
        "local",
        "chat",
        "support",
        True,
        {},
        5,
        key=Key("k1", "h"),
        subject="sub",
        release=release,
        conversation="c",
    )
    row = made.row(x, worker="n0-w1", config="c1:y")
    assert (row.app, row.release, row.release_name, row.key, row.subject) == ("support", "r1:x", "main", "k1", "sub")
    assert (row.endpoint, row.provider, row.served_model, row.cost_nanousd) == ("gpt", "openai", "gpt-5-2026", 3000)
    assert (row.worker, row.config, row.stream, row.cut_tokens, row.started_ns) == ("n0-w1", "c1:y", True, 7, 5)
    assert row.stages == (StageTime("admit", 1, 2),)


def test_overhead_is_the_time_that_no_model_took_and_never_negative() -> None:
    made = account()
    row = made.row(X, worker="w", config="c")
    assert row.overhead_ns == row.duration_ns > 0
    made.model_ns = 10**12
    assert made.row(X, worker="w", config="c").overhead_ns == 0


def test_a_refused_name_is_kept_but_not_a_novel() -> None:
    long = Exchange("x", "t", "s", "local", "chat", "n" * 5000, False, {}, 5)
    row = account(None, error=NotFound("e" * 5000)).row(long, worker="w", config="c")
    assert (len(row.app), len(row.error_message), row.release) == (200, 500, "")


def test_both_attempts_of_a_race_are_paid_the_loser_by_estimate() -> None:
    dear = Endpoint("dear", "p", "m", price=Price(input=10.0, output=100.0))
    whole = account(usage=Usage(4, 1))
    whole.hedged.append(dear)
    assert whole.cost() == (3000 + 4 * 10_000 + 100_000, "estimated"), "it may have had the whole answer ready"
    streamed = account(usage=Usage(4, 1))
    streamed.first_ns = 5
    streamed.hedged.append(dear)
    assert streamed.cost() == (3000 + 4 * 10_000, "estimated"), "it had not begun: the prompt alone"
    unknown = account(usage=Usage(4, 1))
    unknown.hedged.append(Endpoint("free?", "p", "m"))
    assert unknown.cost() == (None, "unknown")
