"""`noria eval`: measure releases by suites, compare them, write reports."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import click
import msgspec

from noria.cli.service import call, emit

JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
LOOK = 0.5
"""Seconds between two looks at a running evaluation."""


@click.group(name="eval")
def command() -> None:
    """Measure releases by suites, compare them, write reports."""


@command.command()
@click.argument("suite", required=False)
@click.option(
    "--release", "target", required=True, metavar="APP@RELEASE", help="A release by name or id; APP alone where it has one."
)
@click.option("--dataset", metavar="NAME[@d1:…]", help="In place of a declared suite: what is asked.")
@click.option("--split", default="test", show_default=True, help="With --dataset: the part of it.")
@click.option("--metric", "metrics", multiple=True, help="With --dataset: a check that scores answers; may be repeated.")
@click.option("--option", "options", multiple=True, metavar="METRIC.KEY=JSON", help="With --dataset: an option of a metric.")
@click.option(
    "--param", "params", multiple=True, metavar="KEY=JSON", help="With --dataset: a request parameter (max_tokens=16)."
)
@click.option("--limit", type=click.IntRange(min=0), help="At most so many items, the same ones every time; 0 = all.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=4, show_default=True, help="Items asked at once.")
@click.option("--fresh", is_flag=True, help="Ask everything anew, whatever was answered before.")
@click.option("--no-wait", is_flag=True, help="Begin it and return.")
@JSON
def run(suite: str | None, target: str, as_json: bool, no_wait: bool, **given: Any) -> None:
    """Run SUITE, or what --dataset and --metric say, against a release. Interrupting leaves it running: see `noria eval show`."""
    app, _, release = target.partition("@")
    body: dict[str, Any] = {"app": app, "release": release, "concurrency": given["concurrency"], "fresh": given["fresh"]}
    body |= _suite(suite, given)
    if given["limit"] is not None:
        body["limit"] = given["limit"]
    begun = call("POST", "/api/evaluations", body)
    if no_wait:
        emit(begun) if as_json else click.echo(begun["id"])
        return
    _finish(begun["id"], as_json)


def _suite(name: str | None, given: dict[str, Any]) -> dict[str, Any]:
    if (name is None) == (given["dataset"] is None):
        raise click.UsageError("Give the name of a suite, or --dataset.")
    if name is not None:
        loose = [k for k in ("metrics", "options", "params") if given[k]]
        if loose:
            raise click.UsageError(f"--{loose[0].removesuffix('s')} goes with --dataset; a declared suite has its own.")
        return {"suite": name}
    options: dict[str, dict[str, Any]] = {}
    for text in given["options"]:
        path, value = _pair(text)
        metric, dot, key = path.partition(".")
        if not dot:
            raise click.UsageError(f"{text!r} is not METRIC.KEY=VALUE.")
        options.setdefault(metric, {})[key] = value
    what = {"dataset": given["dataset"], "split": given["split"], "metrics": list(given["metrics"]) or ["exact"]}
    return {"definition": {**what, "options": options, "params": dict(map(_pair, given["params"]))}}


def _pair(text: str) -> tuple[str, Any]:
    """`key=value`; the value as JSON where it is some, else as text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"{text!r} is not KEY=VALUE.")
    try:
        return key, msgspec.json.decode(value.encode())
    except msgspec.DecodeError:
        return key, value


@command.command()
@click.argument("id")
@click.option("--no-wait", is_flag=True, help="Begin it and return.")
@JSON
def resume(id: str, no_wait: bool, as_json: bool) -> None:
    """Go on with an evaluation that failed, was stopped, or met failures."""
    begun = call("POST", f"/api/evaluations/{quote(id)}/resume")
    if no_wait:
        emit(begun) if as_json else click.echo(begun["id"])
        return
    _finish(id, as_json)


@command.command()
@click.argument("id")
@JSON
def stop(id: str, as_json: bool) -> None:
    """End a running evaluation; what was answered stays known."""
    ended = call("POST", f"/api/evaluations/{quote(id)}/stop")
    emit(ended) if as_json else click.echo(f"{id} is {ended['state']}.")


@command.command()
@click.argument("first")
@click.argument("second")
@click.option("--margin", "margins", multiple=True, metavar="METRIC=M", help="How much worse SECOND may be (label=0.05).")
@click.option("--confidence", type=click.FloatRange(0.5, 1, min_open=True, max_open=True), default=0.95, show_default=True)
@JSON
def compare(first: str, second: str, margins: tuple[str, ...], confidence: float, as_json: bool) -> None:
    """Judge the evaluation SECOND against FIRST, item by item. Exit 1 where some metric is worse."""
    body = {"first": first, "second": second, "margins": dict(map(_pair, margins)), "confidence": confidence}
    found = call("POST", "/api/evaluations/compare", body)
    if as_json:
        emit(found)
    else:
        for c in found["comparisons"]:
            click.echo(told(c))
        if len(found["comparisons"]) > 1:
            click.echo(f"p is adjusted for {len(found['comparisons'])} metrics (Benjamini-Hochberg).")
    if any(c["verdict"] == "worse" for c in found["comparisons"]):
        sys.exit(1)


