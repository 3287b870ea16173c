"""`noria release`: what serves an app, what shall, and how it gets there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import click
import msgspec

from noria.cli.service import call, emit
from noria.kit.atomic import write_whole

JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
WHY = click.option("--why", default="", help="The reason; it is kept with the decision.")


@click.group(name="release")
def command() -> None:
    """Releases of an app: make, compare, roll out, promote, roll back, retire."""


# -- looking -------------------------------------------------------------------------------------------


@command.command(name="list")
@click.argument("app", default="")
@JSON
def list_(app: str, as_json: bool) -> None:
    """Every release, of APP or of all, with its share of the traffic."""
    found = call("GET", "/api/releases?" + urlencode({"app": app}))
    emit(found) if as_json else _table(found)


@command.command()
@click.argument("app")
@click.argument("name")
@JSON
def show(app: str, name: str, as_json: bool) -> None:
    """One release of APP with all of its parts; NAME may be an environment's, or an id."""
    found = call("GET", "/api/releases/one?" + urlencode({"app": app, "name": name}))
    if as_json:
        emit(found)
        return
    _table([found]) if "percent" in found else click.echo(found["id"])
    click.echo(msgspec.json.format(msgspec.json.encode(found["parts"]), indent=2).decode())


@command.command()
@click.argument("app")
@click.argument("first")
@click.argument("second")
@JSON
def compare(app: str, first: str, second: str, as_json: bool) -> None:
    """What two releases of APP differ in, in words."""
    found = call("GET", "/api/releases/compare?" + urlencode({"app": app, "first": first, "second": second}))
    if as_json:
        emit(found)
        return
    for d in found:
        click.echo(f"{d['part']}: {d['first']} → {d['second']}")
    if not found:
        click.echo("They are the same release.")


@command.command()
@JSON
def versions(as_json: bool) -> None:
    """The models, prompts, guards and datasets that releases are made of, by content."""
    found = call("GET", "/api/releases/versions")
    if as_json:
        emit(found)
        return
    for kind, rows in found.items():
        for row in rows:
            version = row.get("version") or row["id"]
            click.echo(f"{kind.removesuffix('s')}  {row['name'] or '-'}  {version[:26]}  {', '.join(row.get('releases', ()))}")


# -- changing ------------------------------------------------------------------------------------------


