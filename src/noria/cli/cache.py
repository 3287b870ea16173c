"""`noria cache`: show and purge what is kept to be answered again."""

from __future__ import annotations

import datetime as dt
from urllib.parse import urlencode

import click

from noria.cli.service import call, emit

JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
TENANT = click.option("--tenant", default="", help="Whose answers; this installation's own when absent.")


@click.group(name="cache")
def command() -> None:
    """Answers that are kept to be given again."""


@command.command()
@TENANT
@JSON
def show(tenant: str, as_json: bool) -> None:
    """What all workers share, by app, and what the cache did."""
    found = call("GET", _path(tenant=tenant))
    if as_json:
        emit(found)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("app", "answers", "bytes", "room", "oldest", "newest", box=None)
    for a in found["apps"]:
        times = (_time(a["oldest_ns"]), _time(a["newest_ns"]))
        table.add_row(a["app"], str(a["answers"]), str(a["bytes"]), str(a["room_bytes"] or "-"), *times)
    console = Console()
    console.print(table if found["apps"] else "No app has a cache, and nothing is kept.")
    events = ", ".join(f"{n} {event}" for event, n in found["events"].items() if n)
    console.print(
        f"In the memory of the workers: {found['memory_bytes']} bytes." + (f" Since their start: {events}." if events else "")
    )


@command.command()
@click.option("--app", default="", help="Only answers of this app.")
@click.option("--user", default="", help="Only answers to this user, as callers name it in `user`.")
@TENANT
@click.option("--all", "whole", is_flag=True, help="All answers; needed where neither --app nor --user is given.")
@JSON
def purge(app: str, user: str, tenant: str, *, whole: bool, as_json: bool) -> None:
    """Drop kept answers: `noria cache purge --app support`. In force in every worker within a second."""
    if not (app or user or tenant or whole):
        raise click.UsageError("Say whose answers: --app, --user or --tenant; or --all.")
    done = call("DELETE", _path(app=app, user=user, tenant=tenant))
    if as_json:
        emit(done)
    else:
        click.echo(f"{done['dropped']} shared answers dropped; workers forget theirs within a second.")


def _path(**given: str) -> str:
    query = urlencode({k: v for k, v in given.items() if v})
    return "/api/cache" + (f"?{query}" if query else "")


def _time(ns: int | None) -> str:
    return "-" if ns is None else dt.datetime.fromtimestamp(ns / 1e9, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
