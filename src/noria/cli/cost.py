"""`noria cost`: show, prices, reconcile."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from noria.cli.service import call, emit
from noria.contracts.error import ConfigError
from noria.contracts.trace import GROUPS

JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")


@click.group(name="cost")
def command() -> None:
    """Money: what was spent, at which prices, and whether the invoice agrees."""


@command.command()
@click.option("--by", type=click.Choice(GROUPS), multiple=True, default=("app",), show_default=True, help="Repeat for more.")
@click.option("--since", default="", help="From this time on (ISO 8601, UTC where no zone is given).")
@click.option("--until", default="", help="Before this time.")
@click.option("--filter", "where", default="", help="As in `noria trace list`: app=support tag=env=prod")
@JSON
def show(*, by: tuple[str, ...], since: str, until: str, where: str, as_json: bool) -> None:
    """What exchanges cost, dearest first."""
    query = [("by", b) for b in by] + [(k, v) for k, v in (("since", since), ("until", until), ("filter", where)) if v]
    found = call("GET", f"/api/cost?{urlencode(query)}")
    if as_json:
        emit(found)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*by, "exchanges", "tokens in", "cached", "tokens out", "cost USD", "not exact", box=None)
    for g in [*found["groups"], *([{**dict.fromkeys(by, "total"), **found["total"]}] if found["total"] else [])]:
        unsure = ", ".join(f"{g[k]} {k}" for k in ("unknown", "estimated", "zero") if g[k])
        numbers = [str(g[k]) for k in ("exchanges", "tokens_in", "cached", "tokens_out")]
        table.add_row(*(g[b] or "–" for b in by), *numbers, f"{g['cost_usd']:.6f}", unsure)
    Console().print(table if found["groups"] else "Nothing was recorded.")


@command.command()
@click.argument("model", default="")
@JSON
def prices(model: str, as_json: bool) -> None:
    """What a model costs now, and where that is stated; all models without a name."""
    found = call("GET", f"/api/cost/prices?{urlencode({'model': model})}")
    if as_json:
        emit(found)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "endpoint", "USD a million tokens", "since", "stated in", box=None)
    for e in found:
        p: dict[str, Any] = e["price"] or {}
        words = ", ".join(
            f"{k} {v:g}" for k, v in p.items() if isinstance(v, float | int) and not (k == "batch" and v == 1) and v
        )
        words += "".join(
            f"; above {t['above']}: input {t.get('input', '–')}, output {t.get('output', '–')}" for t in p.get("tiers", ())
        )
        table.add_row(
            e["name"],
            f"{e['provider']}/{e['model']}",
            words or "unknown",
            p.get("since", "always") if p else "",
            p.get("source", ""),
        )
    Console().print(table if found else f"No model is called {model!r}.")


@command.command()
@click.argument("invoice", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@JSON
def reconcile(invoice: Path, as_json: bool) -> None:
    """Compare a provider's CSV export with what was recorded, by model and day. Exit 1 where they differ by more than 0.1 %."""
    try:
        text = invoice.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{invoice} cannot be read: {e}.") from None
    found = call("POST", "/api/cost/reconcile", {"csv": text})
    differs = [d for d in found["differences"] if d["causes"]]
    if as_json:
        emit(found)
    else:
        _compared(found["differences"])
    if differs:
        raise click.exceptions.Exit(1)


def _compared(differences: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    def usd(value: float | None) -> str:
        return "–" if value is None else f"{value:.6f}"

    table = Table(
        "day", "model", "invoice USD", "recorded USD", "difference", "tokens billed", "recorded", "likely causes", box=None
    )
    for d in differences:
        tokens = ["/".join("–" if t is None else str(t) for t in d[k]) for k in ("invoice_tokens", "ledger_tokens")]
        money = [usd(d[k]) for k in ("invoice_usd", "ledger_usd", "difference_usd")]
        table.add_row(d["day"], d["model"], *money, *tokens, " ".join(d["causes"]) or "agrees")
    Console().print(table if differences else "Neither the invoice nor the ledger has anything.")
