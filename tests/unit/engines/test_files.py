import pytest

from noria.contracts.error import ConfigError, Conflict, RequestError, StoreError
from noria.engines.files import FileBlobs, path_of


@pytest.fixture
def blobs(tmp_path):
    return FileBlobs(f"files://{tmp_path}/blobs")


NAMES = ["a", "a/b", "a/b/c", "../../etc/passwd", "/abs", "a//b", ".", "..", "ü.txt", "x.blob", "a%2Fb", "a b\n"]


async def test_any_name_stays_inside_and_comes_back_as_it_was(blobs, tmp_path):
    for name in NAMES:
        await blobs.put("local", name, name.encode())
    assert await blobs.list("local") == sorted(NAMES, key=str.encode)
    for name in NAMES:
        assert await blobs.get("local", name) == name.encode()
    assert {p.name for p in tmp_path.iterdir()} == {"blobs"}
    assert {p.name for p in (tmp_path / "blobs").iterdir()} == {"local"}


async def test_tenants_named_like_paths_do_not_meet(blobs):
    await blobs.put("a/b", "c", b"1")
    assert await blobs.list("a") == await blobs.list("..") == await blobs.list(".") == []
    assert await blobs.get("a", "b/c") is None


async def test_a_blob_is_immutable_and_a_repeated_put_is_no_error(blobs, tmp_path):
    await blobs.put("local", "a", b"1")
    await blobs.put("local", "a", b"1")
    with pytest.raises(Conflict, match="immutable"):
        await blobs.put("local", "a", b"2")
    assert await blobs.get("local", "a") == b"1"
    assert [p.name for p in (tmp_path / "blobs/local").iterdir()] == ["a.blob"]


async def test_a_put_that_fails_leaves_nothing(blobs, tmp_path, monkeypatch):
    def full(_fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr("os.fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            await blobs.put("local", "a", b"1")
    assert await blobs.list("local") == []
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


async def test_deleting_tells_whether_there_was_one(blobs):
    await blobs.put("local", "a", b"")
    assert await blobs.delete("local", "a")
    assert not await blobs.delete("local", "a")
    assert not await blobs.delete("local", "a/deeper")


async def test_unusable_names_and_urls_are_refused(blobs):
    for name in ("", "x" * 300):
        with pytest.raises(RequestError):
            await blobs.put("local", name, b"")
    for url in ("files://", "s3://bucket"):
        with pytest.raises(ConfigError, match="names no folder"):
            path_of(url)
