"""Museum 1: a release that ran foreign code at the start of every Python.

litellm#24512, #24518: an unpinned tool in CI gave away the token for the package index; the wheel that followed held a `.pth`
file. Here the wheel holds this package and nothing else, the same bytes each time it is built; whatever is installed is pinned
by hash; there are few direct dependencies; no step pipes a download into a shell.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
DIRECT, ALL = 30, 60
"""Most direct dependencies (DESIGN), and most in all: 44 when this was written."""
REQUIREMENT = re.compile(r"^([A-Za-z0-9][\w.-]*(?:\[[\w,-]+\])?)(.*?)(?=^[A-Za-z0-9]|\Z)", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    made = []
    for n in range(2):
        folder = tmp_path_factory.mktemp(f"wheel{n}")
        env = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
        out = subprocess.run(
            [sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        made.append(folder / out.stdout.split()[-1])
    assert made[0].read_bytes() == made[1].read_bytes(), "the same source gives the same wheel"
    return made[0]


def test_the_wheel_holds_the_package_and_nothing_that_runs_by_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        told = next(n for n in names if n.endswith(".dist-info/entry_points.txt"))
        entries = archive.read(told).decode()
    about = wheel.name.rpartition("-py3")[0] + ".dist-info/"
    assert [n for n in names if not n.startswith(("noria/", about))] == []
    assert [n for n in names if re.search(r"\.(pth|so|pyd|dll|exe|sh|pyc)$|(site|user)customize", n)] == []
    assert re.findall(r"^\[(.+)\]|^(\S+) =", entries, re.MULTILINE) == [("console_scripts", ""), ("", "noria")]
    sources = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src" / "noria").rglob("*.py")}
    assert {n for n in names if n.endswith(".py")} == sources


@pytest.mark.parametrize("lock", ["locks/core.txt", "locks/dev.txt", "locks/train.txt", "tests/conformance/litellm.txt"])
def test_whatever_is_installed_is_pinned_by_hash(lock: str) -> None:
    text = (ROOT / lock).read_text("utf-8")
    found = REQUIREMENT.findall(text)
    assert len(found) >= 40
    for name, rest in found:
        assert re.match(r"==[^\s;,*]+", rest), f"{lock}: {name} is not pinned"
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", rest), f"{lock}: {name} has no hash"
    assert not re.search(r"^(-i|-e|-f|--(extra-)?index|--find|--trusted|--no-verify)|://|@ ", text, re.MULTILINE)
    assert "--require-hashes" in (ROOT / "bootstrap.py").read_text("utf-8")


@pytest.mark.parametrize("lock", ["ui/package-lock.json", "tests/conformance/node/package-lock.json"])
def test_node_packages_are_pinned_by_hash_too(lock: str) -> None:
    packages = json.loads((ROOT / lock).read_text("utf-8"))["packages"]
    assert [
        n for n, p in packages.items() if n and not p.get("integrity", "").startswith("sha512-") and not p.get("inBundle")
    ] == []


def test_there_are_few_dependencies_and_the_build_has_one() -> None:
    direct = PROJECT["project"]["dependencies"]
    assert len(direct) <= DIRECT
    assert PROJECT["build-system"]["requires"] == [r for r in PROJECT["build-system"]["requires"] if "==" in r]
    assert len(PROJECT["build-system"]["requires"]) == 1
    locked = {
        n.partition("[")[0].replace(".", "-") for n, _ in REQUIREMENT.findall((ROOT / "locks/core.txt").read_text("utf-8"))
    }
    assert len(locked) <= ALL
    asked = {re.split(r"[\[<>=;! ]", d)[0].lower().replace("_", "-").replace(".", "-") for d in direct}
    assert asked <= locked, "the lock is older than pyproject.toml: make lock"


def test_no_download_is_piped_into_a_shell() -> None:
    piped = re.compile(
        r"(curl|wget)\b[^\n|]*\|\s*(sudo\s+)?(ba|z|da)?sh\b|\b(ba)?sh\s+<\(\s*(curl|wget)|eval\s+.\$\((curl|wget)"
    )
    files = [ROOT / "Makefile", ROOT / ".ci" / "run", *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "bootstrap.py"]
    assert piped.search("curl -sSf example.org/x | sh"), "it would be found"
    assert [f.name for f in files if f.exists() and piped.search(f.read_text("utf-8"))] == []
