"""`noria budgets`: create, list, show, delete."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from noria.cli.service import call, emit

JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")


@click.group(name="budgets")
def command() -> None:
    """Money that an organisation, team, user, key, app or tag may spend."""


@command.command()
@click.argument("scope")
@click.argument("usd", type=click.FloatRange(min=0))
@click.option("--window", type=click.Choice(["day", "week", "month", "total"]), default="total", show_default=True)
@click.option("--zone", default="UTC", show_default=True, help="IANA time zone in which days begin.")
@click.option("--soft", is_flag=True, help="Refuse nothing, only tell.")
@click.option(
    "--alert", "alerts", type=click.FloatRange(min=0, min_open=True), multiple=True, help="Share that is told; repeat."
)
@JSON
def create(scope: str, usd: float, *, window: str, zone: str, soft: bool, alerts: tuple[float, ...], as_json: bool) -> None:
    """Make a budget: `noria budgets create team:search 100 --window month`."""
    body: dict[str, Any] = {"scope": scope, "usd": usd, "window": window, "zone": zone, "hard": not soft}
    if alerts:
        body["alerts"] = list(alerts)
    made = call("POST", "/api/budgets", body)
    emit(made) if as_json else _table([made])


@command.command(name="list")
@JSON
def list_(as_json: bool) -> None:
    """Every budget, with what is used and reserved of it."""
    found = call("GET", "/api/budgets")
    emit(found) if as_json else _table(found)


@command.command()
@click.argument("id")
@JSON
def show(id: str, as_json: bool) -> None:
    """One budget."""
    found = call("GET", f"/api/budgets/{quote(id, safe='')}")
    emit(found) if as_json else _table([found])


@command.command()
@click.argument("id")
def delete(id: str) -> None:
    """Take a budget away."""
    call("DELETE", f"/api/budgets/{quote(id, safe='')}")
    click.echo(f"Deleted {id}.")


def _table(budgets: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "scope", "window", "usd", "used", "reserved", "resets", "kind", box=None)
    for b in budgets:
        amounts = [f"{b[k]:.4f}" for k in ("usd", "used_usd", "reserved_usd")]
        table.add_row(b["id"], b["scope"], b["window"], *amounts, b["resets"] or "never", "hard" if b["hard"] else "soft")
    Console().print(table if budgets else "No budgets.")
