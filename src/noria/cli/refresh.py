"""`noria refresh`: turns of the wheel: begin, watch, explain, decide."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote, urlencode

import click
import msgspec

from noria.cli.service import call, emit, keeper

JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
WHY = click.option("--why", default="", help="The reason; it is kept with the decision.")
LOOK = 0.5
"""Seconds between two looks at a turn."""
GOES_ON = ("running", "asks")
MARKS = {"done": "✓", "failed": "✗", "running": "…", "asks": "?", "waiting": " "}


@click.group(name="refresh")
def command() -> None:
    """Turns of the wheel: what people corrected becomes rows, a tuned model, a measured candidate, and the next release, or not."""


# -- looking -------------------------------------------------------------------------------------------


@command.command()
@click.argument("app")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting for this turn: data.min_new=0, rollout.steps=[25,50].",
)
@click.option("--follow", is_flag=True, help="To its end; exit 1 unless it was promoted.")
@JSON
def run(app: str, settings: tuple[str, ...], *, follow: bool, as_json: bool) -> None:
    """Begin a turn of APP, as its `refresh` in noria.yaml says."""
    made = call("POST", "/api/refreshes", {"app": app, "settings": _settings(settings)})
    if follow:
        _follow(made["id"], as_json=as_json)
    elif as_json:
        emit(made)
    else:
        click.echo(f"{made['id']} has begun. See `noria refresh watch {app}`.")


@command.command()
@click.argument("id", default="")
@JSON
def watch(id: str, as_json: bool) -> None:
    """Follow a turn to its end: by its id, the latest of an app, or, without ID, the latest of all. Exit 1 unless it was promoted."""
    _follow(id or _latest(), as_json=as_json)


@command.command()
@click.argument("id")
@JSON
def explain(id: str, as_json: bool) -> None:
    """What happened in a turn, in sentences: on what evidence, and who decided."""
    told = call("GET", f"/api/refreshes/{quote(id, safe='')}/explain")
    if as_json:
        emit(told)
        return
    click.echo(f"{told['id']}\n{told['summary']}\n")
    for p in told["paragraphs"]:
        spent = f" ({_span(p['seconds'])})" if p["seconds"] else ""
        who = f", {p['by']}" if p["by"] else ""
        click.echo(f"{p['title']}{who}{spent}: {p['text']}")
        for fact in p["facts"]:
            click.echo(f"    {fact}")
        if p["ids"]:
            click.echo("    " + "  ".join(f"{k} {v[:24]}" for k, v in p["ids"].items()))


@command.command(name="list")
@click.argument("app", default="")
@JSON
def several(app: str, as_json: bool) -> None:
    """Turns, of APP or all, newest first."""
    found = call("GET", "/api/refreshes?" + urlencode({"app": app}))
    if as_json:
        emit(found)
        return
    for r in found["refreshes"]:
        click.echo(f"{r['id']}  {r['app']}  {r['state']:<12} {r['cause']:<8} {r['at']:<11} {r['says'][:90]}".rstrip())
    if not found["refreshes"]:
        click.echo("Nothing was refreshed yet.")


# -- deciding ------------------------------------------------------------------------------------------


@command.command()
@click.argument("id")
@WHY
@JSON
def approve(id: str, why: str, as_json: bool) -> None:
    """Let a turn that asks go on. ID is a turn's or an app's."""
    _say("approve", id, why, as_json)


@command.command()
@click.argument("id")
@WHY
@JSON
def reject(id: str, why: str, as_json: bool) -> None:
    """End a turn that asks. Needs --why."""
    _say("reject", id, why, as_json)


@command.command()
@click.argument("id")
@WHY
@JSON
def waive(id: str, why: str, as_json: bool) -> None:
    """Let the candidate pass the gate that it did not pass. Needs --why."""
    _say("waive", id, why, as_json)


@command.command()
@click.argument("id")
@WHY
@JSON
def stop(id: str, why: str, as_json: bool) -> None:
    """End the processes of a turn; a rollout of its stays at its step."""
    _say("stop", id, why, as_json)


@command.command()
@click.argument("id")
@WHY
@JSON
def resume(id: str, why: str, as_json: bool) -> None:
    """Go on with a turn that was stopped, failed, or whose rollout was inconclusive."""
    _say("resume", id, why, as_json)


# -- words ---------------------------------------------------------------------------------------------


def _say(action: str, id: str, why: str, as_json: bool) -> None:
    done = call("POST", f"/api/refreshes/{quote(id, safe='')}/{action}", {"why": why})
    emit(done) if as_json else click.echo(f"{done['id']} is {done['state']}, at {done['at']}. {done['says']}".rstrip())


def _settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`a.b=1` as {"a": {"b": 1}}; a value as JSON where it is some, else as text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not equals or not path:
            raise click.UsageError(f"{pair!r} is not KEY=VALUE.")
        try:
            value = msgspec.json.decode(text.encode())
        except msgspec.DecodeError:
            value = text
        *above, last = path.split(".")
        at = found
        for key in above:
            at = at.setdefault(key, {})
        at[last] = value
    return found


def _latest() -> str:
    found = call("GET", "/api/refreshes?limit=1")["refreshes"]
    if not found:
        raise click.UsageError("Nothing was refreshed yet.")
    return str(found[0]["id"])


def _follow(id: str, *, as_json: bool) -> None:
    """Each step as it ends, and a live line for the one under way; silence with --json. Exit 1 unless it was promoted."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True, quiet=as_json, highlight=False)
    told: set[tuple[str, str]] = set()
    with keeper(), Live(Text(""), console=console, refresh_per_second=4, transient=True) as live:
        while True:
            shown = call("GET", f"/api/refreshes/{quote(id, safe='')}")
            for s in shown["steps"]:
                if s["state"] in ("done", "failed", "asks") and (s["name"], s["ended_ns"]) not in told:
                    told.add((s["name"], s["ended_ns"]))
                    live.console.print(Text(f"{MARKS[s['state']]} {s['name']:<12} {s['says']}"))
            live.update(Text(f"{MARKS['running']} {shown['at']:<12} {_progress(shown['progress'])}"))
            if shown["state"] not in GOES_ON:
                break
            time.sleep(LOOK)
    if as_json:
        emit(shown)
    else:
        click.echo(f"{shown['id']}: {shown['state'].replace('_', ' ')}. {shown['says']}")
    if shown["state"] != "promoted":
        raise click.exceptions.Exit(1)


def _progress(p: dict[str, Any]) -> str:
    """How far a step is, in the figures that it tells."""
    if p.get("loss") is not None:
        return f"{p.get('step', 0)}/{p.get('steps', 0)}  loss {p['loss']:.3f}  {p['seconds_per_step']:.2f} s/step  {_span(p['eta_seconds'])} left"
    if "percent" in p:
        return f"{p['percent']:g} % (step {p['step']} of {p['steps']})  {p['note']}"
    if "done" in p:
        left = f"  {_span(p['left_seconds'])} left" if p.get("left_seconds") else ""
        return f"{p.get('release', '')} {p['done']}{'/' + str(p['total']) if p.get('total') else ''} {p.get('unit', '')}{left}".strip()
    return str(p.get("phase") or p.get("note") or "")


def _span(seconds: float) -> str:
    return f"{int(seconds // 60)} min {int(seconds % 60)} s" if seconds >= 60 else f"{seconds:.0f} s"
