"""`noria teams`: add, list, remove."""

from __future__ import annotations

import click

from noria.cli import member


@click.group(name="teams")
def command() -> None:
    """Teams: of an organisation, or of none."""


@command.command()
@click.argument("name")
@click.option("--org", default="", help="Whose it is. It never changes.")
@member.TITLE
@member.METADATA
@member.JSON
def add(name: str, *, org: str, title: str, metadata: tuple[str, ...], as_json: bool) -> None:
    """Make a team."""
    member.add("team", {"name": name, "org": org, "title": title}, metadata=metadata, as_json=as_json)


@command.command(name="list")
@member.JSON
def list_(as_json: bool) -> None:
    """Every team, with how many live keys it has."""
    member.show_all("team", as_json=as_json)


@command.command()
@click.argument("name")
@click.option("--cascade", is_flag=True, help="Revoke its live keys.")
@member.JSON
def remove(name: str, cascade: bool, as_json: bool) -> None:
    """Remove a team; refused while it has live keys."""
    member.remove("team", name, cascade=cascade, as_json=as_json)
