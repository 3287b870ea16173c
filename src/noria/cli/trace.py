"""`noria trace`: what the service did."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click
import msgspec

from noria.cli.service import call, emit, keeper

PAGE = 500


@click.group(name="trace")
def command() -> None:
    """Exchanges as they were recorded."""


@command.command(name="list")
@click.argument("filter", nargs=-1)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--count", is_flag=True, help="Only how many there are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_(filter: tuple[str, ...], limit: int, *, count: bool, as_json: bool) -> None:
    """Newest first. FILTER: conditions such as `app=support status>=400 check=pii error~timeout`, blanks in quotes: `app="my app"`."""
    text = " ".join(filter)
    if count:
        total = call("GET", _path(text, "", 1))["total"]
        emit({"count": total}) if as_json else click.echo(total)
        return
    rows, total = _rows(text, limit)
    if as_json:
        emit(rows)
    else:
        _table(rows, total)


@command.command()
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(id: str, as_json: bool) -> None:
    """One exchange, by its id (`x-request-id`) or trace id (`x-noria-trace`)."""
    found = call("GET", f"/api/traces/{id}")
    if as_json:
        emit(found)
    else:
        _print(found)


@command.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("filter", nargs=-1)
def export(file: Path, filter: tuple[str, ...]) -> None:
    """Write matching exchanges, bodies included, to FILE as JSON lines."""
    from noria.kit.atomic import write_whole

    lines = []
    with keeper():
        before = ""
        while True:
            page = call("GET", _path(" ".join(filter), before, PAGE))
            lines += [msgspec.json.encode(call("GET", f"/api/traces/{row['id']}")) for row in page["rows"]]
            before = page["next"]
            if not before:
                break
    write_whole(file, b"".join(line + b"\n" for line in lines), mode=0o600)
    click.echo(f"{len(lines)} exchanges → {file}", err=True)


def _rows(text: str, limit: int) -> tuple[list[dict[str, Any]], int]:
    rows: list[dict[str, Any]] = []
    before, total = "", 0
    with keeper():
        while len(rows) < limit:
            page = call("GET", _path(text, before, min(PAGE, limit - len(rows))))
            rows += page["rows"]
            total = page["total"]
            before = page["next"]
            if not before:
                break
    return rows, total


def _path(text: str, before: str, limit: int) -> str:
    return "/api/traces?" + urlencode({"filter": text, "before": before, "limit": limit})


def _when(row: dict[str, Any]) -> str:
    return dt.datetime.fromtimestamp(int(row["time_ns"]) / 1e9, dt.UTC).astimezone().strftime("%m-%d %H:%M:%S")


def _ms(ns: int | None) -> str:
    return "" if ns is None else f"{ns / 1e6:,.1f}"


def _table(rows: list[dict[str, Any]], total: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("time", "app", "model", "status", "tokens", "first ms", "ms"):
        table.add_column(name, no_wrap=True, min_width=4, justify="right" if name.endswith("ms") else "left")
    table.add_column("prompt", no_wrap=True, overflow="ellipsis", max_width=60)
    for row in rows:
        status = str(row["status"]) if row["outcome"] == "ok" else f"{row['status']} {row['outcome']}"
        tokens = f"{row['tokens_in'] or '?'}→{row['tokens_out'] or '?'}" if row["outcome"] == "ok" else ""
        table.add_row(
            _when(row),
            row["app"],
            row["endpoint"],
            status,
            tokens,
            _ms(row["ttft_ns"]),
            _ms(row["duration_ns"]),
            row.get("preview_in", "")[:60],
        )
    Console().print(table)
    click.echo(f"showing {len(rows)} of {total}", err=True)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    row = found["row"]
    console = Console()
    console.print(
        f"[bold]{row['id']}[/]  {_when(row)}  {row['app']}  {row['status']} {row['outcome']}  {_ms(row['duration_ns'])} ms"
    )
    console.print(
        f"release {row['release'][:19]}  config {row['config'][:11]}  model {row['served_model'] or '–'} by {row['endpoint'] or '–'}"
    )
    cost = "unknown" if row["cost_usd"] is None else f"{row['cost_usd']:.6f} USD"
    console.print(f"tokens {row['tokens_in']}→{row['tokens_out']}  cost {cost} ({row['cost_status']})  trace {row['trace']}")
    if row["error_message"]:
        console.print(f"[red]{row['error_code']}[/] {row['error_message']}", markup=True)
    table = Table("stage", "at ms", "took ms", box=None)
    for stage in row["stages"]:
        table.add_row(stage["name"], _ms(stage["offset_ns"]), f"{stage['took_ns'] / 1e6:.3f}")
    for a in row["attempts"]:
        table.add_row(f"  → {a['endpoint']}", _ms(a["offset_ns"]), f"{a['took_ns'] / 1e6:.3f} {a['error']}")
    console.print(table)
    for r in row["rulings"]:
        if not r["verdict"]["passed"]:
            labels = ", ".join(f["label"] for f in r["verdict"]["findings"])
            console.print(f"{r['verdict']['check']} {r['action']} at {r['place']}: {labels}")
    for name in ("request", "answer"):
        if found[name] is not None:
            console.print(f"[bold]{name}[/]")
            console.print_json(msgspec.json.encode(found[name]).decode())
