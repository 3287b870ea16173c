"""`noria feedback`: what was said of answers."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import click

from noria.cli.service import call, emit

JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
PAGE = 1000


@click.group(name="feedback")
def command() -> None:
    """What was said of answers."""


@command.command(name="list")
@click.option("--app", default="", help="Only on this app's answers.")
@click.option("--release", default="", help="Only on this release's answers: its id or name.")
@click.option("--metric", default="", help="Only of this metric (thumbs_up, …).")
@click.option("--kind", type=click.Choice(["thumb", "score", "label", "correction"]), default=None)
@click.option("--exchange", default="", help="Only on this exchange.")
@click.option("--since", default="", help="Received from this time on (ISO 8601, UTC).")
@click.option("--until", default="", help="Received before this time.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@JSON
def list_(limit: int, *, as_json: bool, **given: str | None) -> None:
    """Newest first."""
    rows: list[dict[str, Any]] = []
    before = ""
    while len(rows) < limit:
        asked = {k: v for k, v in given.items() if v} | {"limit": min(PAGE, limit - len(rows))}
        page = call("GET", "/api/feedback?" + urlencode(asked | ({"before": before} if before else {})))
        rows += page["rows"]
        before = page["next"]
        if not before:
            break
    if as_json:
        emit(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("exchange", "app", "release", "metric", "said", "comment", "state", box=None)
    for r in rows:
        said = r["text"] if r["value"] is None else f"{r['value']:g}"
        state = r["state"] if not r["erased"] else "erased"
        cells = (
            r["exchange"] or r["target"],
            r["app"] or "-",
            r["release_name"] or "-",
            r["metric"],
            said,
            r["comment"],
            state,
        )
        table.add_row(*(c[:60] for c in cells))
    Console().print(table if rows else "Nobody has said anything.")


@command.command()
@click.argument("target")
@click.option("--thumb", type=click.Choice(["up", "down"]))
@click.option("--score", type=float)
@click.option("--label")
@click.option("--correction", help="What the answer should have been.")
@click.option("--metric", default="", help="Which judgement; the kind's own when absent.")
@click.option("--comment", default="")
@click.option("--user", default="", help="Who says it; only a keyed hash is stored.")
@click.option("--id", "own", default="", help="An id of your own: the same one twice is stored once.")
@JSON
def add(target: str, own: str, *, as_json: bool, **given: Any) -> None:
    """Say something of TARGET: an exchange, trace or response id."""
    judged = [k for k in ("thumb", "score", "label", "correction") if given[k] is not None]
    if len(judged) != 1:
        raise click.UsageError("Give one of --thumb, --score, --label, --correction.")
    body = {"target": target, **{k: v for k, v in given.items() if v not in (None, "")}} | ({"id": own} if own else {})
    receipt = call("POST", "/api/feedback", body)
    if as_json:
        emit(receipt)
    else:
        click.echo(
            f"{receipt['state']}: {receipt.get('exchange', target)}{'  ' + receipt['note'] if receipt.get('note') else ''}"
        )
