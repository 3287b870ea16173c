"""`noria keys`: create, list, revoke."""

from __future__ import annotations

from typing import Any

import click

from noria.cli.service import call, emit


@click.group(name="keys")
def command() -> None:
    """API keys. The first one makes keys mandatory for everybody."""


@command.command()
@click.option("--app", "apps", multiple=True, help="An app it may use; repeat for more. Default: every app.")
@click.option("--budget", type=click.FloatRange(min=0), help="Hard limit in US dollars for its whole life.")
@click.option("--rpm", type=click.IntRange(min=1), help="Requests per minute.")
@click.option("--name", default="", help="For people.")
@click.option("--expires", type=click.FloatRange(min=0, min_open=True), help="Days until it ends.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def create(
    apps: tuple[str, ...], budget: float | None, rpm: int | None, *, name: str, expires: float | None, as_json: bool
) -> None:
    """Make a key. It is shown once, here."""
    made = call(
        "POST", "/api/keys", {"name": name, "apps": list(apps), "budget_usd": budget, "rpm": rpm, "expires_in_days": expires}
    )
    if as_json:
        emit(made)
        return
    click.echo(made["key"])
    click.echo(f"Keep it: it is not shown again. {_limits(made)}", err=True)


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_(as_json: bool) -> None:
    """Every key, without its text."""
    keys = call("GET", "/api/keys")
    if as_json:
        emit(keys)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "key", "name", "limits", box=None)
    for key in keys:
        table.add_row(key["id"], key["hint"], key["name"], _limits(key))
    Console().print(table if keys else "No keys: /v1 answers this machine only, without a key.")


@command.command()
@click.argument("id")
def revoke(id: str) -> None:
    """Make a key worthless at once."""
    call("DELETE", f"/api/keys/{id}")
    click.echo(f"Revoked {id}.")


def _limits(key: dict[str, Any]) -> str:
    parts = ["apps: " + (", ".join(key["apps"]) or "all")]
    if key["budget_usd"] is not None:
        parts.append(f"budget {key['budget_usd']:.2f} USD")
    if key["rpm"] is not None:
        parts.append(f"{key['rpm']} requests/min")
    return "; ".join(parts)
