"""`noria keys`: create, list, show, update, rotate, revoke; open."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar
from urllib.parse import quote

import click

from noria.cli.service import call, emit

F = TypeVar("F", bound=Callable[..., Any])
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
SCOPE = (
    click.option("--name", help="For people."),
    click.option("--app", "apps", multiple=True, help="An app or embedding model it may use; repeat for more. Default: all."),
    click.option(
        "--endpoint", "endpoints", multiple=True, help="A request path it may call, such as /v1/files*; repeat for more."
    ),
    click.option("--guard", help="A guard policy of noria.yaml that it passes besides the release's."),
    click.option("--org", help="Whose it is: an organisation,"),
    click.option("--team", help="a team,"),
    click.option("--user", help="or a user."),
    click.option("--tag", "tags", multiple=True, help="name=value that every request of it carries; repeat for more."),
    click.option("--metadata", multiple=True, help="name=value for people and their tools; repeat for more."),
    click.option("--budget", "budget_usd", type=click.FloatRange(min=0), help="Hard limit in US dollars for its whole life."),
    click.option("--rpm", type=click.IntRange(min=1), help="Requests per minute."),
    click.option("--expires", "expires_in", help="When it ends: 30d, 12h (a bare number: days), or a date such as 2027-01-31."),
)
LISTS = ("apps", "endpoints")
PAIRS = ("tags", "metadata")
CLEARABLE = ("name", "apps", "endpoints", "guard", "owner", "tags", "metadata", "budget", "rpm", "expires")


def _scoped(command: F) -> F:
    return reduce(lambda made, option: option(made), reversed(SCOPE), command)


@click.group(name="keys")
def command() -> None:
    """API keys. The first one makes keys mandatory for everybody."""


@command.command()
@_scoped
@JSON
def create(as_json: bool, **scope: Any) -> None:
    """Make a key. It is shown once, here."""
    _once(call("POST", "/api/keys", _body(scope)), as_json=as_json)


@command.command(name="list")
@JSON
def list_(as_json: bool) -> None:
    """Every key, without its text."""
    keys = call("GET", "/api/keys")
    if as_json:
        emit(keys)
        return
    from rich.console import Console
    from rich.table import Table

    if not keys:
        required = call("GET", "/api/access")["keys_required"]
        click.echo("No keys, and /v1 asks for one. `noria keys create` makes one, `noria keys open` opens /v1 to this machine."
                   if required else "No keys: /v1 answers this machine only, without a key.")  # fmt: skip
        return
    table = Table("id", "key", "name", "owner", "state", "last used", "limits", box=None)
    for key in keys:
        table.add_row(key["id"], key["hint"], key["name"], _owner(key), key["state"], _ago(key["last_used_ns"]), _limits(key))
    Console().print(table)


@command.command()
@click.argument("id")
@JSON
def show(id: str, as_json: bool) -> None:
    """One key, without its text."""
    key = call("GET", f"/api/keys/{quote(id, safe='')}")
    if as_json:
        emit(key)
        return
    lines = {"key": key["hint"], "name": key["name"], "state": key["state"], "owner": _owner(key), "limits": _limits(key)}
    lines |= {"tags": _pairs(key["tags"]), "metadata": _pairs(key["metadata"]), "created": _when(key["created_ns"])}
    lines |= {"expires": _when(key["expires_ns"]), "old text until": _when(key["overlap_until_ns"])}
    lines |= {"last used": _when(key["last_used_ns"])}
    for name, value in lines.items():
        if value:
            click.echo(f"{name:<15} {value}")


@command.command()
@click.argument("id")
@_scoped
@click.option("--disable/--enable", "disabled", default=None, help="Refuse it for now, or let it work again.")
@click.option(
    "--clear", multiple=True, type=click.Choice(CLEARABLE), help="Take a limit or a description away; repeat for more."
)
@JSON
def update(id: str, disabled: bool | None, clear: tuple[str, ...], as_json: bool, **scope: Any) -> None:
    """Change what a key may do; its text stays. What is not named stays as it is."""
    body = _body(scope)
    if disabled is not None:
        body["disabled"] = disabled
    for name in clear:
        body |= _empty(name)
    if not body:
        raise click.UsageError("Say what to change.")
    key = call("PATCH", f"/api/keys/{quote(id, safe='')}", body)
    if as_json:
        emit(key)
    else:
        click.echo(f"Changed {id}: {key['state']}. {_limits(key)}")


@command.command()
@click.argument("id")
@click.option("--overlap", default="24h", show_default=True, help="How long the old text goes on working; 0s = it ends now.")
@JSON
def rotate(id: str, overlap: str, as_json: bool) -> None:
    """Give a key a new text, shown once, here. Its limits, budget and traces go on."""
    made = call("POST", f"/api/keys/{quote(id, safe='')}/rotate", {"overlap": overlap})
    if not as_json:
        until = _when(made["overlap_until_ns"])
        click.echo(f"The old text works until {until}." if until else "The old text has ended.", err=True)
    _once(made, as_json=as_json)


@command.command()
@click.argument("id")
@JSON
def revoke(id: str, as_json: bool) -> None:
    """Make a key worthless at once."""
    call("DELETE", f"/api/keys/{quote(id, safe='')}")
    if as_json:
        emit({"revoked": [id]})
    else:
        click.echo(f"Revoked {id}.")


@command.command(name="open")
@JSON
def open_(as_json: bool) -> None:
    """Let this machine ask without a key again, after the last one was revoked."""
    access = call("PUT", "/api/access", {"keys_required": False})
    if as_json:
        emit(access)
    elif access["keys_required"]:
        click.echo("Done, but the configuration asks for keys: serve.keys_required, or a serve.host that is not loopback.")
    else:
        click.echo("/v1 answers this machine without a key.")


def _once(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(made)
        return
    click.echo(made["key"])
    click.echo(f"Keep it: it is not shown again. {_limits(made)}", err=True)


def _body(scope: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as the API takes them."""
    body = {name: value for name, value in scope.items() if value not in (None, ())}
    for name in LISTS:
        if name in body:
            body[name] = list(body[name])
    for name in PAIRS:
        if name in body:
            body[name] = dict(pair(text) for text in body[name])
    expires = body.pop("expires_in", None)
    if expires is not None:
        body |= {"expires_at": expires} if "-" in expires else {"expires_in": _days(expires)}
    return body


