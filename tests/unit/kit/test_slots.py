"""Slots: what was put and not cleared is there after the process, and whoever lives is known to."""

from __future__ import annotations

import subprocess
import sys

import pytest

from noria.kit import slots


def test_what_is_cleared_is_gone_and_the_rest_stays(tmp_path) -> None:
    kept = slots.Slots(tmp_path, "w0", 5)
    first, second = kept.put(b"one"), kept.put(b"two")
    kept.clear(first)
    assert len(kept) == 1
    assert list(slots.payloads(kept.path)) == [b"two"]
    assert kept.put(b"three") == first, "slots are used again"
    kept.clear(first)
    kept.clear(second)
    kept.close()
    assert slots.every(tmp_path) == []


def test_it_grows_and_refuses_what_is_too_long(tmp_path) -> None:
    kept = slots.Slots(tmp_path, "w0", 5, slot_bytes=64, slots=2)
    for i in range(9):
        kept.put(b"%d" % i)
    assert sorted(slots.payloads(kept.path)) == [b"%d" % i for i in range(9)]
    with pytest.raises(ValueError, match="do not fit"):
        kept.put(b"x" * 61)
    kept.close()
    (left,) = slots.every(tmp_path)
    assert (left.alive, left.holder) == (False, "w0.5")


def test_a_killed_process_leaves_what_it_had_under_way(tmp_path) -> None:
    code = f"""
from noria.kit.slots import Slots; from pathlib import Path; import os
s = Slots(Path({str(tmp_path)!r}), "w-1", 7); s.clear(s.put(b"done")); s.put(b"under way"); print("up", flush=True)
input(); os.kill(os.getpid(), 9)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "up\n"
    assert slots.every(tmp_path)[0].alive
    child.communicate("\n")
    (left,) = slots.every(tmp_path)
    assert (left.alive, left.name, left.epoch) == (False, "w-1", 7)
    assert list(slots.payloads(left.path)) == [b"under way"]


def test_a_file_that_is_none_of_ours_has_nothing(tmp_path) -> None:
    (tmp_path / "w.1.slots").write_bytes(b"")
    (tmp_path / "readme.slots").write_bytes(b"x")
    assert [list(slots.payloads(f.path)) for f in slots.every(tmp_path)] == [[]]
