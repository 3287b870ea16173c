"""`apps.<app>.drift`: whether, and how, somebody watches if the app's traffic changes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from noria.contracts.drift import DriftPolicy
from noria.settings.shape import Duration, Strict


class DriftSettings(Strict):
    """The recent window is compared with the reference window before it: `noria drift` says what was found."""

    reference: Duration = Field(default=14 * 86_400.0, ge=60, le=90 * 86_400)
    """Length of the reference window, which ends where the recent one begins; at most what `retention.traces_days` keeps."""
    recent: Duration = Field(default=86_400.0, ge=60, le=30 * 86_400)
    """Length of the recent window, which ends now."""
    every: Duration = Field(default=3600.0, ge=10, le=7 * 86_400)
    """How often they are compared."""
    level: float = Field(default=0.01, gt=0, lt=0.5)
    """False discovery rate over the signals of a report: the share of false ones among those that are called drift."""
    sensitivity: Literal["low", "normal", "high"] = "normal"
    """How large a change must be: `low` asks for twice the usual effect, `high` for half of it."""
    calm: int = Field(default=2, ge=1, le=100)
    """Reports in a row without drift after which an alert is over."""

    def policy(self) -> DriftPolicy:
        """As the app has it."""
        kept = self.model_dump(include={"level", "sensitivity", "calm"})
        return DriftPolicy(self.reference, self.recent, self.every, **kept)
