"""`noria limits`: create, list, show, delete."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from noria.cli.service import call, emit
from noria.contracts.error import NotFound

JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
UNITS = {"requests": "requests/min", "tokens": "tokens/min", "concurrent": "at a time"}


@click.group(name="limits")
def command() -> None:
    """How fast an organisation, team, user, key, app or tag may ask, and how far it is."""


@command.command()
@click.argument("scope")
@click.option("--rpm", type=click.IntRange(min=1), help="Requests per minute.")
@click.option("--tpm", type=click.IntRange(min=1), help="Tokens per minute.")
@click.option("--concurrent", type=click.IntRange(min=1), help="Requests under way at once.")
@click.option("--queue", type=click.FloatRange(0, 300), default=0.0, help="Seconds that a request may wait for its turn.")
@click.option(
    "--queue-size", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many may wait, in each worker."
)
@JSON
def create(
    scope: str, *, rpm: int | None, tpm: int | None, concurrent: int | None, queue: float, queue_size: int, as_json: bool
) -> None:
    """Make a limit: `noria limits create team:search --rpm 600 --concurrent 8`."""
    if rpm is tpm is concurrent is None:
        raise click.UsageError("Give --rpm, --tpm or --concurrent.")
    made = call(
        "POST",
        "/api/limits",
        {
            "scope": scope,
            "requests_per_minute": rpm,
            "tokens_per_minute": tpm,
            "concurrent": concurrent,
            "queue_seconds": queue,
            "queue_size": queue_size,
        },
    )
    emit(made) if as_json else _table([made])


@command.command(name="list")
@JSON
def list_(as_json: bool) -> None:
    """Every limit and how it stands; of keys' own rates those that are used in this minute."""
    found = call("GET", "/api/limits")
    emit(found) if as_json else _table(found)


@command.command()
@click.argument("scope")
@JSON
def show(scope: str, as_json: bool) -> None:
    """The limits of a scope (or one, by its id), and what each worker holds of them: `noria limits show team:search`."""
    found = call("GET", f"/api/limits?scope={quote(scope, safe='')}")
    if not found:
        raise NotFound(f"No limit has the scope or id {scope!r}. See them all: noria limits list")
    emit(found) if as_json else _table(found, workers=True)


@command.command()
@click.argument("id")
def delete(id: str) -> None:
    """Take a limit away."""
    call("DELETE", f"/api/limits/{quote(id, safe='')}")
    click.echo(f"Deleted {id}.")


def _table(limits: list[dict[str, Any]], *, workers: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "scope", "unit", "limit", "used", "leased", "left", "resets in", box=None)
    for limit in limits:
        for use in limit["use"]:
            resets = "" if use["resets_in_s"] is None else f"{use['resets_in_s']:.0f} s"
            amounts = [str(use[k]) for k in ("limit", "used", "leased", "left")]
            table.add_row(limit["id"], limit["scope"], UNITS[use["unit"]], *amounts, resets)
            if workers:
                for lease in use["leases"]:
                    table.add_row("", "", f"  {lease['worker']}", "", str(lease["taken"] - lease["free"]), str(lease["free"]))
                if use["elsewhere"]:
                    table.add_row("", "", "  other nodes", "", str(use["elsewhere"]))
    Console().print(table if limits else "No limits.")
