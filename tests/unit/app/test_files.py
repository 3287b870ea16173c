"""Files of callers: sealed, parted by owner, bounded, and gone when they are over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from noria.app import files as module
from noria.app.files import Files, named
from noria.contracts.batch import Owner
from noria.contracts.error import NotFound, RequestError, StoreError
from noria.engines.files import FileBlobs
from noria.engines.memory import MemoryRecords
from noria.settings.files import FileSettings

ANN, BOB = Owner("local", "key:ann", "ann"), Owner("local", "key:bob", "bob")
FAR = Owner("other", "key:ann", "ann")


async def secret(tenant: str, name: str) -> bytes:
    return (tenant + name).encode().ljust(32, b"x")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(MemoryRecords("memory://"), FileBlobs(f"files://{tmp_path}/blobs"), secret, FileSettings(quota=1000))


async def test_what_lies_on_disk_is_sealed(files: Files, tmp_path: Path) -> None:
    kept = await files.add(ANN, "非常机密".encode() * 20, filename="a.txt", purpose="batch")
    assert await files.content(ANN, kept.id) == "非常机密".encode() * 20
    stored = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert stored
    assert not any("非常机密".encode() in data for data in stored)


@pytest.mark.parametrize("stranger", [BOB, FAR], ids=["another key", "another tenant"])
async def test_a_stranger_sees_nothing(files: Files, stranger: Owner) -> None:
    kept = await files.add(ANN, b"x", filename="a", purpose="batch")
    for ask in (files.get, files.content, files.delete):
        with pytest.raises(NotFound):
            await ask(stranger, kept.id)
    assert await files.list(stranger) == []
    assert [f.id for f in await files.list(ANN)] == [kept.id]


async def test_an_owner_whose_name_is_the_beginning_of_anothers_is_somebody_else(files: Files) -> None:
    await files.add(Owner("local", "team:search"), b"x", filename="a", purpose="batch")
    assert await files.list(Owner("local", "team:sea")) == []


async def test_the_quota_counts_what_is_there(files: Files) -> None:
    one = await files.add(ANN, bytes(600), filename="a", purpose="batch")
    with pytest.raises(RequestError, match="No room") as e:
        await files.add(ANN, bytes(401), filename="b", purpose="batch")
    assert e.value.status == 413
    await files.add(BOB, bytes(900), filename="c", purpose="batch")
    await files.delete(ANN, one.id)
    await files.add(ANN, bytes(1000), filename="d", purpose="batch")


async def test_a_result_is_stored_once_whoever_comes_to_it_how_often(files: Files) -> None:
    first = await files.add(ANN, b"one", filename="o", purpose="batch_output", id="file-fixed")
    again = await files.add(ANN, b"two", filename="o", purpose="batch_output", id="file-fixed")
    assert first == again
    assert await files.content(ANN, "file-fixed") == b"one"


async def test_a_result_whose_writer_was_killed_before_it_was_recorded_is_written_anew(files: Files) -> None:
    await files.put("local", "file-fixed", b"half")
    await files.add(ANN, b"whole", filename="o", purpose="batch_output", id="file-fixed")
    assert await files.content(ANN, "file-fixed") == b"whole"


async def test_what_is_over_is_not_there_and_is_swept(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = await files.add(ANN, b"x", filename="a", purpose="batch", keep_seconds=3600)
    await files.add(ANN, b"y", filename="b", purpose="batch")
    now = old.expires_ns
    monkeypatch.setattr(module.time, "time_ns", lambda: now)
    with pytest.raises(NotFound):
        await files.get(ANN, old.id)
    assert await files.sweep("local") == 1
    assert len(list(tmp_path.rglob("*.blob"))) == 1


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\数据.jsonl", "数据.jsonl"),
        ("a\r\nx: y", "ax: y"),
        ("", "file"),
        ("x" * 999, "x" * 255),
    ],
)
def test_names_of_files_are_made_harmless(given: str, kept: str) -> None:
    assert named(given) == kept


async def test_what_is_long_lies_in_pieces_and_leaves_in_pieces(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 100)
    data = bytes(range(250)) * 3
    for kept in (
        await files.add(ANN, data, filename="a", purpose="batch"),
        await files.take_in(BOB, iter([data[i : i + 100] for i in range(0, 750, 100)]), 750, filename="b", purpose="batch"),
    ):
        owner = ANN if kept.owner == ANN.scope else BOB
        assert (kept.bytes, kept.parts) == (750, 8)
        assert [len(p) async for p in files.read(owner, kept.id)] == [100] * 7 + [50]
        assert await files.content(owner, kept.id) == data
        await files.delete(owner, kept.id)
    assert not [p for p in tmp_path.rglob("*.blob") if p.is_file()]


async def test_a_file_that_was_never_finished_is_none_and_is_swept(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(100)
        raise StoreError("the keeper is killed here")

    monkeypatch.setattr(module, "PIECE", 100)
    with pytest.raises(StoreError):
        await files.take_in(ANN, broken(), 500, filename="a", purpose="batch")
    assert await files.list(ANN) == []
    assert list(tmp_path.rglob("*.blob"))
    later = module.time.time_ns() + module.UNFINISHED_NS + 1
    monkeypatch.setattr(module.time, "time_ns", lambda: later)
    assert await files.sweep("local") == 1
    assert not list(tmp_path.rglob("*.blob"))


async def test_a_long_result_that_was_begun_is_written_anew(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 100)
    put = files.put

    async def killed(tenant: str, name: str, data: bytes) -> None:
        if name.endswith("3"):
            raise StoreError("the keeper is killed here")
        await put(tenant, name, data)

    monkeypatch.setattr(files, "put", killed)
    with pytest.raises(StoreError):
        await files.add(ANN, b"x" * 500, filename="o", purpose="batch_output", id="file-fixed")
    monkeypatch.setattr(files, "put", put)
    await files.add(ANN, b"y" * 500, filename="o", purpose="batch_output", id="file-fixed")
    assert await files.content(ANN, "file-fixed") == b"y" * 500
