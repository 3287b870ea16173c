"""Append-only files that survive kill -9."""

from __future__ import annotations

from pathlib import Path

import msgspec

from noria.kit.journal import Journal, forget, read


class Entry(msgspec.Struct):
    number: int
    data: bytes = b""


def test_what_was_appended_is_read_back_from_every_writer(tmp_path: Path) -> None:
    for writer in ("a", "b"):
        journal = Journal(tmp_path, writer)
        journal.append("t", Entry(1, f"{writer}\n世界".encode()))
        journal.close()
    assert [e.data for e in read(tmp_path, "t", Entry)] == ["a\n世界".encode(), "b\n世界".encode()]
    assert list(read(tmp_path, "other", Entry)) == []


def test_a_torn_record_hides_no_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    journal.append("t", Entry(1))
    file = tmp_path / "t" / "a.jsonl"
    whole = file.read_bytes()
    for cut in range(1, len(whole)):
        file.write_bytes(whole + whole[:cut])
        journal.append("t", Entry(2))
        assert [e.number for e in read(tmp_path, "t", Entry)] in ([1, 2], [1, 1, 2])
    journal.close()


def test_many_topics_hold_few_files_open_and_a_topic_can_be_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    for i in range(100):
        journal.append(f"t{i}", Entry(i))
    assert len(journal._files) <= 32
    journal.append("t0", Entry(5))
    assert [e.number for e in read(tmp_path, "t0", Entry)] == [0, 5]
    forget(tmp_path, "t0")
    assert list(read(tmp_path, "t0", Entry)) == []
    journal.close()
