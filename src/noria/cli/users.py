"""`noria users`: add, list, update, remove."""

from __future__ import annotations

from typing import Any

import click

from noria.cli import member
from noria.cli.service import call


@click.group(name="users")
def command() -> None:
    """Users: people or services, who may be in several teams."""


@command.command()
@click.argument("name")
@click.option("--org", default="", help="Whose they are: then all their teams are of it.")
@click.option("--team", "teams", multiple=True, help="A team they are in; repeat for more.")
@member.TITLE
@member.METADATA
@member.JSON
def add(name: str, *, org: str, teams: tuple[str, ...], title: str, metadata: tuple[str, ...], as_json: bool) -> None:
    """Make a user."""
    member.add("user", {"name": name, "org": org, "teams": list(teams), "title": title}, metadata=metadata, as_json=as_json)


@command.command(name="list")
@member.JSON
def list_(as_json: bool) -> None:
    """Every user, with how many live keys it has."""
    member.show_all("user", as_json=as_json)


@command.command()
@click.argument("name")
@click.option("--add-team", "joins", multiple=True, help="A team they join; repeat for more.")
@click.option("--remove-team", "leaves", multiple=True, help="A team they leave; repeat for more.")
@click.option("--title", help="For people.")
@click.option("--cascade", is_flag=True, help="Revoke their live keys of the teams that they leave.")
@member.JSON
def update(
    name: str, *, joins: tuple[str, ...], leaves: tuple[str, ...], title: str | None, cascade: bool, as_json: bool
) -> None:
    """Change the teams of a user, or the title."""
    body: dict[str, Any] = {} if title is None else {"title": title}
    if joins or leaves:
        there = call("GET", member.path("user", name))["teams"]
        absent = [t for t in leaves if t not in there]
        if absent:
            raise click.UsageError(f"{name!r} is not in {', '.join(absent)}.")
        body["teams"] = [t for t in (*there, *joins) if t not in leaves]
    if not body:
        raise click.UsageError("Say what to change.")
    member.change("user", name, body, cascade=cascade, as_json=as_json)


@command.command()
@click.argument("name")
@click.option("--cascade", is_flag=True, help="Revoke their live keys.")
@member.JSON
def remove(name: str, cascade: bool, as_json: bool) -> None:
    """Remove a user; refused while it has live keys."""
    member.remove("user", name, cascade=cascade, as_json=as_json)
