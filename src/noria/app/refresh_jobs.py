"""The long steps of a refresh: a training and two evaluations, begun once, followed, and taken up again where they were killed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec

from noria.app.refresh_client import Client, Refused
from noria.contracts.error import Conflict
from noria.contracts.evaluation import Suite
from noria.journeys.model import Table
from noria.kit.ids import digest

LOOK_S = 0.25
TRIES = 3
"""How often a job that ended without a result is begun again by one process of a refresh."""


class Jobs:
    """Those of one turn."""

    def __init__(self, client: Client, table: Table) -> None:
        self._client = client
        self._table = table

    async def train(self, body: dict[str, Any], what: str) -> dict[str, Any]:
        """A training job to its end. Raises `Refused` where it fails, in the trainer's own words."""
        shown = await self._client.call("POST", "/api/jobs/training", body | {"id": child(self._client.id, f"train {what}")})
        path = f"/api/jobs/training/{shown['id']}"
        await self._table.note("train", {"job": shown["id"]})
        place, tries = 0, 0
        if shown["state"] == "stopped":
            await self._resume(path)
        while True:
            shown = await self._client.call("GET", f"{path}?after={place}")
            place = shown["next"]
            if shown["state"] == "done":
                return dict(shown)
            if shown["state"] in ("failed", "lost"):
                tries += shown["state"] == "failed"
                if tries > TRIES:
                    raise Refused(shown["reason"], code="training_failed")
                await self._resume(path)
            if shown["state"] == "stopped":
                raise Refused(f"The training {shown['id']} was stopped.", code="training_stopped")
            if shown["progress"]:
                await self._client.progress(job=shown["id"], **shown["progress"][-1])
            await asyncio.sleep(LOOK_S)

    async def evaluate(
        self, app: str, suite: Suite, releases: tuple[str, str], concurrency: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The suite asked of both releases, one after the other. Raises `Refused` where one cannot be."""
        names = [child(self._client.id, f"evaluate {release} {suite.dataset}") for release in releases]
        await self._table.note("evaluate", {"jobs": [f"eval_{name}" for name in names]})
        found = []
        for which, name, release in zip(("current", "candidate"), names, releases, strict=True):
            body = {
                "definition": msgspec.to_builtins(suite), "app": app, "release": release, "concurrency": concurrency, "id": name,
            }  # fmt: skip
            found.append(await self._evaluated(body, which))
        return found[0], found[1]

    async def _resume(self, path: str) -> None:
        """Have a job go on, if nobody else has: a process of this turn that was given up may live for a moment."""
        with suppress(Conflict):
            await self._client.call("POST", f"{path}/resume")

    async def _evaluated(self, body: dict[str, Any], which: str) -> dict[str, Any]:
        shown = await self._client.call("POST", "/api/evaluations", body)
        path, tries = f"/api/evaluations/{shown['id']}", 0
        if shown["state"] == "stopped":
            await self._resume(path)
            shown = await self._client.call("GET", path)
        while shown["state"] != "done":
            if shown["state"] == "failed":
                tries += 1
                if tries > TRIES:
                    raise Refused(f"The {which} release could not be measured: {shown['says']}", code="evaluation_failed")
                await self._resume(path)
            if shown["state"] == "stopped":
                raise Refused(f"The evaluation {shown['id']} was stopped.", code="evaluation_stopped")
            await self._client.progress(job=shown["id"], release=which, unit="items", **shown["progress"])
            await asyncio.sleep(LOOK_S)
            shown = await self._client.call("GET", path)
        return dict(shown)


def child(refresh: str, what: str) -> str:
    """The UUID of something that a turn begins: as old as the turn, and the same whoever begins it.

    >>> child("refresh_01939f9a-2b3c-7def-8123-456789abcdef", "train d1:")[:14]
    '01939f9a-2b3c-'
    """
    uuid, more = refresh.removeprefix("refresh_"), digest(f"{refresh} {what}".encode())
    return f"{uuid[:15]}{more[:3]}-{uuid[19]}{more[3:6]}-{more[6:18]}"
