"""`noria demo`: one turn of the whole wheel, narrated."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(name="demo")
@click.option("--fast", is_flag=True, help="A small classifier in place of the language model: a minute or two, and no torch.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("noria-demo"),
    show_default=True,
    help="The folder that it lives in; a demo that was there is removed, its report kept.",
)
@click.option("--train-python", default="", metavar="PATH", help="An interpreter with noria[train]. Default: this one.")
@click.option("--stay/--no-stay", default=None, help="Keep serving at the end, until Ctrl-C. Default: on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Events as lines of JSON.")
def command(data: Path, train_python: str, *, fast: bool, stay: bool | None, as_json: bool) -> None:
    """See the wheel turn once: traffic, drift, dataset, tuned model, gate, canary, promotion; then a damaged one caught, twice.

    A real service in a home of its own, driven over HTTP; only the customers are played, from labelled messages that we wrote.
    Exit code 0 only where every verdict was reached by measurement.
    """
    from noria.demo.narrate import Terminal
    from noria.demo.narrate import as_json as told_as_json
    from noria.demo.play import Wish, play
    from noria.settings import home

    wish = Wish(
        root=data, fast=fast, python=train_python, models=home(),
        stay=not as_json and sys.stdout.isatty() if stay is None else stay,
    )  # fmt: skip
    sys.exit(play(wish, told_as_json if as_json else Terminal().narrator))
