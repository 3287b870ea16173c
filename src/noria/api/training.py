"""`/api/jobs/training`: jobs that train models, for operators."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec
from fastapi import FastAPI, Query, Request
from pydantic import Field

from noria.api.field import Id, Strict, actor
from noria.app.keeper import Keeper
from noria.app.training import Shown, Trainings, Wish
from noria.contracts.error import NotFound

Output = Literal["adapter_gguf", "merged_f16", "merged_q8_0", "merged_q4_k_m"]
Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraBody(Strict):
    """Low-rank adaptation."""

    r: int = Field(default=16, ge=1, le=256)
    alpha: int = Field(default=32, ge=1, le=1024)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[Target, ...] = get_args(Target)


class ScheduleBody(Strict):
    """How long and how fast; as `Schedule` of the job's contract."""

    epochs: float = Field(default=1.0, gt=0, le=1000)
    steps: int = Field(default=0, ge=0)
    batch: int = Field(default=8, ge=1, le=1024)
    accumulate: int = Field(default=1, ge=1, le=1024)
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    max_length: int = Field(default=256, ge=8, le=131_072)
    checkpoint_every: int = Field(default=20, ge=1)


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
