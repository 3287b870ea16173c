"""`noria orgs`: add, list, remove."""

from __future__ import annotations

import click

from noria.cli import member


@click.group(name="orgs")
def command() -> None:
    """Organisations: what teams, users and keys belong to."""


@command.command()
@click.argument("name")
@member.TITLE
@member.METADATA
@member.JSON
def add(name: str, *, title: str, metadata: tuple[str, ...], as_json: bool) -> None:
    """Make an organisation."""
    member.add("org", {"name": name, "title": title}, metadata=metadata, as_json=as_json)


@command.command(name="list")
@member.JSON
def list_(as_json: bool) -> None:
    """Every organisation, with how many live keys it has."""
    member.show_all("org", as_json=as_json)


@command.command()
@click.argument("name")
@click.option("--cascade", is_flag=True, help="Its teams go with it, its live keys are revoked; its users stay.")
@member.JSON
def remove(name: str, cascade: bool, as_json: bool) -> None:
    """Remove an organisation; refused while it has live keys."""
    member.remove("org", name, cascade=cascade, as_json=as_json)
