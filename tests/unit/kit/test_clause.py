import pytest

from noria.contracts.error import RequestError
from noria.contracts.trace import Clause
from noria.kit.clause import Column, compile_clauses

COLUMNS = {
    "name": Column("name", "text"),
    "size_ms": Column("size", "number", 1_000_000),
    "open": Column("open", "bool"),
    "time": Column("at", "time"),
    "tag": Column("tags", "set"),
}


def compiled(*clause):
    return compile_clauses([Clause(*clause)], COLUMNS)


def test_no_clause_is_always_true():
    assert compile_clauses([], COLUMNS)[:2] == ("true", {})


def test_values_are_bound_and_never_part_of_the_sql():
    found = compiled("name", "=", "'; DROP TABLE x")
    assert found.sql == "name = $c0"
    assert found.params == {"c0": "'; DROP TABLE x"}


@pytest.mark.parametrize(
    ("clause", "value"),
    [
        (("size_ms", ">", "1.5"), 1_500_000),
        (("size_ms", ">", "0.0000001"), 0.1),
        (("open", "=", "TRUE"), True),
        (("time", ">=", "12345"), 12345),
        (("time", ">=", "1970-01-02"), 86_400_000_000_000),
        (("time", ">=", "1970-01-01T01:00:00.000001+01:00"), 1000),
    ],
)
def test_values_take_their_columns_type_and_unit(clause, value):
    assert compiled(*clause).params["c0"] == value


def test_time_clauses_bound_the_days_to_look_at():
    both = compile_clauses([Clause("time", ">=", "100"), Clause("time", "<", "200")], COLUMNS)
    assert (both.first_ns, both.last_ns) == (100, 200)


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        (("nam", "=", "x"), "'name'"),
        (("size_ms", "=", "big"), "a number"),
        (("size_ms", "=", "NaN"), "a number"),
        (("size_ms", "=", "1e40"), "a number"),
        (("open", "=", "maybe"), "true or false"),
        (("time", ">", "yesterday"), "a time"),
        (("name", ">", "x"), "Use one of"),
        (("size_ms", "~", "1"), "Use one of"),
        (("tag", "<", "1"), "Use one of"),
    ],
)
def test_what_cannot_be_asked_is_said_with_what_can(clause, words):
    with pytest.raises(RequestError) as e:
        compiled(*clause)
    assert words in e.value.text
    assert e.value.param == clause[0]
