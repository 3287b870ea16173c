import asyncio
import sqlite3
import stat
import sys
import threading
from pathlib import Path

import pytest

from noria.contracts.error import ConfigError, StoreError
from noria.contracts.port import Record, Write
from noria.engines.sqlite import SqliteCounter, SqliteQueue, SqliteRecords, path_of


@pytest.fixture
async def store(tmp_path):
    store = SqliteRecords(f"sqlite:///{tmp_path}/deep/down/noria.db")
    yield store
    await store.close()


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///noria.db", "noria.db"),
        ("sqlite:///a/b c.db", "a/b c.db"),
        ("sqlite:////var/noria.db", "/var/noria.db"),
    ],
)
def test_three_slashes_are_relative_and_four_absolute(url, path):
    assert path_of(url) == Path(path)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:////", "sqlite://noria.db", "sqlite:///:memory:", "postgres:///x"]
)
def test_a_url_without_a_file_is_refused_with_the_right_form(url):
    with pytest.raises(ConfigError, match="relative/path") as e:
        SqliteRecords(url)
    assert repr(url) in e.value.text


async def test_nothing_is_created_before_the_first_use(store, tmp_path):
    assert list(tmp_path.iterdir()) == []


async def test_the_files_are_private_to_their_owner_whatever_the_umask(store, tmp_path):
    await store.commit("a", [Write("key", "k", b"secret")])
    files = list((tmp_path / "deep/down").iterdir())
    assert {f.name for f in files} == {"noria.db", "noria.db-wal", "noria.db-shm"}
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}


async def test_the_journal_is_wal_and_every_commit_is_synced(store):
    await store.revision("a")
    db = store._db
    pragmas = [
        await db._call("look", lambda name=n: db._open().execute(f"PRAGMA {name}").fetchone())
        for n in ("journal_mode", "synchronous")
    ]
    assert pragmas == [("wal",), (2,)]


async def test_records_queues_and_counters_share_one_file(tmp_path):
    url = f"sqlite:///{tmp_path}/noria.db"
    records, queue, counter = SqliteRecords(url), SqliteQueue(url), SqliteCounter(url)
    results = await asyncio.gather(
        records.commit("a", [Write("k", "x", b"1")]),
        queue.put("a", "q", "j", b"", now_ns=1),
        counter.take("a", "c", want=5, least=1, ceiling=9, expires_ns=0, now_ns=1),
    )
    assert results == [1, True, 5]
    for instance in (records, queue, counter):
        await instance.close()
    assert [f.name for f in tmp_path.iterdir()] == ["noria.db"], "the last one to close leaves one file"