def pair(text: str) -> tuple[str, str]:
    """`name=value` as two. Raises `UsageError`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text!r} is no name=value pair.")
    return name, value


def _days(text: str) -> str | float:
    try:
        return float(text) * 86_400
    except ValueError:
        return text


def _empty(name: str) -> dict[str, Any]:
    if name in LISTS:
        return {name: []}
    if name in PAIRS:
        return {name: {}}
    if name == "owner":
        return {"org": "", "team": "", "user": ""}
    if name in ("name", "guard"):
        return {name: ""}
    return {{"budget": "budget_usd", "expires": "expires_at"}.get(name, name): None}


def _owner(key: dict[str, Any]) -> str:
    return " / ".join(filter(None, (key["org"], key["team"], key["user"])))


def _pairs(labels: dict[str, str]) -> str:
    return ", ".join(f"{n}={v}" for n, v in labels.items())


def _when(ns: str | None) -> str:
    return dt.datetime.fromtimestamp(int(ns) / 1e9).astimezone().isoformat(" ", "seconds") if ns else ""


def _ago(ns: str | None) -> str:
    if not ns:
        return "–"
    seconds = max(0.0, time.time() - int(ns) / 1e9)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "now"


def _limits(key: dict[str, Any]) -> str:
    parts = ["apps: " + (", ".join(key["apps"]) or "all")]
    if key["endpoints"]:
        parts.append("endpoints: " + ", ".join(key["endpoints"]))
    if key["guard"]:
        parts.append(f"guard: {key['guard']}")
    if key["budget_usd"] is not None:
        parts.append(f"budget {key['budget_usd']:.2f} USD")
    if key["rpm"] is not None:
        parts.append(f"{key['rpm']} requests/min")
    return "; ".join(parts)
