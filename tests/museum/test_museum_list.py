"""Every item of the museum has a row in the documents and tests that bear its number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "museum.md"
ITEMS = range(1, 26)
ROW = re.compile(
    r"^\| (\d+) \| (.+?) \| (.+?\.) \| \[(test_\w+\.py)\]\(\.\./\.\./tests/museum/(test_\w+\.py)\) \|$", re.MULTILINE
)


def numbers(name: str) -> range:
    """The items of a file.

    `test_07_to_10_cost.py` → 7, 8, 9, 10.
    """
    found = re.match(r"test_(\d\d)(?:_to_(\d\d))?_", name)
    assert found is not None, name
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def test_every_item_has_one_row() -> None:
    rows = ROW.findall(PAGE.read_text("utf-8"))
    assert [int(number) for number, *_ in rows] == list(ITEMS)
    for number, _, lesson, shown, linked in rows:
        assert shown == linked
        assert int(number) in numbers(linked)
        assert lesson.count(". ") == 0, "one sentence"


def test_every_file_is_in_the_list() -> None:
    linked = {row[4] for row in ROW.findall(PAGE.read_text("utf-8"))}
    assert {p.name for p in HERE.glob("test_[0-9]*.py")} == linked


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_has_tests(item: int) -> None:
    (file,) = [p for p in HERE.glob("test_[0-9]*.py") if item in numbers(p.name)]
    text = file.read_text("utf-8")
    assert re.match(rf'"""Museum {numbers(file.name)[0]}\b', text), f"{file.name} says which item it is"
    named = rf"test_{item:02}_" if len(numbers(file.name)) > 1 else "test_"
    assert re.search(rf"^(async )?def {named}\w+", text, re.MULTILINE), f"{file.name} has no test of item {item}"
    assert not re.search(r"pytest\.mark\.(skip|xfail)\b", text)