async def test_the_event_loop_runs_on_while_another_writer_holds_the_file(store, tmp_path):
    await store.commit("a", [])
    other = sqlite3.connect(tmp_path / "deep/down/noria.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(store.commit("a", [Write("k", "x", b"1")]))
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert not waiting.done()
    other.execute("COMMIT")
    other.close()
    assert await waiting == 2


async def test_a_writer_that_never_lets_go_is_an_error_that_names_file_and_operation(tmp_path, monkeypatch):
    monkeypatch.setattr("noria.engines.sqlite.BUSY_S", 0.05)
    store = SqliteRecords(f"sqlite:///{tmp_path}/noria.db")
    await store.commit("a", [])
    other = sqlite3.connect(tmp_path / "noria.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"sqlite: commit: .*noria\.db: .*locked"):
        await store.commit("a", [Write("k", "x", b"1")])
    assert await store.get("a", "k", "x") is None, "readers go on meanwhile"
    other.close()
    assert await store.commit("a", [Write("k", "x", b"1")]) == 2
    await store.close()


async def test_a_file_that_is_no_database_is_an_error_and_left_as_it_was(tmp_path):
    path = tmp_path / "noria.db"
    path.write_bytes(b"not a database, but somebody's thesis. " * 100)
    before = path.read_bytes()
    store = SqliteRecords(f"sqlite:///{path}")
    with pytest.raises(StoreError, match=r"noria\.db: .*not a database"):
        await store.revision("a")
    await store.close()
    assert path.read_bytes() == before


async def test_opening_is_tried_again_after_a_failure(tmp_path):
    store = SqliteRecords(f"sqlite:///{tmp_path}/folder/noria.db")
    (tmp_path / "folder").write_text("in the way")
    with pytest.raises(StoreError):
        await store.revision("a")
    (tmp_path / "folder").unlink()
    assert await store.revision("a") == 0
    await store.close()


async def test_a_file_written_by_a_much_newer_noria_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/noria.db"
    store = SqliteRecords(url)
    await store.revision("a")
    await store.close()
    with sqlite3.connect(tmp_path / "noria.db") as newer:
        newer.execute("INSERT INTO schema VALUES (1000)")
    newer.close()
    store = SqliteRecords(url)
    with pytest.raises(StoreError, match="migration 1000"):
        await store.revision("a")
    await store.close()


async def test_text_that_postgres_could_not_keep_is_refused_here_too(store):
    with pytest.raises(StoreError, match="NUL"):
        await store.commit("a", [Write("k", "fine", b""), Write("k", "x\0y", b"")])
    assert await store.scan("a", "k") == []


async def test_records_outlive_their_instance(tmp_path):
    url = f"sqlite:///{tmp_path}/noria.db"
    first = SqliteRecords(url)
    await first.commit("a", [Write("k", "x", b"1")])
    await first.close()
    second = SqliteRecords(url)
    assert await second.get("a", "k", "x") == Record("k", "x", 1, b"1")
    await second.close()


async def test_closing_waits_for_calls_already_made(store):
    commits = [asyncio.create_task(store.commit("a", [Write("k", str(n), b"")])) for n in range(5)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*commits) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("round", range(10))
async def test_instances_that_open_one_new_file_together_all_succeed(tmp_path, round):
    stores = [SqliteRecords(f"sqlite:///{tmp_path}/noria.db") for _ in range(6)]
    assert sorted(await asyncio.gather(*(s.commit("a", []) for s in stores))) == [1, 2, 3, 4, 5, 6]
    await asyncio.gather(*(s.close() for s in stores))


async def test_opening_a_second_instance_does_not_drop_the_locks_of_the_first(store, tmp_path):
    # Without its lock on the file, the next process to leave believes that it is the last one and unlinks the WAL,
    # into which the first instance goes on writing.
    path = tmp_path / "deep/down/noria.db"
    await store.commit("a", [])
    second = SqliteRecords(f"sqlite:///{path}")
    await second.revision("a")
    code = f"import sqlite3; c = sqlite3.connect({str(path)!r}); c.execute('SELECT * FROM schema').fetchall(); c.close()"
    assert await (await asyncio.create_subprocess_exec(sys.executable, "-c", code)).wait() == 0
    assert path.with_name("noria.db-wal").exists()
    await second.close()


async def test_commits_that_wait_for_the_disk_together_share_one(tmp_path):
    store = SqliteRecords(f"sqlite:///{tmp_path}/r.db")
    await store.commit("a", [])
    said = []
    database = store._db
    await database._call("trace", lambda: database._open().set_trace_callback(said.append))
    gate = threading.Event()
    database._thread.submit(gate.wait)
    commits = [asyncio.create_task(store.commit("a", [Write("k", str(i), b"")], quiet=True)) for i in range(40)]
    await asyncio.sleep(0)
    commits[7].cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait(commits)
    assert said.count("COMMIT") == 1
    assert [r.id for r in await store.scan("a", "k")] == sorted(str(i) for i in range(40) if i != 7)
    await store.close()


async def test_a_commit_that_fits_no_more_fails_and_whoever_was_answered_is_kept(tmp_path):
    url = f"sqlite:///{tmp_path}/r.db"
    store = SqliteRecords(url)
    await store.commit("a", [])
    await store._db._call("limit", lambda: store._db._open().execute("PRAGMA max_page_count = 40").fetchone())
    sizes = [10, 10, 4_000_000, 10, 10]
    commits = [store.commit("a", [Write("k", str(i), bytes(n))], quiet=True) for i, n in enumerate(sizes)]
    ends = await asyncio.gather(*commits, return_exceptions=True)
    kept = [str(i) for i, e in enumerate(ends) if not isinstance(e, StoreError)]
    assert "2" not in kept
    assert "full" in str(ends[2])
    await store.commit("a", [Write("k", "after", b"")])
    await store.close()
    again = SqliteRecords(url)
    assert [r.id for r in await again.scan("a", "k")] == [*kept, "after"]
    await again.close()
