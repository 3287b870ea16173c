"""`noria plan` and `noria apply`: what noria.yaml would change in the running service, and changing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from noria.cli.service import call, emit
from noria.contracts.error import ConfigError
from noria.settings import config_path

_FILE = click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False, exists=True))
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")
_COLOURS = {"+": "green", "-": "red", "~": "yellow", "!": "magenta", "=": "cyan"}


@click.command(name="plan")
@_FILE
@_JSON
def plan(file: Path | None, as_json: bool) -> None:
    """Show what applying FILE (default: noria.yaml here) would change: + added, - removed, ~ changed, = left alone, ! needs a restart.

    Exit 0 where nothing would change, 1 where something would, 2 where the file is wrong.
    """
    found = call("POST", "/api/plan", {"file": str(_checked(file))})
    if as_json:
        emit(found)
    else:
        _show(found)
    if not found["empty"]:
        raise click.exceptions.Exit(1)


@click.command(name="apply")
@_FILE
@click.option("--yes", is_flag=True, help="Do not ask.")
@_JSON
def apply(file: Path | None, yes: bool, as_json: bool) -> None:
    """Put FILE (default: noria.yaml here) in force, without a restart and as a whole. Shows the plan and asks.

    Exit 1 where it was declined or a worker could not follow, 2 where the file is wrong; nothing is changed then.
    """
    path = str(_checked(file))
    found = call("POST", "/api/plan", {"file": path})
    if not as_json:
        _show(found)
    if found["empty"]:
        if as_json:
            emit(found | {"applied": False, "workers": []})
        return
    if not yes and (as_json or not click.confirm("Apply?")):
        if as_json:
            raise ConfigError("With --json nothing is asked: add --yes.")
        raise click.exceptions.Exit(1)
    done = call("POST", "/api/apply", {"file": path})
    late = [w for w in done["workers"] if not w["in_force"]]
    if as_json:
        emit(done | {"applied": True})
    else:
        served = len(done["workers"]) - len(late)
        click.echo(f"Applied: configuration {done['config'][:11]}, in force at {served} of {len(done['workers'])} workers.")
        for worker in late:
            click.echo(f"  {worker['name']} serves the one before: {worker['trouble'] or 'it has not answered yet'}")
    if late:
        raise click.exceptions.Exit(1)


def _checked(file: Path | None) -> Path:
    """The file's absolute path. Raises `InvalidSettings` here, with every mistake, before anything is asked of the service."""
    from noria.app.stores import load_settings

    path = file or config_path()
    if path is None:
        raise ConfigError("There is no noria.yaml here.", hint="Name the file.")
    load_settings(path)
    return path.absolute()


def _show(found: dict[str, Any]) -> None:
    for change in found["changes"]:
        line = f"{change['verb']} {change['what']}" + (f": {change['detail']}" if change["detail"] else "")
        click.echo(click.style(line, fg=_COLOURS[change["verb"]]))
    if found["empty"]:
        click.echo("Nothing to apply.")
