"""What `noria orgs`, `noria teams` and `noria users` share: adding, listing, removing."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from noria.cli.keys import pair
from noria.cli.service import call, emit

JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
TITLE = click.option("--title", default="", help="For people.")
METADATA = click.option("--metadata", multiple=True, help="name=value for people and their tools; repeat for more.")


def add(kind: str, body: dict[str, Any], *, metadata: tuple[str, ...], as_json: bool) -> None:
    """Make one."""
    made = call("POST", f"/api/{kind}s", {**body, "metadata": dict(pair(m) for m in metadata)})
    if as_json:
        emit(made)
    else:
        click.echo(f"Added the {kind} {made['name']}.")


def show_all(kind: str, *, as_json: bool) -> None:
    """List all of a kind."""
    members = call("GET", f"/api/{kind}s")
    if as_json:
        emit(members)
        return
    from rich.console import Console
    from rich.table import Table

    columns = [c for c in ("name", "title", "org", "teams", "live_keys") if members and c in members[0]]
    table = Table(*(c.replace("_", " ") for c in columns), box=None)
    for member in members:
        table.add_row(*(", ".join(v) if isinstance(v := member[c], list) else str(v) for c in columns))
    Console().print(table if members else f"No {kind}s.")


def change(kind: str, name: str, body: dict[str, Any], *, cascade: bool, as_json: bool) -> None:
    """Change one."""
    made = call("PATCH", path(kind, name, cascade=cascade), body)
    if as_json:
        emit(made)
    else:
        click.echo(f"Changed the {kind} {name}.")


def remove(kind: str, name: str, *, cascade: bool, as_json: bool) -> None:
    """Remove one."""
    gone = call("DELETE", path(kind, name, cascade=cascade))
    if as_json:
        emit(gone)
    else:
        count = len(gone["revoked"])
        click.echo(f"Removed the {kind} {name}." + (f" Revoked {count} {'key' if count == 1 else 'keys'}." if count else ""))


def path(kind: str, name: str, *, cascade: bool = False) -> str:
    """The address of one of a kind."""
    return f"/api/{kind}s/{quote(name, safe='')}" + ("?cascade=true" if cascade else "")
