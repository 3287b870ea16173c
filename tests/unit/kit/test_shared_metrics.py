"""Numbers shared by processes: they outlive a kill, and a full disk costs only the sharing."""

from __future__ import annotations

import os
import subprocess
import sys

COUNT = """
import os, resource, signal, sys
from pathlib import Path
{before}
from noria.kit.shared_metrics import share
print(share(Path(sys.argv[1]), "0"))
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
own = CollectorRegistry()
Counter("asked", "", registry=own).inc({asked})
Gauge("alarm", "", registry=own, multiprocess_mode="max").set({alarm})
shared = CollectorRegistry()
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    MultiProcessCollector(shared)
print(generate_latest(shared if "PROMETHEUS_MULTIPROC_DIR" in os.environ else own).decode(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
NO_ROOM = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"


def counted(folder, *, asked: int = 0, alarm: int = 0, before: str = "") -> list[str]:
    """What a process that was killed had shown last."""
    code = COUNT.format(asked=asked, alarm=alarm, before=before)
    env = {k: v for k, v in os.environ.items() if k != "PROMETHEUS_MULTIPROC_DIR"}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False, env=env)
    return [line for line in done.stdout.splitlines() if line and not line.startswith("#") and "_created" not in line]


def test_a_replacement_counts_on_where_its_killed_predecessor_stopped(tmp_path):
    assert set(counted(tmp_path / "m", asked=2)) == {"True", "alarm 0.0", "asked_total 2.0"}
    assert "asked_total 5.0" in counted(tmp_path / "m", asked=3)


def test_an_alarm_ends_with_the_process_that_raised_it(tmp_path):
    assert "alarm 1.0" in counted(tmp_path / "m", alarm=1)
    assert "alarm 0.0" in counted(tmp_path / "m", alarm=0)


def test_every_file_has_its_blocks_so_that_a_full_disk_cannot_kill_the_process(tmp_path):
    counted(tmp_path / "m", asked=1, alarm=1)
    files = list((tmp_path / "m").glob("*.db"))
    assert {f.name for f in files} >= {"counter_0.db", "gauge_max_0.db", "histogram_0.db"}
    assert [f.name for f in files if f.stat().st_blocks * 512 < f.stat().st_size] == []


def test_without_room_a_process_counts_for_itself(tmp_path):
    said = counted(tmp_path / "m", asked=1, before=NO_ROOM)
    assert said[0] == "False"
    assert "asked_total 1.0" in said
