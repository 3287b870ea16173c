import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import msgspec
import pytest

from noria.contracts.error import ConfigError, RequestError, StoreError
from noria.contracts.exchange import Usage
from noria.contracts.port import Body
from noria.contracts.trace import ExchangeRow, SpoolPosition, TraceQuery
from noria.engines.duckdb import DuckdbTraces
from noria.engines.duckdb.file import path_of

DAY = 86_400_000_000_000
T0 = 20_400 * DAY  # 2025-11-08
EVERYTHING = TraceQuery(limit=10_000)


def row(i: int) -> ExchangeRow:
    at = T0 + i * DAY // 1000
    empty = dict.fromkeys(ExchangeRow.__struct_fields__[: -len(ExchangeRow.__struct_defaults__)], "")
    numbers = {"started_ns": at, "status": 200, "duration_ns": 1, "overhead_ns": 1, "ttft_ns": None, "cost_nanousd": None}
    rest = {"stages": (), "attempts": (), "rulings": (), "request": b"", "answer": b"", "usage": Usage(), "cut_tokens": 0}
    words = {"tenant": "local", "id": f"{i:08}", "kind": "chat", "outcome": "ok", "cost_status": "unknown"}
    return ExchangeRow(**{**empty, **numbers, **rest, **words, "stream": False, "answer_is_sse": False})


def batch(start: int, count: int):
    bodies = [Body(f"body-{i}", "", b"%08d" % i * 40) for i in range(start, start + count)]
    return [(row(i), f"body-{i}", "") for i in range(start, start + count)], bodies


@pytest.fixture
async def open_store(tmp_path):
    opened = []

    def open_one() -> DuckdbTraces:
        opened.append(DuckdbTraces(f"duckdb:///{tmp_path}/traces"))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


async def numbers(store) -> list[int]:
    return sorted(int(r.id) for r, _, _ in await store.list("local", EVERYTHING))


async def test_a_url_without_a_folder_is_refused():
    for url in ("duckdb://", "duckdb:///", "sqlite:///x"):
        with pytest.raises(ConfigError, match="names no folder"):
            path_of(url)


async def test_a_second_process_is_refused_and_nothing_is_taken_for_damage(open_store, tmp_path):
    await open_store().append("local", *batch(0, 3), None)
    code = f"import asyncio; from noria.engines.duckdb import DuckdbTraces as D; asyncio.run(D('duckdb:///{tmp_path}/traces').positions())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "StoreError" in other.stderr
    assert "lock" in other.stderr
    assert not list((tmp_path / "traces").glob("*damaged*"))


async def test_sql_reaches_no_file_outside_of_the_sealed_folder(open_store, tmp_path):
    store = open_store()
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(StoreError, match="disabled by configuration"):
        await store._write("x", lambda c: c.execute(f"SELECT * FROM read_csv('{tmp_path}/secret.csv')").fetchall())
    with pytest.raises(StoreError, match="locked"):
        await store._write("x", lambda c: c.execute("SET enable_external_access = true"))


async def test_a_failed_append_leaves_rows_bodies_and_position_as_they_were(open_store, monkeypatch):
    store = open_store()
    await store.append("local", *batch(0, 2), SpoolPosition("w0", 1, 1))
    monkeypatch.setattr("noria.engines.duckdb.batch._advance", lambda c, _: c.execute("SELECT * FROM nowhere"))
    with pytest.raises(StoreError, match="nowhere"):
        await store.append("local", *batch(2, 2), SpoolPosition("w0", 1, 2))
    assert await numbers(store) == [0, 1]
    assert await store.positions() == [SpoolPosition("w0", 1, 1)]


