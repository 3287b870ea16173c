"""`noria doctor`: what is well and what is wrong here, in words."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from noria.cli.doctor_service import Finding, Level, at_rest, differs, notices, upstreams
from noria.cli.service import call, emit, reachable
from noria.contracts.error import NoriaError
from noria.kit.atomic import alive
from noria.settings import config_path, home


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--offline", is_flag=True, help="Do not call the endpoints of models.")
def command(as_json: bool, offline: bool) -> None:
    """Look at this installation and say what is wrong and what to do. Exit 1 where something fails.

    Endpoints of models are asked for their list of models, which costs nothing.
    """
    found = list(_examine(offline=offline))
    if as_json:
        emit(
            {
                "ok": all(level != "fail" for level, _, _ in found),
                "findings": [dict(zip(("level", "what", "do"), f, strict=True)) for f in found],
            }
        )
    else:
        for level, what, do in found:
            click.echo(
                f"{click.style(f'{level:<4}', fg={'ok': 'green', 'warn': 'yellow', 'fail': 'red'}[level])}  {what}"
                + (f"\n      {do}" if do else "")
            )
    if any(level == "fail" for level, _, _ in found):
        raise click.exceptions.Exit(1)


def _examine(*, offline: bool) -> Iterator[Finding]:
    yield from _machine()
    yield from _libraries()
    yield from _configuration(offline=offline)
    yield from _models()
    yield from _service()


def _machine() -> Iterator[Finding]:
    where = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    if platform.system() == "Linux" and platform.machine() == "x86_64" and sys.version_info >= (3, 11):
        yield "ok", where, ""
    else:
        yield (
            "warn",
            f"{where} is not tested.",
            "Tested: Linux x86-64, CPython 3.11 and newer. Local models need x86-64 wheels.",
        )
    here = home()
    parent = next(p for p in (here, *here.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        yield "fail", f"{here.absolute()} cannot be written.", "Choose another folder with NORIA_HOME."
    free = shutil.disk_usage(parent).free
    level: Level = "fail" if free < 200e6 else "warn" if free < 2e9 else "ok"
    yield (
        level,
        f"{free / 1e9:.1f} GB free for {here.absolute()}",
        "" if level == "ok" else "Traces and models need room; answers go on, but records may be lost.",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield ("ok" if memory > 2e9 else "warn"), f"{memory / 1e9:.1f} GB memory, {len(os.sched_getaffinity(0))} cores", ""


def _libraries() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        yield "ok", f"llama.cpp engine: xllamacpp {version('xllamacpp')}", ""
    except PackageNotFoundError:
        yield "warn", "xllamacpp is not installed: local chat models cannot be served.", "pip install xllamacpp"
    from noria.web.pages import STATIC

    if (STATIC / "index.html").exists():
        yield "ok", "the console is built", ""
    else:
        yield "warn", "the console is not built.", "In a clone: make ui"


def _configuration(*, offline: bool) -> Iterator[Finding]:
    from noria.app.stores import load_settings

    path = config_path()
    try:
        loaded = load_settings(path)
    except NoriaError as e:
        yield "fail", f"{path} is wrong: {e}", "See `noria validate`."
        return
    yield (
        "ok",
        f"{path or 'no noria.yaml: the built-in default'}: {len(loaded.settings.apps)} apps, {len(loaded.settings.models)} models",
        "",
    )
    from noria.settings import endpoints, resolve_secret

    for endpoint in endpoints(loaded.settings).values():
        if endpoint.key:
            try:
                resolve_secret(endpoint.key)
            except NoriaError as e:
                yield "fail", f"model {endpoint.name}: {e}", ""
    if not offline:
        yield from upstreams(loaded)


def _models() -> Iterator[Finding]:
    from noria.app.stores import load_settings, plan
    from noria.release import catalogue

    try:
        _, missing = plan(load_settings(config_path()), None, port=None, workers=None)
    except NoriaError:
        return
    for model in missing:
        yield "fail", f"model {model} is not installed.", f"noria models add {model}"
    for model in catalogue.installed(home()):
        try:
            catalogue.verify(home(), model)
            yield "ok", f"model {model} is whole", ""
        except NoriaError as e:
            yield "fail", e.text, f"noria models add {model}"


def _service() -> Iterator[Finding]:
    here = home()
    if not reachable(here):
        silent = _silent(here)
        yield silent
        if silent[0] != "fail":  # nothing runs
            yield from _at_rest(here)
        yield from _logs(here)
        return
    status: dict[str, Any] = call("GET", "/api/status")
    yield "ok", f"running, configuration {str(status['config'])[:11]}, {len(status['apps'])} apps", ""
    for model in status["models"]:
        if model["state"] != "ready":
            yield (
                ("warn" if model["state"] == "loading" else "fail"),
                f"model {model['name']} is {model['state']}: {model['detail']}",
                f"See {here / 'logs' / ('model-' + model['name'] + '.log')}.",
            )
    for worker in status["workers"]:
        spool = worker["spool"]
        if spool["alarm"]:
            yield "fail", f"worker {worker['name']}: {spool['alarm']}", "Answers go on; free some space."
        elif spool["dropped"]:
            yield (
                "warn",
                f"worker {worker['name']} has dropped {spool['dropped']} records since its start.",
                "The disk was full.",
            )
    recorder = status["recorder"]
    if recorder["alarm"]:
        yield "fail", f"recording: {recorder['alarm']}", "Answers go on; free space or mend the store."
    elif recorder["lag_seconds"] > 5:
        yield "warn", f"traces are {recorder['lag_seconds']:.0f} s behind ({recorder['lag_records']} records).", ""
    yield from notices(status)
    yield from differs(config_path())
    yield from _logs(here)


def _at_rest(here: Path) -> Iterator[Finding]:
    from noria.app.stores import load_settings

    try:
        loaded = load_settings(config_path())
    except NoriaError:
        return  # told with the configuration
    yield from at_rest(here, loaded)


def _silent(here: Path) -> Finding:
    """No keeper answers: nothing runs here, or it is stopped or stuck."""
    try:
        pid = int(msgspec.json.decode((here / "run" / "address.json").read_bytes())["pid"])
    except (OSError, ValueError, KeyError, TypeError, msgspec.DecodeError):
        pid = 0
    if not alive(pid):
        return "warn", "Noria is not running here.", "noria up"
    return (
        "fail",
        f"Noria runs here (process {pid}), but its keeper does not answer: answers go on, the console and traces wait.",
        f"See {here / 'logs' / 'keeper.log'}; noria up starts a keeper that has ended again by itself.",
    )


def _logs(here: Path) -> Iterator[Finding]:
    for path in sorted((here / "logs").glob("*.log")):
        tail = path.read_bytes()[-20000:].decode("utf-8", "replace").splitlines()
        errors = [line for line in tail if " ERROR " in line or line.startswith("Traceback")]
        if errors:
            yield "warn", f"{path.name} has {len(errors)} recent errors; the last: {errors[-1][:160]}", f"See {path}."
