"""A Noria under test, in a home of its own: start, ask its keeper, read its processes, stop."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine
import modes
import tools
from tools import Enter, Failed

START_S = 60.0
DRAIN_S = 60.0
ROLES = {"keeper": "keeper", "worker": "worker", "up": "supervisor"}


class KeeperCall(http.client.HTTPConnection):
    """HTTP over the keeper's unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("keeper", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def role(argv: list[str]) -> str:
    """What a process of the service is, by its command line."""
    return next((ROLES[word] for word in argv if word in ROLES), "other")


class Service:
    """`noria up` with the configuration of a mode; `port` is where it serves."""

    def __init__(
        self,
        folder: Path,
        mode: str,
        models: dict[str, tuple[str, str]],
        *,
        enter: Enter | None = None,
        trust: Path | None = None,
    ) -> None:
        modes.write(folder, mode, models)
        self.home = folder / "home"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("NORIA_") and k != "PYTHONDONTWRITEBYTECODE"}
        self.env = {**kept, "NORIA_HOME": str(self.home), **({"SSL_CERT_FILE": str(trust)} if trust else {})}
        self._enter = enter
        self._log = folder / "up.log"
        self.start()

    def start(self) -> None:
        """Start, and wait until it says that it serves and that it is ready. Raises `Failed`."""
        self.began = time.perf_counter()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "noria", "up", "-c", "noria.yaml", "--port", "0", "--workers", "1"],
                cwd=self.home.parent, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=self._enter,  # noqa: PLW1509  this script has one thread
            )  # fmt: skip
        self.port = self._serving()
        while tools.status(self.port, "/readyz") != 200:
            if self.seconds() > START_S or self.process.poll() is not None:
                self.stop()
                raise Failed("noria up did not become ready:\n" + self._log.read_text())
            time.sleep(0.01)
        self.ready_s = self.seconds()

    def seconds(self) -> float:
        """Since it was started."""
        return time.perf_counter() - self.began

    def _serving(self) -> int:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            for line in self._log.read_text().splitlines():
                if line.startswith("Noria serves at "):
                    return int(line.split()[3].rsplit(":", 1)[1].partition("/")[0])
            time.sleep(0.01)
        self.stop()
        raise Failed("noria up did not serve:\n" + self._log.read_text())

    def cli(self, *args: str) -> Any:
        """A command of `noria` with `--json`."""
        done = subprocess.run(
            [sys.executable, "-m", "noria", *args, "--json"],
            cwd=self.home.parent, env=self.env, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"noria {' '.join(args)}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def new_key(self, *options: str) -> str:
        """A key that the workers know. Raises `Failed`."""
        key = self.cli("keys", "create", *options)["key"]
        end = time.monotonic() + 10
        while tools.status(self.port, "/v1/models", {"authorization": f"Bearer {key}"}) != 200:
            if time.monotonic() > end:
                raise Failed("A new key did not reach the workers within 10 s.")
            time.sleep(0.05)
        return key

    def recorder(self) -> dict[str, Any]:
        """How far the keeper has recorded, by its own account."""
        call = KeeperCall(self.home / "run" / "keeper.sock")
        try:
            call.request("GET", "/api/status")
            return json.loads(call.getresponse().read())["recorder"]
        finally:
            call.close()

    def recorded(self, stored: int) -> int:
        """Wait until the spool is empty and at least `stored` exchanges are in the trace store; how many are."""
        end = time.monotonic() + DRAIN_S
        while True:
            told = self.recorder()
            if (told["stored"] >= stored and not told["lag_records"]) or time.monotonic() > end:
                return told["stored"]
            time.sleep(0.1)

    def priced(self) -> dict[str, int]:
        """What the trace store holds: exchanges, those whose cost is exact, and what all of them cost (1e-9 US dollars)."""
        total = self.cli("cost", "show")["total"] or dict.fromkeys(("exchanges", "unknown", "estimated", "zero", "cost_usd"), 0)
        priced = total["exchanges"] - total["unknown"] - total["estimated"] - total["zero"]
        return {"recorded": total["exchanges"], "priced": priced, "nanousd": round(total["cost_usd"] * 1e9)}

    def processes(self) -> list[tuple[str, machine.Stat]]:
        """Every process of the service with its role."""
        return [(role(machine.command(s.pid)), s) for s in machine.tree(self.process.pid, machine.processes())]

    def cpu(self) -> dict[str, float]:
        """CPU milliseconds by role since the start, ended children included."""
        used: dict[str, float] = {}
        for name, stat in self.processes():
            used[name] = used.get(name, 0.0) + stat.ticks * machine.TICK
        return used

    def memory(self) -> list[dict[str, Any]]:
        """RSS and PSS of every process."""
        return [{"role": name, **machine.memory(stat.pid)} for name, stat in self.processes()]

    def stop(self) -> None:
        """SIGTERM, and where that is not enough SIGKILL, to the process that was started here."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
