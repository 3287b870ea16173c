"""`files:` and `batches:` of `noria.yaml`: what callers may store, and how their batches are worked off."""

from __future__ import annotations

from pydantic import Field

from noria.settings.shape import Duration, Size, Strict


class FileSettings(Strict):
    """Files that callers store by `/v1/files`."""

    max_size: Size = Field(default=512 * 1024**2, ge=1024)
    """Largest upload: bytes, or text such as `512MB`. It passes through the disk; `serve.body_limit` is of all other requests."""

    keep_days: int = Field(default=30, ge=1, le=3650)
    """Days that a file is kept where its caller does not say (`expires_after`)."""
    quota: Size = Field(default=1024**3, ge=0)
    """Bytes that the files of one key, or of one team, may have together."""


class BatchSettings(Strict):
    """How batches are worked off line by line, where the endpoint has no batch API of its own."""

    in_flight: int = Field(default=8, ge=1, le=1024)
    """Lines asked at once, over all batches of this node; fewer while callers are being served or an endpoint is busy."""
    most_open: int = Field(default=16, ge=1, le=1000)
    """Batches that one key, or one team, may have open at once."""
    max_input: Size = Field(default=64 * 1024**2, ge=1024)
    """Largest input file of a batch: its lines stay in the keeper's memory while it is worked off."""
    poll: Duration = Field(default=30.0, gt=0, le=3600)
    """How often an endpoint's own batch API is asked how far it has come: seconds, or text with a unit."""
