"""Numbers shared by processes: they outlive a kill, alarms do not, and a full disk costs only the sharing."""

from __future__ import annotations

import os
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from noria.kit.shared_metrics import OTHER, SERIES, Counts, Family, exposition, read_folder, totals

ASKED = Family("asked", "counter", "Questions.", ("who",))
TOOK = Family("took_seconds", "histogram", "Time.", (), (0.1, 1.0), 1000)
ALARM = Family("alarm", "gauge", "Alarm.", merge="max")
FAMILIES = (ASKED, TOOK, ALARM)
COUNT = """
import os, resource, signal, sys
from pathlib import Path
from noria.kit.shared_metrics import Counts, Family
{before}
counts = Counts((Family("asked", "counter", "Questions.", ("who",)), Family("took_seconds", "histogram", "Time.", (), (0.1, 1.0), 1000),
                 Family("alarm", "gauge", "Alarm.", merge="max")), Path(sys.argv[1]))
counts.add("asked", {asked}, "me")
counts.set("alarm", 1)
print(counts.shared, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
NO_ROOM = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"


def killed(path, *, asked: int = 0, before: str = "") -> str:
    """A process that counts and is killed; whether its numbers were shared."""
    code = COUNT.format(asked=asked, before=before)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    return done.stdout.strip()


def test_a_killed_process_has_lost_no_count_and_its_replacement_counts_on(tmp_path):
    assert killed(tmp_path / "0.counts", asked=2) == "True"
    assert read_folder(tmp_path, FAMILIES)["asked", "me"] == [2]
    killed(tmp_path / "0.counts", asked=3)
    killed(tmp_path / "0b.counts", asked=4)
    assert read_folder(tmp_path, FAMILIES)["asked", "me"] == [9]


def test_an_alarm_ends_with_the_process_that_raised_it(tmp_path):
    killed(tmp_path / "0.counts")
    assert ("alarm",) not in read_folder(tmp_path, FAMILIES)
    mine = Counts(FAMILIES, tmp_path / "0.counts")
    assert totals(tmp_path, mine)["alarm",] == [0]


def test_every_file_has_its_blocks_so_that_a_full_disk_cannot_kill_the_process(tmp_path):
    Counts(FAMILIES, tmp_path / "0.counts")
    stat = (tmp_path / "0.counts").stat()
    assert stat.st_blocks * 512 >= stat.st_size


def test_without_room_a_process_counts_for_itself(tmp_path):
    assert killed(tmp_path / "0.counts", before=NO_ROOM) == "False"
    assert not (tmp_path / "0.counts").exists()


def test_numbers_of_a_version_with_other_families_are_left_alone(tmp_path):
    other = Counts((ASKED,), tmp_path / "old.counts")
    other.add("asked", 5, "me")
    mine = Counts(FAMILIES, tmp_path / "0.counts")
    mine.add("asked", 1, "me")
    assert totals(tmp_path, mine)["asked", "me"] == [1]
    assert os.getpid() == int.from_bytes((tmp_path / "old.counts").read_bytes()[8:16], "little")


def test_series_beyond_the_room_are_counted_as_other(tmp_path):
    counts = Counts(FAMILIES)
    for n in range(SERIES + 100):
        counts.add("asked", 1, f"user-{n}")
    numbers = totals(tmp_path, counts)
    assert len([k for k in numbers if k[0] == "asked"]) == SERIES + 1
    assert numbers["asked", OTHER] == [100]


def test_the_exposition_is_what_prometheus_parses(tmp_path):
    counts = Counts(FAMILIES, tmp_path / "0.counts")
    counts.add("asked", 7, 'a "quoted" \\ name\nof two lines')
    for ms in (50, 100, 500, 70_000):
        counts.observe("took_seconds", ms)
    text = exposition(FAMILIES, totals(tmp_path, counts)).decode()
    parsed = {s.name + str(s.labels.get("le", "")): s for f in text_string_to_metric_families(text) for s in f.samples}
    assert parsed["asked_total"].value == 7
    assert parsed["asked_total"].labels == {"who": 'a "quoted" \\ name of two lines'}
    assert [parsed[f"took_seconds_bucket{le}"].value for le in ("0.1", "1", "+Inf")] == [2, 3, 4]
    assert parsed["took_seconds_sum"].value == 70.65
    assert parsed["took_seconds_count"].value == 4
