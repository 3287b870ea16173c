"""`noria sbom`: what this installation is made of."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from noria.cli.service import emit
from noria.settings import config_path, home


@click.command(name="sbom")
@click.option(
    "-c",
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Default: noria.yaml here, if there is one.",
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write it there instead of to stdout.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document: it is one in any case.")
def command(config: Path | None, *, output: Path | None, as_json: bool) -> None:  # noqa: ARG001  every command that prints data takes it
    """The bill of materials as CycloneDX 1.6 JSON: packages, and the models of the configuration with hashes and licences."""
    from noria.app.bill import bill
    from noria.app.stores import load_settings
    from noria.govern.sbom import counts
    from noria.kit.atomic import write_whole

    made = bill(load_settings(config or config_path()), home())
    if output is None:
        emit(made)
        return
    write_whole(output.absolute(), msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n", mode=0o644)
    click.echo(f"{output}: {counts(made)}")
