"""`noria reload`, `noria upgrade`, `noria drain`: operations on the running service that no caller notices."""

from __future__ import annotations

import os
import signal
import time

import click
import msgspec

from noria.cli.service import emit, gateway_url
from noria.contracts.error import NoriaError, Unavailable
from noria.kit.atomic import alive
from noria.settings import home

WITHIN = 300.0
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.command(name="reload")
@_JSON
def reload(as_json: bool) -> None:
    """Apply noria.yaml as it is now and put a new process into every worker's place; open requests finish (as SIGHUP)."""
    _operate("reload", signal.SIGHUP, as_json)


@click.command(name="upgrade")
@_JSON
def upgrade(as_json: bool) -> None:
    """Go over to the version that is installed now without closing a socket; open requests finish (as SIGUSR2)."""
    _operate("upgrade", signal.SIGUSR2, as_json)


@click.command(name="drain")
@click.option("--undo", is_flag=True, help="Be ready again.")
@_JSON
def drain(undo: bool, as_json: bool) -> None:
    """Say no to `/readyz` from now on, so that load balancers look elsewhere; requests are served until Noria is stopped."""
    import urllib.request

    request = urllib.request.Request(  # noqa: S310  the address of the running service
        gateway_url() + "/drainz", b"" if not undo else None, method="DELETE" if undo else "POST"
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  as above
        told = msgspec.json.decode(answer.read())
    if as_json:
        emit(told)
    else:
        click.echo(f"{'Draining' if told['draining'] else 'Ready'}; {told['in_flight']} requests are being answered.")


def _operate(name: str, number: signal.Signals, as_json: bool) -> None:
    from noria.app.operate import Operation, read_operation

    pid = supervisor()
    before = read_operation(home())
    if before is not None and before.state == "running" and before.pid == pid:
        raise NoriaError(f"A {before.name} is under way.", hint="Wait for its end.")
    os.kill(pid, number)
    shown, seen, end = 0, 0, time.monotonic() + WITHIN
    now: Operation | None = None
    while time.monotonic() < end and alive(pid):
        now = read_operation(home())
        if now is not None and (before is None or now.began_ns > before.began_ns) and now.name == name:
            if now.began_ns != seen:  # an upgrade begins anew in the program that took over
                shown, seen = 0, now.began_ns
            for line in now.said[shown:]:
                if not as_json:
                    click.echo(line)
            shown = len(now.said)
            if now.state != "running":
                break
        time.sleep(0.05)
    else:
        raise NoriaError(f"The {name} did not end within {WITHIN:.0f} s." if alive(pid) else "Noria has ended.")
    assert now is not None
    if as_json:
        emit(msgspec.to_builtins(now))
    if now.state != "done":
        raise click.exceptions.Exit(1)


def supervisor() -> int:
    """The process id of the running service. Raises `Unavailable` where none runs."""
    try:
        pid = int(msgspec.json.decode((home() / "run" / "address.json").read_bytes())["pid"])
    except (OSError, ValueError, KeyError, msgspec.MsgspecError):
        pid = 0
    if not alive(pid):
        raise Unavailable("Noria is not running here.", code="not_running", hint="Start it with `noria up`.")
    return pid
