"""What only a Postgres server can do to us: cut connections, refuse rights, fall silent."""

import asyncio

import psycopg
import pytest

from noria.contracts.error import StoreError, Unavailable
from noria.contracts.port import Write
from noria.engines import postgres
from noria.engines.postgres import PostgresRecords
from noria.kit import sql


@pytest.fixture
def schema(postgres_url):
    return postgres_url.rpartition("=")[2]


@pytest.fixture
async def store(postgres_url, schema):
    """Its connections carry the schema's name, so that a test cuts its own and nobody else's."""
    store = PostgresRecords(f"{postgres_url}&application_name={schema}")
    yield store
    await store.close()


@pytest.fixture
def admin(postgres_server):
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        yield connection


def backends(store):
    return [c.info.backend_pid for c in store._db._idle]


async def cut(admin, pids):
    for pid in pids:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    await asyncio.sleep(0.05)


async def test_connections_cut_while_idle_are_replaced_without_an_error(store, admin):
    await asyncio.gather(*(store.revision("a") for _ in range(4)))
    assert len(backends(store)) > 1
    await cut(admin, backends(store))
    assert await store.commit("a", [Write("k", "x", b"1")]) == 1


async def test_a_connection_cut_in_the_middle_of_a_commit_leaves_nothing_of_it(store, admin, postgres_server, schema):
    await store.commit("a", [Write("k", "x", b"old")])
    with psycopg.connect(postgres_server) as holder:
        holder.execute(f'SELECT * FROM "{schema}".records FOR UPDATE')
        attempt = asyncio.create_task(store.commit("a", [Write("k", "new", b""), Write("k", "x", b"new")]))
        waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = %s"
        while not (blocked := admin.execute(waits, (schema,)).fetchall()):
            await asyncio.sleep(0.01)
        await cut(admin, [blocked[0][0]])
        with pytest.raises(StoreError, match="postgres: commit: "):
            await attempt
    assert [(r.id, r.value) for r in await store.scan("a", "k")] == [("x", b"old")]
    assert await store.commit("a", []) == 2


async def test_a_watcher_is_woken_by_notify_long_before_it_would_look(store, postgres_url, monkeypatch):
    monkeypatch.setattr(sql, "POLL_S", 3600)
    other = PostgresRecords(postgres_url)
    await other.commit("a", [])
    watching = asyncio.create_task(store.changed("a", 1, 3600))
    while not watching.done():  # the listener may not be there yet for the first ones
        await asyncio.sleep(0.05)
        await other.commit("a", [])
    assert await watching > 1
    await other.close()


async def test_a_watcher_without_a_listener_looks_by_itself(store, monkeypatch):
    async def nothing(self):
        return None

    monkeypatch.setattr(postgres.PostgresDatabase, "_listen", nothing)
    watching = asyncio.create_task(store.changed("a", 0, 3600))
    await asyncio.sleep(0.05)
    await store.commit("a", [])
    assert await asyncio.wait_for(watching, 20) == 1


async def test_the_listener_comes_back_after_its_connection_is_cut(store, admin, schema, monkeypatch):
    await store.changed("a", 0, 0.3)
    listeners = "SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN noria' AND application_name = %s"
    pids = [pid for (pid,) in admin.execute(listeners, (schema,)).fetchall()]
    assert len(pids) == 1
    await cut(admin, pids)
    monkeypatch.setattr(sql, "POLL_S", 3600)
    watching = asyncio.create_task(store.changed("a", 0, 3600))
    while not watching.done():
        await asyncio.sleep(0.1)
        await store.commit("a", [])
    assert await watching > 0


async def test_calls_beyond_the_pool_wait_and_then_fail_as_an_outage(store, monkeypatch):
    await store.revision("a")
    monkeypatch.setattr(postgres, "WAIT_S", 0.05)
    slots = [await store._db._slots.acquire() for _ in range(postgres.POOL)]
    with pytest.raises(Unavailable, match="busy"):
        await store.revision("a")
    for _ in slots:
        store._db._slots.release()
    assert await store.revision("a") == 0


async def test_many_calls_at_once_use_no_more_connections_than_the_pool_has(store):
    await asyncio.gather(*(store.commit(f"t{n}", [Write("k", "x", b"")]) for n in range(40)))
    assert 1 < len(backends(store)) <= postgres.POOL


async def test_cancelled_calls_leave_no_slot_taken_and_no_transaction_open(store):
    await store.revision("a")
    for n in range(3 * postgres.POOL):
        attempt = asyncio.create_task(store.commit("a", [Write("k", str(i), b"") for i in range(20)]))
        await asyncio.sleep(0.001 * (n % 5))
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
    assert store._db._slots._value == postgres.POOL
    await asyncio.wait_for(store.commit("a", []), 10)


async def test_an_account_that_may_only_use_rows_works_on_a_schema_made_by_another(store, admin, postgres_url, schema):
    role = f"r_{schema}"
    await store.commit("a", [])
    admin.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'test'")
    try:
        admin.execute(f'GRANT USAGE ON SCHEMA "{schema}" TO "{role}"')
        admin.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{role}"')
        limited = PostgresRecords(f"{postgres_url}&user={role}&password=test")
        try:
            assert await limited.commit("a", [Write("k", "x", b"")]) == 2
        finally:
            await limited.close()
    finally:
        admin.execute(f'DROP OWNED BY "{role}"')
        admin.execute(f'DROP ROLE "{role}"')


async def test_two_schemas_of_one_database_know_nothing_of_each_other(store, admin, postgres_url, schema):
    other = PostgresRecords(f"{postgres_url}_2")
    try:
        assert await other.commit("a", [Write("k", "x", b"")]) == 1
        assert await store.revision("a") == 0
        assert await store.commit("a", [Write("k", "x", b"", expect=0)]) == 1
    finally:
        await other.close()
        admin.execute(f'DROP SCHEMA "{schema}_2" CASCADE')
