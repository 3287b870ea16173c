"""The settings of active health probes: whether and how an endpoint is asked if it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from noria.settings.document import Document
from noria.settings.problem import Path, Problem
from noria.settings.shape import Duration, Strict

WORDS = ("models", "completion")


def _asked(value: str) -> str:
    if value in WORDS or (value.startswith("/") and value.isascii() and value.isprintable() and " " not in value):
        return value
    raise ValueError("A probe is `models`, `completion`, or a path that begins with /")


Probe = Annotated[
    str, AfterValidator(_asked), WithJsonSchema({"anyOf": [{"enum": list(WORDS)}, {"type": "string", "pattern": "^/"}]})
]


class HealthSettings(Strict):
    """Ask the endpoint now and then whether it answers, from one process of the node, for all workers."""

    probe: Probe = "models"
    """What is asked: `models`, the endpoint's list of models, which costs nothing; a path of the same host, such as `/health`;
    or `completion`, one token of an answer, which is recorded and priced as an exchange of the app `noria:probe`."""
    every: Duration = Field(default=30.0, ge=1, le=3600)
    """Seconds between two probes, ±10 %."""
    timeout: Duration = Field(default=5.0, gt=0, le=300)
    """Seconds after which a probe has failed."""
    failures: int = Field(default=2, ge=1, le=100)
    """Failures one after the other from which on the endpoint is passed over."""


def _health(value: Any) -> Any:
    return (
        HealthSettings() if value is True else None if value is False else {"probe": value} if isinstance(value, str) else value
    )


Health = Annotated[HealthSettings | None, BeforeValidator(_health, json_schema_input_type=bool | Probe | HealthSettings | None)]
"""`true`, what to ask, or the settings."""


def problems(doc: Document, model: Mapping[str, Any], path: Path, *, in_process: bool) -> Iterator[Problem]:
    """Probes that nothing would come of."""
    given = model.get("health")
    if given in (None, False):
        return
    at = (*path, "health")
    asked = given.get("probe", "models") if isinstance(given, dict) else "models" if given is True else given
    if model.get("provider") == "local":
        yield doc.problem(at, "A local model's own process says how it stands.", "Remove `health`.", key=True)
    elif model.get("kind") == "embedding":
        yield doc.problem(at, "Probes are for models that answer chats.", "Remove `health`.", key=True)
    elif asked != "completion" and in_process:
        yield doc.problem(
            at, f"The provider {model.get('provider')} runs here and has no URL to ask.", "Write probe: completion."
        )
