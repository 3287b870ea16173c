"""A provider's invoice against the ledger: what differs, by model and day, and why that may be.

Reads CSV exports whose columns are recognised by name: OpenAI's and Anthropic's usage and cost exports, or the generic
`date,model,cost_usd[,input_tokens,output_tokens]`. Amounts are exact decimals; days are UTC, as providers bill.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import msgspec

from noria.contracts.error import RequestError
from noria.contracts.trace import Total

COLUMNS: dict[str, tuple[str, ...]] = {
    "day": ("date", "day", "start_time_iso", "usage_date_utc", "usage_date", "bucket_start", "starting_at", "start_time", "time"),
    "model": ("model", "model_version", "snapshot_id", "model_name", "line_item"),
    "cost": ("cost_usd", "cost", "amount_value", "amount_usd", "amount", "total_cost", "list_amount"),
    "input": ("input_tokens", "prompt_tokens", "n_context_tokens_total", "usage_input_tokens", "context_tokens"),
    "output": ("output_tokens", "completion_tokens", "n_generated_tokens_total", "usage_output_tokens", "generated_tokens"),
    "cached": ("input_cached_tokens", "usage_input_tokens_cache_read", "cache_read_input_tokens"),
    "written": (
        "usage_input_tokens_cache_write_5m", "usage_input_tokens_cache_write_1h", "cache_creation_input_tokens",
    ),
    "fresh": ("usage_input_tokens_no_cache", "uncached_input_tokens"),
}  # fmt: skip
"""What columns are called, by what they hold. `fresh` is input that excludes `cached` and `written` (Anthropic)."""
_DATED = re.compile(r"-(20\d\d-?\d\d-?\d\d)\Z")
ROWS = 1_000_000
SAME = Decimal("0.001")
"""Relative difference below which two sums are the same."""


class Line(msgspec.Struct, frozen=True):
    """One model on one day, by the invoice."""

    day: str
    model: str
    nanousd: int | None
    input: int | None = None
    output: int | None = None


class Difference(msgspec.Struct, frozen=True):
    """One model on one day: invoice against ledger. Nano-dollars and tokens; None = not stated."""

    day: str
    model: str
    invoice_nanousd: int | None
    ledger_nanousd: int | None
    invoice_input: int | None
    ledger_input: int | None
    invoice_output: int | None
    ledger_output: int | None
    exchanges: int
    causes: tuple[str, ...]


def read_invoice(text: str) -> list[Line]:
    """The lines of an export, summed by day and model. Raises `RequestError` with every mistake, each with its line."""
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    header = [re.sub(r"[^a-z0-9]+", "_", h.strip().lower()).strip("_") for h in next(rows, [])]
    at = {what: [header.index(n) for n in names if n in header] for what, names in COLUMNS.items()}
    missing = [what for what in ("day", "model") if not at[what]]
    if missing or not (at["cost"] or at["input"] or at["fresh"]):
        wanted = ", ".join(missing) or "cost"
        raise RequestError(
            f"The header has no column for {wanted}: {', '.join(header) or 'it is empty'}.",
            code="bad_invoice",
            hint="Write date,model,cost_usd[,input_tokens,output_tokens], or give the provider's own export.",
        )
    sums: dict[tuple[str, str], list[int | None]] = {}
    problems: list[str] = []
    for number, row in enumerate(rows, 2):
        if number > ROWS:
            raise RequestError(f"The invoice has more than {ROWS} lines.", code="bad_invoice")
        if not any(cell.strip() for cell in row):
            continue
        try:
            line = _line(row, at)
        except ValueError as e:
            problems.append(f"line {number}: {e}")
            continue
        found = sums.setdefault((line.day, line.model), [None, None, None])
        for i, value in enumerate((line.nanousd, line.input, line.output)):
            if value is not None:
                found[i] = (found[i] or 0) + value
    if problems:
        more = f" … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise RequestError("; ".join(problems[:20]) + more + ".", code="bad_invoice", hint="Correct these lines.")
    return [Line(day, model, *values) for (day, model), values in sorted(sums.items())]


def _line(row: Sequence[str], at: dict[str, list[int]]) -> Line:
    def cell(index: int) -> str:
        if index >= len(row):
            raise ValueError(f"it has {len(row)} fields, not {index + 1}")
        return row[index].strip()

    def tokens(what: str) -> int | None:
        found = [v for i in at[what] if (v := cell(i))]
        return sum(_tokens(v, what) for v in found) if found else None

    day, model = _day(cell(at["day"][0])), cell(at["model"][0])
    if not model:
        raise ValueError("the model is missing")
    cost = cell(at["cost"][0]) if at["cost"] else ""
    given = tokens("input")
    if given is None and at["fresh"]:
        given = (tokens("fresh") or 0) + (tokens("cached") or 0) + (tokens("written") or 0)
    return Line(day, model, _nano(cost) if cost else None, given, tokens("output"))


def _day(text: str) -> str:
    if text.isdecimal() and len(text) >= 9:
        return dt.datetime.fromtimestamp(int(text), dt.UTC).date().isoformat()
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a date such as 2026-11-22") from None
    return (at.astimezone(dt.UTC) if at.tzinfo else at).date().isoformat()


def _nano(text: str) -> int:
    try:
        value = Decimal(text.replace("$", "").replace(",", "").strip())
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount in US dollars") from None
    if not value.is_finite():
        raise ValueError(f"{text!r} is not an amount in US dollars")
    return int((value * 10**9).to_integral_value())


def _tokens(text: str, what: str) -> int:
    plain = text.replace(",", "")
    if not re.fullmatch(r"\d+(\.0+)?", plain):
        raise ValueError(f"{text!r} is not a number of {what} tokens")
    return int(plain.partition(".")[0])


def family(model: str) -> str:
    """A model's name without its date, so that an alias and what it stands for are one.

    >>> family("gpt-5-mini-2025-08-07"), family("claude-sonnet-4-5-20250929"), family("openai/gpt-5")
    ('gpt-5-mini', 'claude-sonnet-4-5', 'gpt-5')
    """
    return _DATED.sub("", model.rpartition("/")[2].strip().lower())


def compare(invoice: Sequence[Line], ledger: Sequence[Total]) -> list[Difference]:
    """Every model and day of either side; `ledger` is grouped by (day, model), of the days of the invoice."""
    billed: dict[tuple[str, str], list[Line]] = {}
    for line in invoice:
        billed.setdefault((line.day, family(line.model)), []).append(line)
    ours: dict[tuple[str, str], list[Total]] = {}
    for total in ledger:
        day, model = total.group
        ours.setdefault((day, family(model)), []).append(total)
    return [_difference(key, billed.get(key, []), ours.get(key, [])) for key in sorted({*billed, *ours})]


def _difference(key: tuple[str, str], lines: list[Line], totals: list[Total]) -> Difference:
    def stated(name: str) -> int | None:
        found = [v for x in lines if (v := getattr(x, name)) is not None]
        return sum(found) if found else None

    made = Difference(
        *key,
        stated("nanousd"),
        sum(t.cost_nanousd for t in totals) if totals else None,
        stated("input"),
        sum(t.usage.input or 0 for t in totals) if totals else None,
        stated("output"),
        sum(t.usage.output or 0 for t in totals) if totals else None,
        sum(t.exchanges for t in totals),
        (),
    )
    return msgspec.structs.replace(made, causes=tuple(_causes(made, totals)))


def _causes(d: Difference, totals: list[Total]) -> list[str]:
    """Likely reasons, the surest first; none where both agree."""
    if d.ledger_nanousd is None:
        return ["It is billed but not recorded: traffic past Noria, another spelling of the model, or traces that are gone."]
    if d.invoice_nanousd is None and d.invoice_input is None:
        return ["It is recorded but not billed: the invoice ends earlier, or the model is billed by somebody else."]
    causes = []
    unknown, estimated = sum(t.unknown for t in totals), sum(t.estimated for t in totals)
    if unknown:
        causes.append(f"{unknown} exchanges have no price here.")
    money = _far(d.invoice_nanousd, d.ledger_nanousd)
    tokens = _far(d.invoice_input, d.ledger_input) or _far(d.invoice_output, d.ledger_output)
    if (money or tokens) and estimated:
        causes.append(f"{estimated} exchanges are estimated: their usage was never told (callers who left, crashes).")
    if money and not tokens and d.invoice_input is not None:
        causes.append("The tokens agree, the money does not: another price, a discount, a batch or a service tier.")
    elif money and not tokens and d.invoice_input is None and not causes:
        causes.append("The invoice states no tokens: another price, cached tokens, or calls past Noria.")
    if tokens and (d.invoice_input or 0) > (d.ledger_input or 0):
        causes.append(
            "More tokens are billed than recorded: calls past Noria, retries that the provider billed, or a day's edge."
        )
    elif tokens:
        causes.append("Fewer tokens are billed than recorded: a day's edge, or an invoice that is not final.")
    return causes


def _far(a: int | None, b: int | None) -> bool:
    return a is not None and b is not None and abs(a - b) > SAME * max(abs(a), abs(b), 1)
