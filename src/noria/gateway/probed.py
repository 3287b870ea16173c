"""What probes of endpoints say, on its way from the keeper, who makes them, to the workers' passive health.

A probe that fails holds an endpoint out until the next ones must have come; one that succeeds shortens nothing: after the
deadline one real request tries the endpoint, as after any ejection. The bounds of `gateway.health` stand: at most half of
a pool, never the last endpoint of a route.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from noria.gateway.health import Board
from noria.gateway.retry import SECOND_NS


class Probed(msgspec.Struct, frozen=True):
    """An endpoint that is out by its probes."""

    endpoint: str
    state: Literal["ejected", "dead"]
    """`ejected`: it does not answer; `dead`: it refuses our key."""
    left: float
    """Seconds for which that holds."""
    error: str


def apply(board: Board, found: Iterable[Probed], now: int) -> None:
    """Hold these endpoints out, in this worker; saying the same again changes nothing."""
    for probed in found:
        for health in board.named(probed.endpoint):
            well = health.well
            health.hold(probed.state, now, round(probed.left * SECOND_NS))
            health.complained(probed.error, now)
            if well:
                board.note(health, out=True)
