"""What a Noria weighs and how long it takes to start: one JSON object on stdout.

    python bench/footprint.py [--config FILE] [--workers N]

Starts `noria up` twice in a fresh home (the first start makes the stores and keys), waits until a worker answers
`/livez` and then until `/readyz` says yes (the difference is model loading), lets everything idle, and reads each
process's RSS and PSS (MiB; PSS shares out pages that several processes map) from /proc. Without `--config` the
scripted provider answers, so that nothing but Noria is measured; the installed models are those of the home that
`--models` names.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

NORIA = str(Path(sys.executable).with_name("noria"))
PLAIN = "models:\n  fake: {provider: scripted, model: fake}\napps:\n  echo: {model: fake}\n"
MIB = 1 << 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--models", type=Path, help="a folder of installed models (NORIA_HOME/models) to link to")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--idle", type=float, default=5.0, help="seconds before the memory is read")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="noria-footprint-") as name:
        folder = Path(name)
        (folder / "home").mkdir(mode=0o700)
        if options.models:
            (folder / "home" / "models").symlink_to(options.models.absolute())
        if options.config:
            shutil.copy(options.config, folder / "noria.yaml")
        elif not options.models:
            (folder / "noria.yaml").write_text(PLAIN)
        found = [_start(folder, options.workers, options.idle) for _ in range(2)]
    print(json.dumps({"workers": options.workers, "cores": os.cpu_count(), "first": found[0], "second": found[1]}, indent=2))


def _start(folder: Path, workers: int, idle: float) -> dict[str, Any]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("NORIA_") and k != "PYTHONDONTWRITEBYTECODE"}
    env["NORIA_HOME"] = str(folder / "home")
    began = time.perf_counter()
    argv = [NORIA, "up", "--port", "0", "--workers", str(workers)]
    process = subprocess.Popen(argv, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = _address(process)
        printed = time.perf_counter() - began
        _until_ok(url + "/livez")
        serving = time.perf_counter() - began
        _until_ok(url + "/readyz")
        ready = time.perf_counter() - began
        time.sleep(idle)
        return {
            "seconds": {
                "printed": round(printed, 2),
                "serving": round(serving, 2),
                "ready": round(ready, 2),
                "of_which_models": round(ready - serving, 2),
            },
            "mib": {name: _memory(pid) for name, pid in _processes(process.pid).items()},
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Noria serves at "):
            return line.split()[3].removesuffix("/v1")
    raise SystemExit("noria up ended before it served")


def _until_ok(url: str) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as e:
            e.close()
        time.sleep(0.02)
    raise SystemExit(f"{url} did not say yes within 120 s")


def _processes(parent: int) -> dict[str, int]:
    found = {"supervisor": parent}
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        pid, _, args = line.strip().partition(" ")
        for name in ("keeper", "worker", "embed_server", "model_server"):
            if f"process {name}" in args or f"noria.app.{name}" in args:
                known = sum(n.startswith(name) for n in found)
                found[name + (f"-{known}" if known else "")] = int(pid)
    return found


def _memory(pid: int) -> dict[str, float]:
    numbers = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, _, value = line.partition(":")
        if key in ("Rss", "Pss"):
            numbers[key.lower()] = round(int(value.split()[0]) * 1024 / MIB, 1)
    return numbers


if __name__ == "__main__":
    main()
