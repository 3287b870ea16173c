"""Invoices of several makes against the ledger: exact sums, errors by line, and why they differ."""

from __future__ import annotations

import pytest

from noria.app.invoice import Line, compare, family, read_invoice
from noria.contracts.error import RequestError
from noria.contracts.exchange import Usage
from noria.contracts.trace import Total

GENERIC = (
    "date,model,cost_usd,input_tokens,output_tokens\n2026-11-01,gpt-5-mini,1.25,1000,200\n2026-11-01,gpt-5-mini,0.25,10,2\n"
)
OPENAI = "start_time,start_time_iso,model,amount_value,input_tokens,output_tokens\n1761955200,2025-11-01T00:00:00+00:00,gpt-5-mini-2025-08-07,0.000000001,7,3\n"
ANTHROPIC = (
    "usage_date_utc,model_version,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,usage_input_tokens_cache_read,"
    "usage_output_tokens\n2026-11-02,claude-sonnet-4-5-20250929,10,20,30,5\n"
)


def test_the_columns_of_the_usual_exports_are_recognised() -> None:
    assert read_invoice(GENERIC) == [Line("2026-11-01", "gpt-5-mini", 1_500_000_000, 1010, 202)]
    assert read_invoice(OPENAI) == [Line("2025-11-01", "gpt-5-mini-2025-08-07", 1, 7, 3)]
    assert read_invoice("\ufeff" + ANTHROPIC) == [Line("2026-11-02", "claude-sonnet-4-5-20250929", None, 60, 5)]


def test_every_mistake_is_told_with_its_line() -> None:
    bad = "date,model,cost_usd\n2026-13-01,m,1\n2026-11-01,m,much\n2026-11-01,,1\n\n2026-11-01,m\n"
    with pytest.raises(RequestError) as e:
        read_invoice(bad)
    for words in (
        "line 2: '2026-13-01' is not a date",
        "line 3: 'much' is not an amount",
        "line 4: the model",
        "line 6: it has 2",
    ):
        assert words in e.value.message
    with pytest.raises(RequestError, match="no column for day, model"):
        read_invoice("a,b\n1,2\n")
    with pytest.raises(RequestError, match="it is empty"):
        read_invoice("")


def total(cost: int, tokens: int = 1010, *, day="2026-11-01", model="gpt-5-mini-2025-08-07", **more) -> Total:
    counts = {"unknown": 0, "estimated": 0, "zero": 0} | more
    return Total((day, model), 3, cost, counts["unknown"], counts["estimated"], counts["zero"], Usage(tokens, 202))


@pytest.mark.parametrize(
    ("ledger", "word"),
    [
        ([total(1_500_000_000)], None),
        ([total(1_499_000_000)], None),
        ([total(1_200_000_000)], "The tokens agree, the money does not"),
        ([total(750_000_000, 500)], "More tokens are billed"),
        ([total(1_400_000_000, 900, estimated=2)], "2 exchanges are estimated"),
        ([total(0, unknown=3)], "3 exchanges have no price"),
        ([], "billed but not recorded"),
    ],
)
def test_a_difference_says_why(ledger, word) -> None:
    (found,) = compare(read_invoice(GENERIC), ledger)
    assert (found.day, found.model) == ("2026-11-01", "gpt-5-mini")
    assert (word is None and not found.causes) or word in " ".join(found.causes)


def test_what_was_not_billed_is_shown_too() -> None:
    found = compare(read_invoice(GENERIC), [total(1_500_000_000), total(5, model="other")])
    assert [(d.model, d.invoice_nanousd) for d in found] == [("gpt-5-mini", 1_500_000_000), ("other", None)]
    assert "recorded but not billed" in found[1].causes[0]


def test_an_alias_and_its_dated_name_are_one_model() -> None:
    assert family("openai/GPT-5-mini-2025-08-07") == family("gpt-5-mini")
    assert family("gpt-5-pro") != family("gpt-5")
