"""Files and folders that appear whole or not at all: written aside, fsynced, renamed into place."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

STAGING = ".staging-"
"""Prefix of unfinished neighbours; the writer's pid follows, so that leftovers of the dead can be told."""


def write_whole(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` by `data` in one step; a reader sees the old bytes or the new ones, never a part.

    `durable` False skips the fsync, for files that do not outlive their writer.
    """
    aside = _aside(path)
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new empty folder that becomes `folder` when the block ends well and vanishes when it does not.

    Files written in it are the block's to fsync. A `folder` that was there before is replaced. What a
    killed process left behind is removed by the next call.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    aside = _aside(folder)
    aside.mkdir(mode=0o700)
    try:
        yield aside
        sync_folder(aside)
        _swap(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def alive(pid: int) -> bool:
    """Whether a process with this id exists on this machine (a zombie does not count)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _aside(path: Path) -> Path:
    return path.with_name(f"{STAGING}{os.getpid()}-{secrets.token_hex(4)}")


def _swap(aside: Path, folder: Path) -> None:
    """Rename into place. Between the two renames a replaced folder is briefly absent: readers retry or fail clearly."""
    old = _aside(folder)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    aside.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for leftover in parent.glob(f"{STAGING}*"):
        pid = leftover.name.removeprefix(STAGING).partition("-")[0]
        if not (pid.isdigit() and alive(int(pid))):
            shutil.rmtree(leftover, ignore_errors=True)
