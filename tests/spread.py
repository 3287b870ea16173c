"""How `make test` spreads over processes (pytest-xdist): a file stays in one, and so does a folder whose files share what is dear.

Each process has temporary folders, ports, services, schemas and prefixes of its own. What is installed is shared and only read.
"""

from __future__ import annotations

from pathlib import PurePath

import pytest
from xdist.scheduler import LoadScopeScheduling

WHOLE = ("tests/clients", "tests/conformance", "tests/models")
"""Folders with one service, vendor or model server for all of their files."""
QUICK = ("tests/unit", "tests/contracts", "tests/journeys", "tests/architecture")
"""Files of seconds and less: they come last, so that at the end no process waits long for another."""


def scope_of(nodeid: str) -> str:
    """What runs in one process, for a test: its folder or its file."""
    file = PurePath(nodeid.partition("::")[0])
    return next((folder for folder in WHOLE if PurePath(folder) in file.parents), file.as_posix())


def order(items: list[pytest.Item]) -> None:
    """Quick files last; the order is that of pytest-randomly else."""
    items.sort(key=lambda item: item.nodeid.startswith(QUICK))


class Spread(LoadScopeScheduling):
    """Gives a process the next scope as soon as it has done with the one before."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # the number of its tests says nothing about how long a file takes

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
