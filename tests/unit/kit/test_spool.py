import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noria.contracts.error import StoreError
from noria.contracts.trace import SpoolPosition
from noria.kit.spool import SpoolReader, SpoolWriter

START = SpoolPosition("w0", 0, 0)


@pytest.fixture
def writer(tmp_path):
    w = SpoolWriter(tmp_path, "w0")
    yield w
    w.close()


def payloads(folder: Path, position: SpoolPosition = START, **limits) -> list[bytes]:
    return [r.payload for r in SpoolReader(folder).read(position, **limits)[0]]


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "w0").glob("*.spool"))


def fill(folder: Path, *records: bytes, **options) -> None:
    w = SpoolWriter(folder, "w0", **options)
    for r in records:
        w.append(r)
    w.close()


def test_a_record_can_be_read_as_soon_as_append_returns(tmp_path, writer):
    assert writer.append(b"one") == 1
    assert writer.append(b"") == 2
    records, after = SpoolReader(tmp_path).read(START)
    assert [(r.epoch, r.seq, r.payload) for r in records] == [(writer.epoch, 1, b"one"), (writer.epoch, 2, b"")]
    writer.append(b"three")
    assert payloads(tmp_path, after) == [b"three"]


def test_reading_in_small_steps_gives_each_record_once(tmp_path):
    fill(tmp_path, *(b"%d" % i for i in range(50)), segment_bytes=200)
    assert len(segments(tmp_path)) > 3
    reader, position, seen = SpoolReader(tmp_path), START, []
    while True:
        records, position = reader.read(position, max_records=7)
        if not records:
            break
        seen += [int(r.payload) for r in records]
    assert seen == list(range(50))
    assert reader.behind(position) == 0
    assert reader.damaged == 0


def test_a_record_larger_than_every_limit_is_still_read(tmp_path):
    big = os.urandom(3_000_000)
    fill(tmp_path, b"a", big, b"b")
    _, after = SpoolReader(tmp_path).read(START, max_records=1)
    assert payloads(tmp_path, after, max_bytes=10) == [big]


def test_a_new_writer_begins_a_new_segment_even_when_the_clock_stands_still(tmp_path):
    fill(tmp_path, b"a", now_ns=lambda: 5)
    fill(tmp_path, b"b", now_ns=lambda: 5)
    assert len(segments(tmp_path)) == 2
    assert payloads(tmp_path) == [b"a", b"b"]


def test_a_torn_tail_is_waited_for_while_it_is_newest_and_stepped_over_once_dead(tmp_path):
    fill(tmp_path, b"whole", b"torn")
    os.truncate(segments(tmp_path)[0], segments(tmp_path)[0].stat().st_size - 1)
    reader = SpoolReader(tmp_path)
    records, position = reader.read(START)
    assert [r.payload for r in records] == [b"whole"]
    assert reader.damaged == 0
    fill(tmp_path, b"next")
    records, _ = reader.read(position)
    assert [r.payload for r in records] == [b"next"]
    assert reader.damaged == 1


def test_damage_in_a_dead_segment_costs_only_the_damaged_record(tmp_path):
    fill(tmp_path, b"a" * 100, b"b" * 100, b"c" * 100)
    path = segments(tmp_path)[0]
    for at in (130, 125):  # inside the payload of b; in its length
        data = bytearray(path.read_bytes())
        data[at] ^= 0xFF
        path.write_bytes(data)
        fill(tmp_path, b"new")
        reader = SpoolReader(tmp_path)
        got = [r.payload[:1] for r in reader.read(START)[0]]
        assert got[:3] == [b"a", b"c", b"n"]
        assert reader.damaged == 1


def test_a_segment_with_a_living_writer_is_not_left_behind(tmp_path):
    old, new = SpoolWriter(tmp_path, "w0"), SpoolWriter(tmp_path, "w0")
    old.append(b"1")
    new.append(b"3")
    reader = SpoolReader(tmp_path)
    records, position = reader.read(START)
    old.append(b"2")
    old.close()
    more, _ = reader.read(position)
    assert [r.payload for r in records + more] == [b"1", b"2", b"3"]
    new.close()


def test_a_format_of_the_future_is_stepped_over_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("noria.kit.spool.FORMAT", 2)
    fill(tmp_path, b"future")
    monkeypatch.undo()
    fill(tmp_path, b"known")
    reader = SpoolReader(tmp_path)
    assert [r.payload for r in reader.read(START)[0]] == [b"known"]
    assert (reader.unknown, reader.damaged) == (1, 0)


def test_trim_deletes_only_what_was_consumed_and_is_dead(tmp_path):
    fill(tmp_path, *(b"x" * 100 for _ in range(10)), segment_bytes=300)
    reader = SpoolReader(tmp_path)
    count = len(segments(tmp_path))
    assert reader.trim(START) == 0
    _, end = reader.read(START)
    assert reader.trim(end) == count - 1
    assert reader.read(START)[1] == end
    w = SpoolWriter(tmp_path, "w0")
    w.append(b"y")
    assert payloads(tmp_path, end) == [b"y"]
    w.close()


