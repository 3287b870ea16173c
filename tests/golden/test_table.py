"""The published table says what the fixtures say."""

from __future__ import annotations

from tests.golden.fixtures import CASES
from tests.golden.table import PAGE, PROVIDERS, page


def test_the_page_is_that_of_the_fixtures() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python -m tests.golden.table"


def test_every_kind_of_provider_has_a_name_and_a_case() -> None:
    assert {case.kind for case in CASES.values()} == set(PROVIDERS)
