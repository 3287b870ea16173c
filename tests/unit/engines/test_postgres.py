"""What needs no server; the rest is in `tests/contracts`."""

import pytest

from noria.contracts.error import ConfigError, Unavailable
from noria.engines.postgres import PostgresRecords, split_url


@pytest.mark.parametrize(
    ("url", "conninfo", "schema"),
    [
        ("postgres://u@h:5432/db", "postgres://u@h:5432/db", "noria"),
        ("postgresql://u@h/db?schema=team_1", "postgresql://u@h/db", "team_1"),
        ("postgres://u:p%40ss@h/db?sslmode=require&schema=x&application_name=my%20app",
         "postgres://u:p%40ss@h/db?sslmode=require&application_name=my%20app", "x"),
        ("postgres:///db?host=/run/postgresql", "postgres:///db?host=%2Frun%2Fpostgresql", "noria"),
    ],
)  # fmt: skip
def test_the_schema_is_taken_out_of_the_url_and_the_rest_goes_to_libpq(url, conninfo, schema):
    assert split_url(url) == (conninfo, schema)


@pytest.mark.parametrize("schema", ["Team", "1x", 'a"; drop schema b; --', "", "x" * 64, "a-b", "a.b", "ä"])
def test_a_schema_that_would_need_quoting_is_refused(schema):
    from urllib.parse import quote

    with pytest.raises(ConfigError, match="cannot be a schema"):
        PostgresRecords(f"postgres://u@h/db?schema={quote(schema)}")


@pytest.mark.parametrize(
    "url", ["mysql://u:hunter2@h/db", "postgres://u:hunter2@h/db?nonsense=hunter2", "postgres://u:hunter2%zz@h/db"]
)
def test_a_url_that_cannot_be_read_is_refused_without_showing_its_password(url):
    with pytest.raises(ConfigError, match="postgres://user:password@host") as e:
        PostgresRecords(url)
    assert "hunter2" not in str(e.value)
    assert e.value.__cause__ is None


async def test_a_server_that_does_not_answer_is_our_outage_and_shows_no_password():
    store = PostgresRecords("postgres://u:hunter2@127.0.0.1:1/db")
    with pytest.raises(Unavailable, match="cannot connect") as e:
        await store.revision("a")
    assert "hunter2" not in str(e.value)
    await store.close()
