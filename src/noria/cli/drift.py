"""`noria drift`: whether the traffic of an app has changed."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any
from urllib.parse import quote

import click

from noria.cli.service import call, emit, keeper


@click.command(name="drift")
@click.argument("app", required=False)
@click.option("--run", is_flag=True, help="Compare now and wait for the report; exit 1 where there is drift.")
@click.option("--from", "from_", default="", help="Begin of the reference window (ISO 8601, UTC); with --split and --until.")
@click.option("--split", default="", help="End of the reference window, begin of the recent one.")
@click.option("--until", default="", help="End of the recent window.")
@click.option("--sample", type=click.IntRange(50, 5000), default=1000, show_default=True, help="Exchanges of each window.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(app: str | None, from_: str, split: str, until: str, *, run: bool, sample: int, as_json: bool) -> None:
    """How apps stand; of one APP its latest report, signal by signal."""
    if run or from_ or split or until:
        if app is None:
            raise click.UsageError("Say of which APP.")
        report = _run(app, {"from_": from_, "split": split, "until": until, "sample": sample})
        emit(report) if as_json else _print(report)
        if report["standing"] == "drifted":
            raise SystemExit(1)
    elif app is None:
        apps = call("GET", "/api/drift")
        emit(apps) if as_json else _list(apps)
    else:
        found = call("GET", f"/api/drift/{quote(app, safe='')}")
        if as_json:
            emit(found)
            return
        click.echo(f"{app}: {_state(found)}. {found['says']}")
        if found["reports"]:
            _print(found["reports"][0])


def _run(app: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Start a comparison and wait for it."""
    place = f"/api/drift/{quote(app, safe='')}"
    with keeper():  # the job asks the keeper too: where none runs, one stays for as long as this
        job = call("POST", f"{place}/run", wanted)["id"]
        click.echo(f"comparing ({job}) …", err=True)
        while True:
            found = call("GET", f"{place}/jobs/{job}")
            if found["state"] == "done":
                report: dict[str, Any] = found["report"]
                return report
            time.sleep(0.3)


def _state(found: dict[str, Any]) -> str:
    if found["firing"]:
        return f"alert since {_time(found['since_ns'])}"
    return "not watched" if found["policy"] is None else str(found["standing"])


def _list(apps: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("app", "state", "checked", "says", box=None)
    for a in apps:
        table.add_row(a["app"], _state(a), _time(a["checked_ns"]), a["says"][:100])
    Console().print(
        table if apps else "No app is watched. Write `drift: {}` under an app in noria.yaml, or `noria drift APP --run`."
    )


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("signal", "standing", "effect", "q", "reference", "recent", "", box=None)
    for s in report["signals"]:
        figures = ("", "") if s["standing"] == "insufficient" else (f"{s['effect']:.4f}", f"{s['q']:.4f}")
        table.add_row(s["name"], s["standing"], *figures, str(s["n_reference"]), str(s["n_recent"]), s["says"])
    console.print(table)
    for name, what in (("more often", "more"), ("less often", "less")):
        if report[what]:
            console.print(
                f"{name}: " + ", ".join(f"{t['term']} {t['reference']:.1%} → {t['recent']:.1%}" for t in report[what])
            )
    if report["examples"]:
        console.print("for example: " + " ".join(report["examples"]))
    click.echo(report["says"])


def _time(ns: str) -> str:
    return "-" if ns == "0" else dt.datetime.fromtimestamp(int(ns) / 1e9, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
