"""`metrics:` of `noria.yaml`: where numbers are pushed to. `/metrics` is there to be read in any case."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from noria.settings.shape import Duration, HttpUrl, SecretReference, Strict


class OtlpSettings(Strict):
    """An OpenTelemetry collector, or whatever else takes OTLP over HTTP (protobuf, gzip)."""

    url: HttpUrl
    """Its base URL, `http://collector:4318`; `/v1/metrics` is added."""
    headers: dict[str, SecretReference] = {}
    """Headers of each push, their values by reference: `{authorization: env:OTLP_AUTHORIZATION}`."""
    every: Duration = Field(default=60.0, ge=1, le=3600)
    """Time between two pushes: seconds, or text with a unit. Retries of a push end with it."""
    names: Literal["both", "current", "earlier"] = "both"
    """GenAI metrics by their names of today (`gen_ai.client.inference.…`), by those up to v1.41 (`gen_ai.client.token.usage`,
    `gen_ai.client.operation.duration`), or by both."""
    resource: dict[str, str] = {}
    """Resource attributes beside or in place of Noria's own: `{deployment.environment.name: production}`."""


class MetricsSettings(Strict):
    """Where metrics go besides `/metrics`."""

    otlp: OtlpSettings | None = None
    """Push by OTLP; nothing is pushed where this is absent."""
