"""`noria models`: the models that run on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from noria.cli.service import emit
from noria.settings import home


@click.group(name="models")
def command() -> None:
    """Fetch and list the models that run on this machine."""


@command.command()
@click.argument("name")
@click.option(
    "--file",
    type=click.Path(exists=True, path_type=Path),
    help="Register your own GGUF file or Hugging Face folder under NAME.",
)
@click.option(
    "--kind", type=click.Choice(["chat", "embedding", "completion"]), default="chat", show_default=True, help="With --file."
)
@click.option("--accept", is_flag=True, help="You have read the warning about this model's provenance.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def add(name: str, file: Path | None, *, kind: str, accept: bool, as_json: bool) -> None:
    """Fetch the model NAME of the catalogue (see `noria models list --all`) with pinned hashes."""
    from noria.release import catalogue

    with _Progress(name) as progress:
        if file is not None:
            manifest = catalogue.add_file(home(), name, file, kind=kind, progress=progress)  # type: ignore[arg-type]  # one of the choices
        else:
            manifest = catalogue.add(home(), name, accept=accept, progress=progress)
    if as_json:
        emit(msgspec.to_builtins(manifest))
        return
    size = sum(f.bytes for f in manifest.files) / 1e6
    click.echo(f"{manifest.id}: {manifest.title}, {size:.0f} MB, licence {manifest.licence}")
    if manifest.provenance:
        click.echo(manifest.provenance)


@command.command(name="list")
@click.option("--all", "everything", is_flag=True, help="Also what could be fetched.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_(everything: bool, as_json: bool) -> None:
    """Installed models."""
    from noria.release import catalogue

    rows = [
        {
            "id": m.id,
            "installed": True,
            "kind": m.kind,
            "title": m.title,
            "licence": m.licence,
            "bytes": sum(f.bytes for f in m.files),
        }
        for m in catalogue.installed(home()).values()
    ]
    if everything:
        have = {r["id"] for r in rows}
        rows += [
            {"id": c.id, "installed": False, "kind": c.kind, "title": c.title, "licence": c.licence, "bytes": c.download}
            for c in catalogue.CATALOGUE.values()
            if c.id not in have
        ]
    if as_json:
        emit(rows)
        return
    _table(rows)


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Delete what was fetched of a model; your own files stay."""
    from noria.release import catalogue

    catalogue.remove(home(), name)
    click.echo(f"Removed {name}.")


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "kind", "title", "licence", "MB", "", box=None)
    for r in rows:
        table.add_row(
            r["id"], r["kind"], r["title"], r["licence"], f"{r['bytes'] / 1e6:.0f}", "installed" if r["installed"] else ""
        )
    Console().print(table if rows else "No models are installed. Fetch the embedded one: noria models add smollm2-135m")


class _Progress:
    """A bar a phase on stderr."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(title), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Any:
        self._bar.start()
        return self._step

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def _step(self, phase: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=total or None)
        self._bar.update(self._tasks[phase], completed=done, total=total or None)
