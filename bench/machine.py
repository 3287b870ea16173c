"""What /proc says: CPU time and memory of processes, and whether the machine is quiet enough to measure on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

TICK = 1000 / os.sysconf("SC_CLK_TCK")
"""Milliseconds a clock tick of /proc/<pid>/stat."""
LOAD_LIMIT = 0.7
"""Highest 1-minute load average a core of a quiet machine."""
BUSY_LIMIT = 0.30
"""Highest share of one core that a process of somebody else may use on a quiet machine."""


class Stat(NamedTuple):
    """What of /proc/<pid>/stat counts here."""

    pid: int
    parent: int
    name: str
    ticks: int
    """User and system time of the process and of its children that have ended."""


def parse_stat(text: str) -> Stat:
    """The line of /proc/<pid>/stat (proc(5)). The name may hold spaces and parentheses.

    >>> parse_stat("7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 5 6 7 8 20 0 1 0 100 0 0").ticks
    26
    """
    pid, _, rest = text.partition(" (")
    name, _, fields = rest.rpartition(") ")
    values = fields.split()
    return Stat(int(pid), int(values[1]), name, sum(map(int, values[11:15])))


def processes() -> dict[int, Stat]:
    """All processes of the machine that can be read."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = parse_stat((entry / "stat").read_text())
            except (OSError, ValueError, IndexError):
                continue  # ended meanwhile
            found[stat.pid] = stat
    return found


def tree(root: int, every: dict[int, Stat]) -> list[Stat]:
    """The process `root` and all its descendants."""
    children: dict[int, list[Stat]] = {}
    for stat in every.values():
        children.setdefault(stat.parent, []).append(stat)
    found, look = [], [every[root]] if root in every else []
    while look:
        stat = look.pop()
        found.append(stat)
        look += children.get(stat.pid, [])
    return found


def command(pid: int) -> list[str]:
    """The command line of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
    except OSError:
        return []


def memory(pid: int) -> dict[str, float]:
    """RSS and PSS in MiB; empty where the process has ended or is not ours."""
    try:
        return parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return {}


def parse_rollup(text: str) -> dict[str, float]:
    """RSS and PSS in MiB of /proc/<pid>/smaps_rollup."""
    fields = {name: rest for name, _, rest in (line.partition(":") for line in text.splitlines())}
    return {f"{name.lower()}_mib": round(int(fields[name].split()[0]) / 1024, 1) for name in ("Rss", "Pss") if name in fields}


def busy(
    before: dict[int, Stat], after: dict[int, Stat], seconds: float, *, ours: Iterable[int] = ()
) -> list[tuple[str, float]]:
    """Processes that used more than `BUSY_LIMIT` of a core between two looks, with their share."""
    mine = set(ours)
    shares = [
        (stat.name, (stat.ticks - before[pid].ticks) * TICK / 1000 / seconds)
        for pid, stat in after.items()
        if pid in before and pid not in mine
    ]
    return sorted(((n, s) for n, s in shares if s > BUSY_LIMIT), key=lambda x: -x[1])


def why_loaded(load: float, cores: int, hogs: list[tuple[str, float]]) -> list[str]:
    """Why this machine is not quiet, in sentences; empty where it is."""
    why = [f"The load average is {load:.2f}; {LOAD_LIMIT * cores:.2f} is the limit."] if load > LOAD_LIMIT * cores else []
    return why + [f"{name} uses {share:.0%} of a core." for name, share in hogs]


def look() -> list[str]:
    """Watch the machine for a second; why it is loaded, or nothing."""
    before, began = processes(), time.perf_counter()
    time.sleep(1.0)
    after, took = processes(), time.perf_counter() - began
    return why_loaded(os.getloadavg()[0], os.cpu_count() or 1, busy(before, after, took, ours=[os.getpid()]))


def description() -> dict[str, object]:
    """The machine in a result file: no host name, no user."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": [round(x, 2) for x in os.getloadavg()],
    }