def told(c: dict[str, Any]) -> str:
    """A comparison in a line."""
    d = c["difference"]
    more = f": {c['more']} more items needed" if c["verdict"] == "need_more" else ""
    margin = f"  margin {c['margin']:g}" if c["margin"] else ""
    return (
        f"{c['metric']:<14}{d['value']:+.4f}  [{d['low']:+.4f}, {d['high']:+.4f}]  p {c['p_adjusted']:.4f}  "
        f"n {c['n']}  {c['test']}{margin}  {c['verdict']}{more}"
    )


@command.command()
@JSON
def suites(as_json: bool) -> None:
    """Suites that noria.yaml declares."""
    found = call("GET", "/api/suites")
    if as_json:
        emit(found)
        return
    for s in found["suites"]:
        click.echo(
            f"{s['name']}  {s['dataset']}/{s['split']}  {', '.join(s['metrics'])}"
            + (f"  limit {s['limit']}" if s["limit"] else "")
        )
    if not found["suites"]:
        click.echo("No suite is declared: see `suites` in noria.yaml.")


@command.command(name="list")
@click.option("--app", default="", help="Of one app.")
@click.option("--suite", default="", help="Of one suite.")
@JSON
def list_(app: str, suite: str, as_json: bool) -> None:
    """Evaluations, newest first."""
    found = call("GET", "/api/evaluations?" + urlencode({"app": app, "suite": suite}))
    if as_json:
        emit(found)
        return
    for e in found["evaluations"]:
        click.echo(f"{e['id']}  {e['app']}@{e['release_name']}  {e['suite']['name']}  {e['state']}  {_headline(e)}")
    if not found["evaluations"]:
        click.echo("No evaluation yet.")


@command.command()
@click.argument("id")
@click.option("--items", is_flag=True, help="With --json: every item.")
@JSON
def show(id: str, items: bool, as_json: bool) -> None:
    """One evaluation as it stands."""
    found = call("GET", f"/api/evaluations/{quote(id)}" + ("?items=true" if items else ""))
    emit(found) if as_json else _print(found)


@command.command()
@click.argument("ids", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to write it; `.json` gives JSON. Else: ID.html here."
)
@click.option("--lang", type=click.Choice(["en", "zh"]), default="en", show_default=True)
def report(ids: tuple[str, ...], out: Path | None, lang: str) -> None:
    """Write one HTML page (or JSON) of one evaluation, or of several beside each other."""
    from noria.contracts.error import Conflict
    from noria.contracts.evaluation import Report
    from noria.evaluate.report import page
    from noria.kit.atomic import write_whole

    found = [call("GET", f"/api/evaluations/{quote(one)}?items=true") for one in ids]
    for e in found:
        if e["report"] is None:
            raise Conflict(f"{e['id']} has no report: it is {e['state']}. {e['says']}", code="no_report")
    reports = [msgspec.convert(e["report"], Report) for e in found]
    path = out or Path(f"{ids[0]}.html")
    as_json = path.suffix == ".json"
    data = msgspec.json.format(msgspec.json.encode(reports), indent=2) if as_json else page(reports, lang=lang).encode()
    write_whole(path, data, mode=0o644)
    click.echo(str(path))


def _finish(id: str, as_json: bool) -> None:
    """Wait for an evaluation, with a bar, and say what came of it. Exit 1 where it failed."""
    found = _watched(id)
    if as_json:
        emit(found)
    elif found["state"] == "done":
        _print(found)
    if found["state"] != "done":
        click.echo(f"{id} {found['state']}: {found['says']}", err=True)
        sys.exit(1)


def _watched(id: str) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]} failed  {task.fields[scores]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(id[:13], total=None, failed=0, scores="")
        while True:
            found: dict[str, Any] = call("GET", f"/api/evaluations/{quote(id)}")
            p = found["progress"]
            if p:
                scores = "  ".join(f"{name} {value:.3f}" for name, value in p["scores"].items())
                bar.update(task, total=p["total"], completed=p["done"], failed=p["failed"], scores=scores)
            if found["state"] != "running":
                return found
            time.sleep(LOOK)


def _headline(e: dict[str, Any]) -> str:
    if e["report"] is None:
        p = e["progress"]
        return f"{p['done']} of {p['total']}" if p else e["says"]
    metric = e["suite"]["metrics"][0]
    x = e["report"]["estimates"][metric]
    return f"{metric} {x['value']:.4f} [{x['low']:.4f}, {x['high']:.4f}] of {x['n']}"


def _print(e: dict[str, Any]) -> None:
    click.echo(
        f"{e['id']}  {e['app']}@{e['release_name']} ({e['release'][:11]})  suite {e['suite']['name']}  {e['state']}  {e['says']}"
    )
    r = e["report"]
    if r is None:
        if e["progress"]:
            click.echo(f"{e['progress']['done']} of {e['progress']['total']}")
        return
    for name, x in r["estimates"].items():
        digits = 1 if name.endswith("_ms") else 6 if name.endswith("_usd") else 4
        shown = f"{x['value']:.{digits}f}  [{x['low']:.{digits}f}, {x['high']:.{digits}f}]"
        click.echo(f"{name:<16}{shown}  n {x['n']}  {x['method']}")
    click.echo(f"{r['seconds']:.1f} s; {r['cached']} items were known from before.")