async def test_damage_in_the_wal_costs_only_what_follows_it(open_store, tmp_path):
    code = """
import asyncio, os, sys
sys.path.insert(0, {tests!r})
from test_duckdb import DuckdbTraces, batch
async def main():
    store = DuckdbTraces("duckdb:///{place}/traces")
    for i in range(4):
        await store.append("local", *batch(i * 10, 10), None)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    script = code.format(tests=str(Path(__file__).parent), place=tmp_path)
    subprocess.run([sys.executable, "-c", script], check=False)
    wal = tmp_path / "traces" / "hot.duckdb.wal"
    data = bytearray(wal.read_bytes())
    data[-3000] ^= 0xFF
    wal.write_bytes(data)
    found = await numbers(open_store())
    assert found == list(range(len(found)))
    assert 10 <= len(found) < 40
    assert len(list((tmp_path / "traces").glob("*damaged*"))) == 1


async def test_a_seal_cut_short_before_its_commit_shows_each_row_once(open_store, tmp_path, monkeypatch):
    store = open_store()
    await store.append("local", *batch(0, 30), None)
    with monkeypatch.context() as m:
        m.setattr(store, "_adopt", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await store.seal("local", "2025-11-09")
    assert (tmp_path / "traces/sealed/local/2025-11-08/exchanges.parquet").exists()
    (tmp_path / "traces/sealed/local/.staging-1-ab").mkdir()
    assert await numbers(store) == list(range(30))
    await store.close()
    again = open_store()
    assert await numbers(again) == list(range(30))
    assert await again._write("x", lambda c: c.execute("SELECT count(*) FROM exchanges").fetchone()) == (0,)
    assert [p.name for p in (tmp_path / "traces/sealed/local").iterdir()] == ["2025-11-08"]
    assert (await again.body("local", "body-7")).data == b"00000007" * 40


async def test_a_drop_cut_short_is_finished_at_the_next_start(open_store, tmp_path, monkeypatch):
    store = open_store()
    await store.append("local", *batch(0, 3), None)
    await store.seal("local", "2025-11-09")
    with monkeypatch.context() as m:
        m.setattr(store, "_unlink_dropped", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await store.drop("local", "2025-11-09")
    assert await numbers(store) == []
    await store.close()
    assert await numbers(open_store()) == []
    assert list((tmp_path / "traces/sealed/local").iterdir()) == []


async def test_sealed_rows_survive_the_loss_of_the_hot_file(open_store, tmp_path):
    store = open_store()
    await store.append("local", *batch(0, 5), None)
    await store.seal("local", "2025-11-09")
    await store.close()
    (tmp_path / "traces/hot.duckdb").unlink()
    assert await numbers(open_store()) == [0, 1, 2, 3, 4]


async def test_a_body_named_twice_in_a_day_is_stored_once(open_store):
    store = open_store()
    for i in range(3):
        await store.append("local", [(row(i), "same", "same")], [Body("same", "", b"x")], None)
    assert await store._write("x", lambda c: c.execute("SELECT count(*) FROM bodies").fetchone()) == (1,)


async def test_bodies_of_a_release_that_sealed_each_alone_are_read_beside_new_ones(open_store, tmp_path):
    old = open_store()
    await old.append("local", *batch(0, 2), None)
    await old._write("x", lambda c: [c.execute(f"ALTER TABLE bodies DROP COLUMN {n}") for n in ("ids", "hs")])
    await old.close()
    again = open_store()
    assert (await again.body("local", "body-1")).data == b"00000001" * 40
    await again.append("local", [(row(2), "n1", "n2")], [Body("n1", "", b"both", ("n2",))], None)
    assert len(await again.bodies("local", ["body-0", "n2"])) == 2
    await again.seal("local", "2025-11-09")
    # what the older release sealed: no columns and no file for what is sealed together
    place = tmp_path / "traces/sealed/local/2025-11-08"
    (place / "beside.parquet").unlink()
    file = place / "bodies.parquet"
    with duckdb.connect() as c:
        c.execute(f"COPY (SELECT * EXCLUDE (ids, hs) FROM '{file}' WHERE id LIKE 'body%') TO '{file}.old' (FORMAT parquet)")
    file.with_name("bodies.parquet.old").rename(file)
    await again.append("local", [(row(3), "n3", "n4")], [Body("n3", "", b"late", ("n4",))], None)
    await again.seal("local", "2025-11-09")
    assert {b.id for b in await again.bodies("local", ["body-0", "n4"])} == {"body-0", "n3"}


async def test_what_is_sealed_together_is_one_row_that_an_older_release_can_seal_and_drop(open_store):
    store = open_store()
    await store.append("local", [(row(0), "b1", "b2")], [Body("b1", "", b"both", ("b2",))], None)
    found = await store._write("x", lambda c: c.execute("SELECT id, day, data FROM bodies").fetchall())
    assert found == [("+b1", "2025-11-08", b"both")]


async def test_a_store_that_duckdb_has_invalidated_is_opened_anew(open_store):
    store = open_store()
    await store.append("local", *batch(0, 2), None)

    def fatal(_):
        raise duckdb.FatalException("database has been invalidated because of a previous fatal error")

    with pytest.raises(StoreError, match="invalidated"):
        await store._write("x", fatal)
    old = store._write_to
    assert await numbers(store) == [0, 1]
    assert store._write_to is not old
    await store.append("local", *batch(2, 1), None)
    assert await numbers(store) == [0, 1, 2]


async def test_a_closed_store_says_so(open_store):
    store = open_store()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.positions()


async def test_a_day_must_be_a_day(open_store):
    with pytest.raises(RequestError, match="not a day"):
        await open_store().seal("local", "yesterday")


FULL = """
import asyncio, resource, sys
sys.path.insert(0, {tests!r})
from test_duckdb import DuckdbTraces, StoreError, SpoolPosition, batch, numbers
async def main():
    store = DuckdbTraces("duckdb:///{place}/traces")
    await store.append("local", *batch(0, 10), SpoolPosition("w0", 0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
    done, failed = 0, 0
    while not failed:
        try:
            await store.append("local", *batch(10 + done * 100, 100), SpoolPosition("w0", 0, done + 1))
            done += 1
        except StoreError as e:
            failed = 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for i in range(done, done + 2):
        await store.append("local", *batch(10 + i * 100, 100), SpoolPosition("w0", 0, i + 1))
    assert await numbers(store) == list(range(10 + (done + 2) * 100))
    assert (await store.positions())[0].offset == done + 2
    await store.close()
    print("ok", done)
asyncio.run(main())
"""


async def test_a_disk_that_is_full_refuses_batches_whole_and_goes_on_when_there_is_space(tmp_path, open_store):
    script = FULL.format(tests=str(Path(__file__).parent), place=tmp_path)
    p = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert p.stdout.startswith("ok"), p.stderr
    done = int(p.stdout.split()[1])
    assert await numbers(open_store()) == list(range(10 + (done + 2) * 100))


CRASHING = """
import asyncio, os, sys
sys.path.insert(0, {tests!r})
from test_duckdb import DuckdbTraces, SpoolPosition, batch
async def main():
    store = DuckdbTraces("duckdb:///{place}/traces")
    done = max((p.offset for p in await store.positions()), default=0)
    print("begin", flush=True)
    while True:
        await store.append("local", *batch(done, 100), SpoolPosition("w0", 0, done + 100))
        done += 100
        print(done, flush=True)
        if done % 500 == 0:
            await store.seal("local", "9999-01-01")
asyncio.run(main())
"""


async def crash_rounds(tmp_path, open_store, rounds: int) -> None:
    script = CRASHING.format(tests=str(Path(__file__).parent), place=tmp_path)
    for _ in range(rounds):
        p = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        time.sleep(random.uniform(0, 0.5))
        p.send_signal(signal.SIGKILL)
        lines = p.communicate()[0].split("\n")[:-1]
        store = open_store()
        (position,) = await store.positions() or [SpoolPosition("w0", 0, 0)]
        assert position.offset >= int(lines[-1] if lines else 0)
        assert await store.count("local", TraceQuery()) == position.offset
        newest = await numbers(store)
        assert newest == list(range(position.offset))[-10_000:]
        if position.offset:
            assert (await store.body("local", f"body-{position.offset - 1}")).data
        await store.close()


async def test_kill_9_leaves_each_row_once_and_the_position_with_it(tmp_path, open_store):
    await crash_rounds(tmp_path, open_store, 2)


@pytest.mark.slow
async def test_kill_9_leaves_each_row_once_over_many_rounds(tmp_path, open_store):
    await crash_rounds(tmp_path, open_store, 40)


async def test_questions_are_answered_while_batches_come_in(open_store):
    store = open_store()
    await store.append("local", *batch(0, 10), None)

    async def ask():
        return [await store.count("local", TraceQuery()) for _ in range(10)]

    async def feed():
        for i in range(1, 6):
            await store.append("local", *batch(i * 10, 10), None)
        await store.seal("local", "2025-11-09")

    counts, _ = await asyncio.gather(ask(), feed())
    assert counts == sorted(counts)
    assert await store.count("local", TraceQuery()) == 60


async def test_a_field_added_to_the_row_needs_no_migration(open_store):
    store = open_store()
    await store.append("local", *batch(0, 1), None)
    await store._write("x", lambda c: c.execute("UPDATE exchanges SET detail = json_merge_patch(detail, '{\"new\": 1}')"))
    assert (await store.get("local", "00000000"))[0] == row(0)
    assert msgspec.structs.asdict(row(0))["cut_tokens"] == 0
