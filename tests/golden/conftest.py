"""Shared by the tests of money end to end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.service.conftest import Caller


@pytest.fixture(scope="session")
def caller() -> Callable[..., Caller]:
    return Caller
