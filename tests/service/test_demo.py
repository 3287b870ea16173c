"""`noria demo --fast`: the whole wheel over a real service, every verdict reached, nothing left running. Slow: a minute and a half of CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

VERDICTS = [
    "drift", "refresh begins", "gate", "promoted", "really damaged", "caught at the gate", "rolled back", "retired",
]  # fmt: skip


def started(tmp_path, *args: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "noria", "demo", "--json", "--data", str(tmp_path / "demo"), *args]
    env = {k: v for k, v in os.environ.items() if not k.startswith("NORIA_")}
    return subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def processes_of(home) -> list[str]:
    """What still runs in a home, by the environment that it was started with."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and f"NORIA_HOME={home}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append(place.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_verdict_is_reached_by_measurement(tmp_path) -> None:
    done = started(tmp_path, "--fast")
    out, err = done.communicate(timeout=880)
    events = [json.loads(line) for line in out.splitlines()]
    assert done.returncode == 0, err + out[-3000:]
    assert [(e["name"], e["reached"]) for e in events if e["event"] == "verdict"] == [(name, True) for name in VERDICTS]
    end, figures = events[-1], {e["name"]: e["value"] for e in events if e["event"] == "figure"}
    assert (end["event"], end["passed"]) == ("end", True)
    assert figures["damaged"]["comparison"]["difference"]["value"] <= -0.4
    assert [figures[name]["failed"] for name in ("quiet", "change", "canary", "damage")] == [0] * 4
    assert [d["action"] for d in figures["rollout"]["decisions"]] == ["advance", "promote"]
    assert figures["rolled_back"]["decisions"][-1]["action"] == "roll_back"
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<svg") >= 5
    assert "Every verdict was reached" in page
    assert processes_of(tmp_path / "demo" / "home") == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ctrl_c_leaves_nothing_running_and_says_so_in_the_report(tmp_path) -> None:
    demo = started(tmp_path, "--fast")
    home = tmp_path / "demo" / "home"
    for line in demo.stdout:
        if json.loads(line).get("name") == "refresh":
            break
    assert processes_of(home)
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=90)
    assert demo.returncode == 130
    end = time.monotonic() + 10
    while processes_of(home) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes_of(home) == []
    assert "It was interrupted" in (tmp_path / "demo" / "report.html").read_text()


def test_what_is_missing_is_said_before_anything_begins(tmp_path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    demo = started(tmp_path, "--train-python", str(bare))
    out, err = demo.communicate(timeout=60)
    assert (demo.returncode, out) == (2, "")
    assert "pip install 'noria[train]'" in err
    assert "noria demo --fast" in err
    assert not (tmp_path / "demo").exists()
