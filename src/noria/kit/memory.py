"""How much memory there is to be had, and refusing what would not fit: the kernel's way of saying no is to kill."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from noria.contracts.error import NoriaError

RESERVE = 128 << 20
"""Bytes that are left to everybody else."""


def available(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a new process may take without swapping: what the kernel estimates, or what the control group leaves."""
    found = _meminfo(proc / "meminfo", "MemAvailable")
    with suppress(OSError, ValueError):  # "max" = no limit
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        cache = _stat(cgroup / "memory.stat", "inactive_file")
        found = min(found, limit - used + cache)
    return max(0, found)


def fit(wanted: int, what: str) -> None:
    """Raise `NoriaError` (`out_of_memory`) where `wanted` bytes are not to be had."""
    have = available()
    if wanted + RESERVE > have:
        raise NoriaError(
            f"{what} needs about {wanted >> 20} MiB and {have >> 20} MiB are free.",
            code="out_of_memory",
            hint="Stop something, retire a release whose model nobody needs, or use a larger machine.",
        )


def _meminfo(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _stat(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
