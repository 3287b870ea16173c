"""`operate:` of `noria.yaml`: how the service stops, is replaced, and mends itself."""

from __future__ import annotations

from pydantic import Field

from noria.settings.shape import Duration, Strict


class OperateSettings(Strict):
    """How the service stops, is replaced, and mends itself: numbers are seconds, text has a unit (`500ms`, `5s`, `2m`)."""

    notice: Duration = Field(default=0.0, ge=0)
    """On SIGTERM: how long `/readyz` says no before the sockets close, so that a load balancer looks elsewhere first."""
    stop: Duration = Field(default=25.0, gt=0)
    """On SIGTERM: how long answers that have begun may go on."""
    drain: Duration = Field(default=600.0, gt=0)
    """In a rolling replacement (`reload`, `upgrade`): how long an old worker may go on with answers that it has begun."""
    keeper_silent: Duration = Field(default=60.0, gt=0)
    """A keeper that lives, is not busy, and has not answered for so long is killed and started again; at most 3 times an hour."""
