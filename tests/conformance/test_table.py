"""The published table has every cell that there is, and no other."""

from __future__ import annotations

import re

import pytest
from tests.conformance.table import CLIENTS, COLUMNS, HERE, PAGE, Outcomes, cells, versions


def test_every_file_is_a_client_of_the_table() -> None:
    assert {p.name for p in HERE.glob("test_*.py")} == {*CLIENTS, "test_table.py"}


@pytest.mark.parametrize(("file", "column"), [(f, c) for f in CLIENTS for c in COLUMNS])
def test_every_cell_has_tests(file: str, column: str) -> None:
    assert cells()[file, column]


def test_the_page_has_these_clients_columns_and_cells() -> None:
    text = PAGE.read_text("utf-8")
    columns = re.findall(
        r"[\w ]+", next(line for line in text.splitlines() if line.startswith("| client |")).replace(" | ", "|")
    )
    assert [c.strip().replace(" ", "_") for c in columns if c.strip()] == ["client", "version", *COLUMNS]
    rows = dict(re.findall(r"^\| \[.+?\]\(\.\./\.\./tests/conformance/(\w+\.py)\) \| (.+) \|$", text, re.MULTILINE))
    assert list(rows) == list(CLIENTS), "run: python -m tests.conformance.table"
    there = cells()
    for file, row in rows.items():
        version, *marks = row.split(" | ")
        assert version, file
        assert marks == [f"✓ {len(there[file, column])}" for column in COLUMNS], "run: python -m tests.conformance.table"


def test_the_page_says_when_and_of_what() -> None:
    assert re.search(r"on \d{4}-\d\d-\d\d at \S+, CPython \d", PAGE.read_text("utf-8"))
    assert set(versions()) == set(CLIENTS)


class Report:
    def __init__(self, when: str, outcome: str) -> None:
        self.nodeid, self.when, self.outcome = "tests/conformance/test_llm.py::test_tools[whole]", when, outcome


def test_a_cell_that_was_skipped_or_broke_in_its_fixture_does_not_count_as_passed() -> None:
    for bad in ("skipped", "failed"):
        outcomes = Outcomes()
        outcomes.pytest_runtest_logreport(Report("setup", bad))
        assert outcomes.of == {("test_llm.py", "test_tools"): [bad]}
    outcomes = Outcomes()
    for when in ("setup", "call", "teardown"):
        outcomes.pytest_runtest_logreport(Report(when, "passed"))
    assert outcomes.of == {("test_llm.py", "test_tools"): ["passed"]}
