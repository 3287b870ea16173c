import sqlite3

import pytest

from noria.contracts.error import StoreError
from noria.kit import sql
from noria.kit.sql import MIGRATIONS, Dialect, Query, drive, migrate, render

SQLITE = Dialect(blob="BLOB", bytewise="BINARY", mark="?", skip_locked="")
OTHER = Dialect(blob="BYTEA", bytewise='"C"', mark="%s", skip_locked="FOR UPDATE SKIP LOCKED")
QUERIES = [q for q in vars(sql).values() if isinstance(q, Query)]

FIRST = (Query("m1", "CREATE TABLE one (x BIGINT)"), Query("m1", "INSERT INTO one VALUES (1)"))
SECOND = (Query("m2", "ALTER TABLE one ADD COLUMN y BIGINT NOT NULL DEFAULT 7"),)


@pytest.fixture
def database():
    connection = sqlite3.connect(":memory:", isolation_level=None)

    def execute(query, params):
        return connection.execute(render(query, SQLITE), params).fetchall()

    yield execute
    connection.close()


def test_a_transaction_receives_the_rows_of_each_call_and_returns_its_value():
    def work():
        first = yield Query("q", "A"), (1,)
        second = yield Query("q", "B"), (first, 2)
        return second

    calls = []

    def execute(query, params):
        calls.append((query.text, params))
        return query.text.lower()

    assert drive(work(), execute) == "b"
    assert calls == [("A", (1,)), ("B", ("a", 2))]


def test_a_transaction_without_calls_returns_its_value():
    def work():
        return 5
        yield

    assert drive(work(), lambda query, params: pytest.fail("nothing was called")) == 5


def test_an_error_of_a_call_ends_the_transaction():
    def work():
        yield Query("q", "A"), ()
        pytest.fail("went on after an error")

    def execute(query, params):
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        drive(work(), execute)


@pytest.mark.parametrize("query", [*QUERIES, *(q for statements in MIGRATIONS for q in statements)], ids=lambda q: q.text[:40])
def test_every_query_is_fully_rendered_with_one_mark_a_parameter_and_asks_no_clock(query):
    text = render(query, OTHER)
    assert "?" not in text
    assert "{" not in text
    assert text.count("%s") == query.text.count("?") == text.count("%")
    words = text.upper()
    assert not any(clock in words for clock in ("NOW()", "CURRENT_", "CLOCK_", "DATETIME(", "STRFTIME", "UNIXEPOCH"))


def test_migrations_only_add():
    adding = ("CREATE TABLE ", "CREATE INDEX ", "ALTER TABLE ")
    for query in (q for statements in MIGRATIONS for q in statements):
        assert query.text.startswith(adding)
        assert not any(word in query.text.upper() for word in ("DROP", "RENAME", "ALTER COLUMN"))


def test_the_queries_of_this_release_run_on_its_schema(database):
    drive(migrate(), database)
    for query in QUERIES:
        database(query, (99,) * query.text.count("?"))


def test_migrating_twice_applies_each_migration_once(database):
    assert drive(migrate([FIRST]), database) == 1
    assert drive(migrate([FIRST]), database) == 1
    assert drive(migrate([FIRST, SECOND]), database) == 2
    assert database(Query("q", "SELECT x, y FROM one"), ()) == [(1, 7)]


def test_an_empty_database_gets_all_migrations_in_order(database):
    assert drive(migrate([FIRST, SECOND]), database) == 2
    assert database(Query("q", "SELECT number FROM schema ORDER BY number"), ()) == [(1,), (2,)]


def test_the_release_before_runs_on_the_schema_of_the_next(database):
    drive(migrate([FIRST, SECOND]), database)
    assert drive(migrate([FIRST]), database) == 2


def test_a_schema_two_releases_ahead_is_refused_with_a_way_out(database):
    drive(migrate([FIRST, SECOND]), database)
    with pytest.raises(StoreError, match="migration 2, this Noria knows 0") as e:
        drive(migrate([]), database)
    assert "Run the version" in e.value.hint
