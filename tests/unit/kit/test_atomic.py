"""Whole or not at all, also when the writer fails or is killed."""

import os
import subprocess
import sys

import pytest

from noria.kit.atomic import STAGING, alive, staged, write_whole


def test_a_written_file_is_private_and_whole(tmp_path):
    write_whole(tmp_path / "a", b"one")
    write_whole(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "a", b"a file cannot replace a folder")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_staged_folder_appears_when_the_block_ends(tmp_path):
    with staged(tmp_path / "m") as folder:
        (folder / "x").write_bytes(b"1")
        assert not (tmp_path / "m").exists()
    assert (tmp_path / "m" / "x").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_staged_folder_replaces_what_was_there(tmp_path):
    for content in ("old", "new"):
        with staged(tmp_path / "m") as folder:
            (folder / content).touch()
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_failed_block_leaves_the_old_folder_and_nothing_else(tmp_path):
    with staged(tmp_path / "m") as folder:
        (folder / "old").touch()
    with pytest.raises(IsADirectoryError), staged(tmp_path / "m") as folder:
        folder.read_bytes()
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom noria.kit.atomic import staged\n"
        f"with staged(Path({str(tmp_path / 'm')!r})) as folder:\n    (folder / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert [p.name.startswith(STAGING) for p in tmp_path.iterdir()] == [True]
    with staged(tmp_path / "m"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_another_writers_unfinished_folder_is_left_alone(tmp_path):
    with staged(tmp_path / "one") as one, staged(tmp_path / "two"):
        (one / "x").touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    assert (tmp_path / "one" / "x").exists()


def test_alive_tells_the_living_from_the_dead():
    assert alive(os.getpid())
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not alive(process.pid)
    assert not alive(process.pid)
