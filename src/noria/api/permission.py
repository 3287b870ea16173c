"""What each family of routes asks of its caller. What is not listed here is for operators: nothing opens by being forgotten.

A family is the first word after `/api/`. `tests/unit/api/test_permission.py` holds that every route of the keeper has an
entry, and that each refuses a stranger.
"""

from __future__ import annotations

from typing import Literal

Permission = Literal["open", "operator"]

FAMILIES: dict[str, Permission] = {
    "login": "open",
    "openapi.json": "open",
    "status": "operator",
    "plan": "operator",
    "apply": "operator",
    "traces": "operator",
    "keys": "operator",
    "access": "operator",
    "orgs": "operator",
    "teams": "operator",
    "users": "operator",
    "budgets": "operator",
    "limits": "operator",
    "cost": "operator",
    "endpoints": "operator",
    "cache": "operator",
    "batches": "operator",
    "files": "operator",
    "jobs": "operator",
    "releases": "operator",
    "rollouts": "operator",
    "artifacts": "operator",
    "datasets": "operator",
    "evaluations": "operator",
    "suites": "operator",
    "rows": "operator",
    "exchanges": "operator",
    "feedback": "operator",
    "drift": "operator",
    "refreshes": "operator",
}


def family(path: str) -> str:
    """The first word after `/api/`.

    >>> family("/api/keys/key_1/rotate")
    'keys'
    """
    return path.removeprefix("/api").lstrip("/").partition("/")[0]


def needed(path: str) -> Permission:
    """What a call of this path (decoded, as routes are matched) asks of its caller."""
    return FAMILIES.get(family(path), "operator")
