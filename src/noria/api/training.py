"""`/api/jobs/training`: jobs that train models, for operators."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Query, Request
from pydantic import ConfigDict, Field

from noria.api.field import Id, Strict, actor
from noria.app.keeper import Keeper
from noria.app.training import Shown, Trainings, Wish
from noria.contracts.error import NotFound
from noria.contracts.refresh import Output
from noria.settings.refresh import LoraSettings, ScheduleSettings

LAX = ConfigDict(strict=False, frozen=False, hide_input_in_errors=False)
"""Bodies are read as JSON has them (`"8"` for 8, say), a file as it stands there."""


class LoraBody(LoraSettings):
    """Low-rank adaptation."""

    model_config = LAX


class ScheduleBody(ScheduleSettings):
    """How long and how fast; as `Schedule` of the job's contract."""

    model_config = LAX


class Started(Strict):
    """A job to start."""

    dataset: str = Field(min_length=1, description="A dataset's name (its latest version), name@version, or a version's id.")
    base: str = "smollm2-135m"
    method: Literal["sft", "tiny"] = "sft"
    system: str = ""
    train: str = "train"
    validation: str = "validation"
    lora: LoraBody = LoraBody()
    schedule: ScheduleBody = ScheduleBody()
    seed: int = Field(default=0, ge=0, lt=2**32)
    memory: int = Field(default=0, ge=0, description="Bytes; 0 = as configured.")
    outputs: list[Output] = Field(default=["adapter_gguf"], min_length=1)
    id: Id = ""


def routes(app: FastAPI, keeper: Keeper) -> None:
    """Mount the routes. A keeper without datasets or a job runner trains nothing."""

    def trainings() -> Trainings:
        if keeper.trainings is None:
            raise NotFound("This keeper runs no jobs.", code="not_found")
        return keeper.trainings

    @app.post("/api/jobs/training", tags=["jobs"])
    async def start(request: Request, job: Started) -> dict[str, Any]:
        """Start a training job."""
        return _rendered(await trainings().start(msgspec.convert(job.model_dump(), Wish), actor(request)))

    @app.get("/api/jobs/training", tags=["jobs"])
    async def several() -> list[dict[str, Any]]:
        """Every training job, newest first."""
        return [_rendered(shown) for shown in await trainings().several()]

    @app.get("/api/jobs/training/{id}", tags=["jobs"])
    async def show(id: str, after: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        """One job, with its progress since `after` (the `next` of the last answer)."""
        return _rendered(await trainings().show(id, after))

    @app.post("/api/jobs/training/{id}/stop", tags=["jobs"])
    async def stop(request: Request, id: str) -> dict[str, Any]:
        """End a job; it can be resumed."""
        return _rendered(await trainings().stop(id, actor(request)))

    @app.post("/api/jobs/training/{id}/resume", tags=["jobs"])
    async def resume(request: Request, id: str) -> dict[str, Any]:
        """Let a job that was killed, stopped or has failed go on from its last checkpoint."""
        return _rendered(await trainings().resume(id, actor(request)))


def _rendered(shown: Shown) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(shown)
    return found
