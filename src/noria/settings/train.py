"""`train:` of `noria.yaml`: what training jobs run in, and how much they may take."""

from __future__ import annotations

from pydantic import Field

from noria.settings.shape import Size, Strict


class TrainSettings(Strict):
    """How jobs train models."""

    python: str = ""
    """The interpreter that has the libraries of `noria[train]`; empty = the one that Noria runs in."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads of a job; 0 = all cores."""
    memory: Size = Field(default=0, ge=0)
    """Most memory that a job may be predicted to take: bytes, or text such as `8GB`; 0 = what is free when it starts."""