def test_sync_is_done_after_the_data_are_on_disk(tmp_path, writer, monkeypatch):
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(fd), real(fd)))
    writer.append(b"x")
    writer.sync().result(10)
    assert synced
    assert writer.counts.flushes >= 1


def test_appends_are_synced_by_themselves(tmp_path, writer):
    writer.append(b"x")
    deadline = time.monotonic() + 10
    while writer.counts.flushes == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert writer.counts.flushes == 1


def test_names_that_would_leave_the_folder_are_refused(tmp_path):
    for name in ("", "../x", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="cannot name a spool"):
            SpoolWriter(tmp_path, name)


def test_spools_are_discovered(tmp_path):
    assert SpoolReader(tmp_path / "none").spools() == []
    fill(tmp_path, b"a")
    assert SpoolReader(tmp_path).spools() == ["w0"]
    assert SpoolReader(tmp_path).read(SpoolPosition("other", 0, 0)) == ([], SpoolPosition("other", 0, 0))


def test_a_disk_that_refuses_costs_no_answer_and_is_caught_up_with(tmp_path, monkeypatch):
    real, full = os.writev, [True]

    def writev(fd, parts):
        if full[0]:
            os.write(fd, parts[0][:5])
            raise OSError(28, "No space left on device")
        return real(fd, parts)

    monkeypatch.setattr(os, "writev", writev)
    w = SpoolWriter(tmp_path, "w0", backlog_bytes=300, retry_s=0.01)
    for i in range(5):
        w.append(b"%d" % i * 75)
    assert w.counts[:4] == (5, 2, 3, 300)
    assert "No space left" in w.alarm
    assert "2 were dropped" in w.alarm
    with pytest.raises(StoreError, match="No space left"):
        w.sync().result(10)
    full[0] = False
    deadline = time.monotonic() + 10
    while w.counts.pending and time.monotonic() < deadline:
        time.sleep(0.01)
    w.append(b"after")
    w.sync().result(10)
    assert w.alarm is None
    w.close()
    assert [p[:1] for p in payloads(tmp_path)] == [b"0", b"1", b"2", b"a"]


FULL = """
import resource, sys, time
from pathlib import Path
from noria.kit.spool import SpoolWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
w = SpoolWriter(Path(sys.argv[1]), "w0", retry_s=0.01)
for i in range(200):
    w.append(b"%04d" % i * 250)
assert w.alarm and w.counts.pending > 0 and w.counts.dropped == 0, w.counts
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
while w.counts.pending: time.sleep(0.01)
w.close()
"""


def test_a_file_that_may_not_grow_keeps_whole_records_only(tmp_path):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], check=True, timeout=60)
    assert [int(p[:4]) for p in payloads(tmp_path)] == list(range(200))


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.binary(max_size=300), min_size=1, max_size=8), cut=st.floats(0, 1))
def test_any_truncation_leaves_exactly_the_prefix_of_whole_records(tmp_path_factory, records, cut):
    folder = tmp_path_factory.mktemp("spool")
    fill(folder, *records)
    path = segments(folder)[0]
    size = int(path.stat().st_size * cut)
    os.truncate(path, size)
    ends = [sum(25 + len(r) for r in records[: i + 1]) for i in range(len(records))]
    whole = [r for r, end in zip(records, ends, strict=True) if end <= size]
    assert payloads(folder) == whole
    fill(folder, b"the next writer")
    assert payloads(folder) == [*whole, b"the next writer"]


APPENDING = """
import os, random, sys
from pathlib import Path
from noria.kit.spool import SpoolWriter
w = SpoolWriter(Path(sys.argv[1]), "w0", segment_bytes=200_000)
i = int(sys.argv[2])
while True:
    w.append(b"%010d" % i + os.urandom(random.randrange(5000)))
    os.write(1, b"%d\\n" % i)
    i += 1
"""


def kill_rounds(folder: Path, rounds: int) -> None:
    next_one, acknowledged = 0, []
    for _ in range(rounds):
        p = subprocess.Popen([sys.executable, "-c", APPENDING, str(folder), str(next_one)], stdout=subprocess.PIPE)
        p.stdout.readline()
        time.sleep(random.uniform(0, 0.1))
        p.send_signal(signal.SIGKILL)
        rest = p.communicate()[0].split(b"\n")[:-1]
        acknowledged += range(next_one, next_one + 1 + len(rest))
        next_one += 1_000_000
    reader, position, got = SpoolReader(folder), START, []
    while (step := reader.read(position))[0]:
        position = step[1]
        got += [int(r.payload[:10]) for r in step[0]]
    assert got == sorted(got)
    assert set(acknowledged) <= set(got)
    assert len(got) - len(acknowledged) <= rounds  # appended, killed before it could say so


def test_kill_9_loses_nothing_that_was_appended(tmp_path):
    kill_rounds(tmp_path, 3)


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_appended_over_many_rounds(tmp_path):
    kill_rounds(tmp_path, 100)
