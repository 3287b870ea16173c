"""What a shared cache file does with damage, strangers' files and other versions; its guarantees are in tests/contracts."""

from __future__ import annotations

import os
import sqlite3

import pytest

from noria.contracts.error import StoreError
from noria.contracts.port import CacheEntry
from noria.kit.sqlite_cache import APPLICATION, OVERHEAD, SqliteCacheFile

NOW = 1_795_000_000_000_000_000
ROOM = {"app": 1 << 24}


def entry(n: int = 0, **more) -> CacheEntry:
    return CacheEntry(b"%032d" % n, "app", more.get("subject", ""), NOW, NOW + 10**12, more.get("data", b"x" * 2000))


@pytest.fixture
async def make(tmp_path):
    opened = []

    def open_one() -> SqliteCacheFile:
        opened.append(SqliteCacheFile(tmp_path / "cache.db"))
        return opened[-1]

    yield open_one
    for one in opened:
        await one.close()


async def put(store, *entries) -> int:
    return await store.put("a", entries, room=ROOM, now_ns=NOW)


async def get(store, n: int = 0):
    return await store.get("a", b"%032d" % n, now_ns=NOW)


async def test_the_file_is_for_its_owner_alone(make, tmp_path):
    await put(make(), entry())
    assert {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir() if p.name.startswith("cache.db")} == dict.fromkeys(
        ("cache.db", "cache.db-wal", "cache.db-shm", "cache.db.lock"), 0o600
    )


async def test_a_damaged_file_is_replaced_by_an_empty_one_for_everybody(make, tmp_path):
    one, other = make(), make()
    await put(one, *map(entry, range(50)))
    assert await get(other) is not None
    await one.close()
    await other.close()
    path = tmp_path / "cache.db"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + os.urandom(len(data) - 4096))
    one, other = make(), make()
    assert await get(one) is None
    assert await put(other, entry(1)) == 1
    assert (await get(one, 1)).data == entry(1).data


async def test_a_file_that_is_cut_off_is_replaced(make, tmp_path):
    one = make()
    await put(one, *map(entry, range(50)))
    await one.close()
    os.truncate(tmp_path / "cache.db", 9000)
    one = make()
    assert await get(one, 49) is None
    assert await put(one, entry(2)) == 1
    assert await get(one, 2) is not None


async def test_a_file_that_is_taken_away_is_made_anew(make, tmp_path):
    one, other = make(), make()
    await put(one, entry())
    assert await get(other) is not None
    for path in tmp_path.glob("cache.db*"):
        path.unlink()
    assert await get(other) is None
    assert await put(one, entry(1)) == 1
    assert await get(other, 1) is not None


@pytest.mark.parametrize("what", ["database", "text"])
async def test_somebody_elses_file_is_left_as_it_is(make, tmp_path, what):
    path = tmp_path / "cache.db"
    if what == "text":
        path.write_text("my thesis, the only copy " * 1000)
    else:
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE records(id)")
        db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError):
        await put(make(), entry())
    with pytest.raises(StoreError):
        await get(make())
    assert path.read_bytes() == before


@pytest.mark.parametrize(("version", "works"), [(0, True), (2, False)])
async def test_a_file_of_an_earlier_version_is_begun_anew_and_one_of_a_later_is_left(make, tmp_path, version, works):
    one = make()
    await put(one, entry())
    await one.close()
    with sqlite3.connect(tmp_path / "cache.db") as db:
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    if works:
        assert await get(make()) is None
        assert await put(make(), entry()) == 1
    else:
        with pytest.raises(StoreError, match="newer"):
            await get(make())
        with sqlite3.connect(tmp_path / "cache.db") as db:
            assert db.execute("SELECT count(*) FROM entry").fetchone() == (1,)
            assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION,)
        db.close()


async def test_what_was_dropped_for_a_subject_is_overwritten(make, tmp_path):
    one = make()
    await put(one, entry(0, subject="ann", data=b"needle" * 300), entry(1))
    await one.purge("a", subject="ann", now_ns=NOW)
    assert await get(one, 1) is not None
    assert not any(b"needle" in p.read_bytes() for p in tmp_path.glob("cache.db*"))


async def test_a_purge_gives_the_room_back(make, tmp_path):
    one = make()
    await put(one, *map(entry, range(500)))
    await one.purge("a", now_ns=NOW)
    await one.close()
    assert (tmp_path / "cache.db").stat().st_size < 200_000


@pytest.mark.parametrize("size", [100, 1500, 8000])
async def test_the_overhead_that_is_reckoned_with_covers_what_an_entry_takes(make, tmp_path, size):
    one, n = make(), 500
    await put(one, *(entry(i, data=b"x" * size, subject="s" * 32) for i in range(n)))
    await one.close()
    assert (tmp_path / "cache.db").stat().st_size / n < size + OVERHEAD
