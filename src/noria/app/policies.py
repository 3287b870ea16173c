"""Budgets and limits made while the service runs, beside those of noria.yaml."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from noria.app.registry import Registry, put
from noria.contracts.error import NotFound, RequestError
from noria.contracts.port import Write
from noria.contracts.release import Budget, Limit, Snapshot

Kind = Literal["budget", "limit"]
MOST = 10_000
"""Budgets, or limits, that one tenant may have."""


class Policies:
    """Changes are events, and in force when they return."""

    def __init__(self, registry: Registry, snapshot: Callable[[], Snapshot | None]) -> None:
        self._registry = registry
        self._snapshot = snapshot

    async def add(self, kind: Kind, id: str, made: Budget | Limit, *, actor: str) -> None:
        """Store one. Raises `RequestError` where there are too many."""
        if len(self._ids(kind)) >= MOST:
            raise RequestError(f"There are {MOST} {kind}s already.", code="too_many")
        detail = {"scope": made.scope}
        await self._registry.change([put(kind, id, made, expect=0)], (f"{kind}.created", actor, id, detail))

    async def change(self, kind: Kind, id: str, made: Budget | Limit, *, actor: str) -> None:
        """Store another in the place of one. Raises as `remove`."""
        await self._ours(kind, id)
        await self._registry.change([put(kind, id, made)], (f"{kind}.changed", actor, id, {"scope": made.scope}))

    async def remove(self, kind: Kind, id: str, *, actor: str) -> None:
        """Take one away. Raises `NotFound`; `RequestError` for what noria.yaml defines."""
        await self._ours(kind, id)
        await self._registry.change([Write(kind, id, None)], (f"{kind}.deleted", actor, id, {}))

    async def _ours(self, kind: Kind, id: str) -> None:
        if await self._registry.records.get(self._registry.tenant, kind, id) is None:
            if id in self._ids(kind):
                raise RequestError(
                    f"The {kind} {id!r} is defined in noria.yaml.", code="defined_in_file", hint="Change it there."
                )
            raise NotFound.nearest(kind, id, self._ids(kind), code=f"{kind}_not_found")

    def source(self, id: str) -> str:
        """Where a budget or limit comes from: `api`, `key` or `noria.yaml`."""
        return "api" if id.startswith(("budget_", "limit_")) else "key" if id.startswith("key:") else "noria.yaml"

    def _ids(self, kind: Kind) -> list[str]:
        snapshot = self._snapshot()
        if snapshot is None:
            return []
        return [p.id for p in (snapshot.budgets if kind == "budget" else snapshot.limits)]