@command.command()
@click.argument("app")
@click.option("--from", "parent", default="production", show_default=True, help="The release that it is made from.")
@click.option("--name", required=True, help="What the new one is called.")
@click.option("--model", default="", help="A model of noria.yaml, an installed one, or an artifact of kind model_gguf.")
@click.option("--adapter", default="", help="An artifact of kind adapter_gguf, upon the local model.")
@click.option("--scale", type=float, default=None, help="How strongly the adapter acts.")
@click.option("--prompt", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A file with the system prompt.")
@click.option("--guard", default=None, help="A policy under `guards`.")
@click.option("--param", "params", multiple=True, metavar="K=V", help="A request parameter (JSON, or text); K= takes it away.")
@click.option("--note", default="", help="For people.")
@JSON
def create(app: str, *, prompt: Path | None, params: tuple[str, ...], as_json: bool, **rest: Any) -> None:
    """Make a release of APP from another one; it is served at once, without traffic."""
    body = {"app": app, **rest}
    if prompt is not None:
        body |= {"prompt": prompt.read_text(), "prompt_name": prompt.stem}
    if params:
        body["params"] = dict(map(_param, params))
    made = call("POST", "/api/releases", body)
    emit(made) if as_json else _table([made])


@command.command()
@click.argument("app")
@click.argument("name", default="production")
@click.option("--write", is_flag=True, help="Put it into noria.yaml; comments stay. Look at `noria plan` afterwards.")
@JSON
def export(app: str, name: str, *, write: bool, as_json: bool) -> None:
    """A release of APP that a refresh or a person made, as noria.yaml would have it. NAME: by default what serves now."""
    found = call("GET", "/api/releases/export?" + urlencode({"app": app, "name": name}))
    if write:
        write_whole(Path(found["path"]), found["text"].encode(), mode=Path(found["path"]).stat().st_mode & 0o777)
    if as_json:
        emit(found)
    elif write:
        click.echo(f"{found['name']} ({found['id'][:11]}) stands in {found['path']} now.")
    else:
        click.echo(found["added"], nl=False)


@command.command()
@click.argument("app")
@click.argument("name")
@WHY
@JSON
def retire(app: str, name: str, why: str, as_json: bool) -> None:
    """Serve a release no more. Refused while it has traffic or anything may go back to it."""
    done = call("POST", "/api/releases/retire", {"app": app, "name": name, "why": why})
    emit(done) if as_json else click.echo(f"{name} of {app} is retired; its record stays.")


@command.command()
@click.argument("app")
@click.argument("environment")
@click.argument("name", required=False)
@click.option("--remove", is_flag=True, help="Let the name mean nothing.")
@JSON
def alias(app: str, environment: str, name: str | None, *, remove: bool, as_json: bool) -> None:
    """Let `model: "APP@ENVIRONMENT"` mean the release NAME."""
    if (name is None) != remove:
        raise click.UsageError("Give a release's name, or --remove.")
    done = call("POST", "/api/releases/alias", {"app": app, "alias": environment, "release": name})
    emit(done) if as_json else click.echo(f"{app}@{environment} is {name or 'nothing'} now.")


@command.command()
@click.argument("app")
@click.argument("name")
@JSON
def verify(app: str, name: str, as_json: bool) -> None:
    """Read every artifact that a release serves again, whole, and check its signature. Exit 1 where one is refused."""
    found = call("POST", "/api/releases/verify", {"app": app, "name": name})
    if as_json:
        emit(found)
    for artifact, why in found["artifacts"].items() if not as_json else ():
        click.echo(f"{artifact[:15]}  {why or 'whole, signed'}")
    if not found["artifacts"] and not as_json:
        click.echo("It serves no artifact.")
    if not found["ok"]:
        raise click.exceptions.Exit(1)


# -- rollouts ------------------------------------------------------------------------------------------


@command.command()
@click.argument("app")
@click.argument("candidate")
@click.option("--steps", help="Percent of the traffic: 1,10,50")
@click.option("--metric", help="What answers are judged by.")
@click.option("--max-regression", type=float, help="The drop that must be excluded before it is promoted.")
@click.option("--min-answers", type=int, help="Judged answers that each step needs.")
@click.option("--alpha", type=float, help="How often it may be wrong.")
@click.option("--waive", metavar="WHY", help="Begin it though its gate refuses it; the reason is kept.")
@click.option("--wait", is_flag=True, help="Follow it to its end; exit 1 unless it was promoted.")
@JSON
def rollout(
    app: str, candidate: str, *, steps: str | None, waive: str | None, wait: bool, as_json: bool, **policy: Any
) -> None:
    """Bring CANDIDATE into service, step by step, as long as its answers are no worse. Exit 1 where its gate refuses it."""
    given = {k: v for k, v in policy.items() if v is not None}
    if steps:
        given["steps"] = [float(s) for s in steps.split(",")]
    body = {"app": app, "candidate": candidate, "policy": given}
    made = call("POST", "/api/rollouts", body | ({"waive": {"why": waive}} if waive is not None else {}))
    if wait:
        made = _followed(made, quiet=as_json)
    emit(made) if as_json else _story(made)
    if made["state"] == "rejected" or (wait and made["state"] != "promoted"):
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("rollout")
@JSON
def status(rollout: str, as_json: bool) -> None:
    """A rollout with its decisions and their evidence: by its id, or the latest of an app."""
    found = call("GET", f"/api/rollouts/{quote(rollout, safe='')}")
    emit(found) if as_json else _story(found)


@command.command()
@click.argument("rollout")
@WHY
@JSON
def promote(rollout: str, why: str, as_json: bool) -> None:
    """Give the candidate all of the traffic, whatever was measured. ROLLOUT is an id or an app."""
    _overrule("promote", rollout, why, as_json)


@command.command()
@click.argument("rollout")
@WHY
@JSON
def rollback(rollout: str, why: str, as_json: bool) -> None:
    """Take the candidate's traffic away, at once; also after it was promoted."""
    _overrule("rollback", rollout, why, as_json)


@command.command()
@click.argument("rollout")
@WHY
@JSON
def pause(rollout: str, why: str, as_json: bool) -> None:
    """Stay at the present step. What does harm is rolled back all the same."""
    _overrule("pause", rollout, why, as_json)


@command.command()
@click.argument("rollout")
@WHY
@JSON
def resume(rollout: str, why: str, as_json: bool) -> None:
    """Go on with a rollout that was paused, or is inconclusive."""
    _overrule("resume", rollout, why, as_json)


# -- artifacts -----------------------------------------------------------------------------------------


@command.command()
@JSON
def artifacts(as_json: bool) -> None:
    """Every artifact, newest first."""
    found = call("GET", "/api/artifacts")
    if as_json:
        emit(found)
        return
    for a in found["artifacts"]:
        made_of = ", ".join(f"{k} {v[:14]}" for k, v in a["inputs"].items())
        click.echo(f"{a['id']}  {a['kind']}  {a['bytes'] / 1e6:.1f} MB  signed by {a['signed_by'] or 'a stranger'}  {made_of}")
    if not found["artifacts"]:
        click.echo("No artifacts.")


@command.command()
@click.argument("kind")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--input", "inputs", multiple=True, metavar="K=V", help="What it was made from (base=sha256:…, dataset=d1:…).")
@click.option("--fact", "facts", multiple=True, metavar="K=V", help="What a server must know (scale=1).")
@JSON
def publish(kind: str, files: tuple[Path, ...], *, inputs: tuple[str, ...], facts: tuple[str, ...], as_json: bool) -> None:
    """Make a signed artifact of FILES: `noria release publish adapter_gguf adapter.gguf`."""
    pairs = [dict(_pair(p) for p in given) for given in (inputs, facts)]
    body = {"kind": kind, "files": {f.name: str(f.absolute()) for f in files}, "inputs": pairs[0], "facts": pairs[1]}
    made = call("POST", "/api/artifacts", body)
    emit(made) if as_json else click.echo(made["id"])


@command.command()
@click.option("--yes", is_flag=True, help="Remove them; without it they are only shown.")
@JSON
def collect(yes: bool, as_json: bool) -> None:
    """Artifacts that no release serves: show them, or remove them."""
    found = call("POST", "/api/artifacts/collect?" + urlencode({"dry_run": str(not yes).lower()}))
    if as_json:
        emit(found)
        return
    for a in found["artifacts"]:
        click.echo(f"{a['id']}  {a['kind']}  {a['bytes'] / 1e6:.1f} MB")
    click.echo(f"{found['bytes'] / 1e6:.1f} MB {'removed' if yes else 'would be freed (--yes removes them)'}.")


@command.command()
@JSON
def key(as_json: bool) -> None:
    """This installation's public key, for others to trust."""
    found = call("GET", "/api/artifacts")
    emit({"key": found["key"], "trusted": found["trusted"]}) if as_json else click.echo(found["key"])


@command.command()
@click.argument("key")
@click.argument("name")
@JSON
def trust(key: str, name: str, as_json: bool) -> None:
    """Believe in artifacts that the holder of a public KEY has signed."""
    done = call("POST", "/api/artifacts/trust", {"key": key, "name": name})
    emit(done) if as_json else click.echo(f"{name} is trusted.")


# -- words ---------------------------------------------------------------------------------------------


def _overrule(action: str, rollout: str, why: str, as_json: bool) -> None:
    done = call("POST", f"/api/rollouts/{quote(rollout, safe='')}", {"action": action, "why": why})
    emit(done) if as_json else _story(done)


def _followed(made: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    said = ""
    while made["state"] in ("running", "paused"):
        latest = made["decisions"][-1]["says"] if made["decisions"] else ""
        if latest != said and not quiet:
            click.echo(f"{made['percent']:g} %: {latest}")
        said = latest
        time.sleep(1.0)
        made = call("GET", f"/api/rollouts/{made['id']}")
    return made


def _story(rollout: dict[str, Any]) -> None:
    click.echo(
        f"{rollout['candidate']} of {rollout['app']} against {rollout['stable']}: {rollout['state']}, {rollout['percent']:g} %"
    )
    for f in rollout["findings"]:
        click.echo(f"  gate, {f['rule']['kind']}: {f['verdict']}. {f['says']}")
    if rollout["waived"]:
        click.echo(f"  the gate was waived by {rollout['waived']}")
    for d in rollout["decisions"]:
        click.echo(f"  {d['action']}: {d['says']}")


def _pair(text: str) -> tuple[str, str]:
    name, at, value = text.partition("=")
    if not at or not name:
        raise click.UsageError(f"{text!r} is not name=value.")
    return name, value


def _param(text: str) -> tuple[str, Any]:
    name, value = _pair(text)
    if not value:
        return name, None
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value


def _table(releases: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("app", "release", "id", "traffic", "model", "prompt", "guard", "from", box=None)
    for r in releases:
        share = "retired" if r["retired_ns"] else f"{r['percent']:g} %"
        name = r["name"] + "".join(f" @{a}" for a in r["aliases"])
        table.add_row(r["app"], name, r["id"][:11], share, r["model"], r["prompt"], r["guard"], r["from"])
    Console().print(table if releases else "No releases.")
