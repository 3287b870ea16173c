"""`noria validate`: check a configuration without starting anything."""

from __future__ import annotations

from pathlib import Path

import click

from noria.cli.service import emit
from noria.settings import config_path


@click.command(name="validate")
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(file: Path | None, as_json: bool) -> None:
    """Check FILE (default: noria.yaml here). Exit 2 where it is wrong."""
    from noria.app.stores import load_settings, summary_of
    from noria.settings import InvalidSettings

    path = file or config_path()
    try:
        loaded = load_settings(path)
    except InvalidSettings as e:
        if not as_json:
            raise
        emit({"valid": False, "problems": [str(p) for p in e.problems]})
        raise click.exceptions.Exit(2) from None
    facts = summary_of(loaded)
    if as_json:
        emit({"valid": True, "file": str(path) if path else None, **facts})
        return
    click.echo(f"{path or 'No noria.yaml: the built-in default'} is valid.")
    for app in facts["apps"]:
        for release in app["releases"]:
            click.echo(f"  {app['name']}/{release['name']}  {release['id'][:19]}  {' → '.join(release['route'])}")
