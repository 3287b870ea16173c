"""What `noria doctor` asks of the running service and of the machine around it."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from noria.cli.service import call
from noria.contracts.error import NoriaError
from noria.settings import Loaded, endpoints

Level = Literal["ok", "warn", "fail"]
Finding = tuple[Level, str, str]
LATE_BYTES = 64 * 1024 * 1024
"""A spool backlog from which on it is worth a word."""


def upstreams(loaded: Loaded) -> Iterator[Finding]:
    """Each model that is elsewhere: whether it is reached, and takes our key."""
    from noria.app.probe import probe

    async def ask() -> list[Any]:
        found = await asyncio.gather(*(probe(e) for e in endpoints(loaded.settings).values()))
        return [finding for one in found for finding in one]

    for finding in asyncio.run(ask()):
        yield finding.level, finding.what, finding.do


def differs(file: Path | None) -> Iterator[Finding]:
    """Whether noria.yaml says something else than what is in force."""
    if file is None:
        return
    try:
        found = call("POST", "/api/plan", {"file": str(file.absolute())})
    except NoriaError as e:
        yield "warn", f"whether {file} is in force cannot be told: {e.text}", ""
        return
    waiting = [c for c in found["changes"] if c["verb"] != "="]
    if waiting:
        first = f"{waiting[0]['verb']} {waiting[0]['what']}"
        yield "warn", f"{file} is not what is in force: {len(waiting)} differences, the first: {first}", "See `noria plan`."
    else:
        yield "ok", f"{file} is what is in force", ""


def notices(status: dict[str, Any]) -> Iterator[Finding]:
    """What the service itself has to say: policies that never ran, workers that cannot follow, costs that are not known."""
    for notice in status["notices"]:
        if notice["code"] in ("policy_silent", "cost_unknown"):
            yield "warn", notice["text"], notice.get("do", "")
    for worker in status["workers"]:
        if worker["trouble"]:
            yield "fail", f"worker {worker['name']} serves an older configuration: {worker['trouble']}", "See `noria plan`."
        if worker["seen_seconds_ago"] > 10:
            yield "warn", f"worker {worker['name']} has not been heard of for {worker['seen_seconds_ago']:.0f} s.", ""
        if worker["draining"]:
            yield "warn", f"worker {worker['name']} says no to /readyz: the service was asked to drain.", "noria drain --undo"
    for probe in status["probes"]:
        error = f": {probe['last_error']['text']}" if probe["last_error"] and probe["state"] != "ok" else ""
        if probe["state"] == "out":
            yield "fail", f"model {probe['endpoint']} is passed over by its probes ({probe['probe']}){error}", ""
        elif probe["state"] in ("failed", "unfit"):
            yield "warn", f"model {probe['endpoint']}: its last probe ({probe['probe']}) said{error}", ""
    if status["recorder"]["lag_bytes"] > LATE_BYTES:
        megabytes = status["recorder"]["lag_bytes"] / 1e6
        yield "warn", f"{megabytes:.0f} MB of records wait in the spool.", "The store is slower than the traffic, or was away."


def at_rest(home: Path, loaded: Loaded) -> Iterator[Finding]:
    """Nothing runs here: what would keep it from starting."""
    from noria.app.supervisor import port_is_taken

    serve = loaded.settings.serve
    if port_is_taken(serve.host, serve.port):
        who = _listener(serve.port)
        yield "fail", f"port {serve.port} of {serve.host} is in use{who}.", "Stop that program, or choose another: serve.port."
    holder = _holder(home / "lock")
    if holder:
        yield "fail", f"{home / 'lock'} is held by {holder}, and no keeper answers.", "Stop that process."
    elif (home / "run" / "address.json").exists():
        yield "warn", "the last Noria here did not end in order; what it had recorded is safe in the spool.", "noria up"


def _holder(path: Path) -> str:
    """Who holds the lock, if anybody: the file alone says nothing, the kernel lets go when a holder dies."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = path.read_text(errors="replace").strip()
        return f"process {pid}{_command(pid)}" if pid else "another process"
    except OSError:
        return ""
    return ""


def _listener(port: int) -> str:
    """Which process listens on a TCP port, where /proc lets us see it."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        inodes |= {f[9] for line in lines if (f := line.split())[3] == "0A" and int(f[1].rpartition(":")[2], 16) == port}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)  # noqa: PTH115  a Path would resolve "socket:[1]" as a file
        except OSError:
            continue
        if target.removeprefix("socket:[").removesuffix("]") in inodes and target.startswith("socket:["):
            pid = link.parts[2]
            return f" by process {pid}{_command(pid)}"
    return ""


def _command(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
    return f" ({words[:80]})" if words else ""
