"""What the workers of this node have counted, read back for operators: how endpoints answered, what caches spared.

Counted since the service began; a worker that is replaced goes on counting (`kit.shared_metrics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from noria.kit.shared_metrics import read_folder
from noria.observe.metrics import FAMILIES

_FAMILIES = {f.name: f for f in FAMILIES}
_TOOK = _FAMILIES["gen_ai_server_request_duration_seconds"]
_FIRST = _FAMILIES["gen_ai_server_time_to_first_token_seconds"]


class Histogram:
    """Counts by bucket, the last of them beyond every bound. `bounds` in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)

    def add(self, values: Sequence[int]) -> None:
        """Take in a series of the same bounds; what stands behind its buckets (the sum) is left out."""
        self.counts = [a + b for a, b in zip(self.counts, values, strict=False)]

    def quantile(self, share: float) -> float | None:
        """The seconds within which `share` of the values lie, linear within a bucket; None where there are none.

        What lies beyond the last bound counts as that bound.

        >>> h = Histogram((1.0, 2.0))
        >>> h.add([0, 4, 0])
        >>> h.quantile(0.5)
        1.5
        """
        rank, below, low = share * sum(self.counts), 0, 0.0
        for n, high in zip(self.counts, self.bounds, strict=False):
            if n and below + n >= rank:
                return low + (high - low) * (rank - below) / n
            below, low = below + n, high
        return low if self.counts[-1] else None


class Seen:
    """One endpoint: attempts by result (`ok` or the kind of failure), whole exchanges that went well, first contents."""

    def __init__(self) -> None:
        self.attempts: dict[str, int] = {}
        self.took = Histogram(_TOOK.bounds)
        self.first = Histogram(_FIRST.bounds)


class Spared(msgspec.Struct, frozen=True):
    """What the answer caches did, by event, the nano-dollars that they spared, and the bytes that living workers hold."""

    events: dict[str, int]
    nanousd: int
    held: int = 0


def by_endpoint(folder: Path) -> dict[str, Seen]:
    """Every endpoint that was counted under its name."""
    found: dict[str, Seen] = {}
    for (name, *labels), values in read_folder(folder, FAMILIES).items():
        family = _FAMILIES[name]
        if "endpoint" not in family.labels:
            continue
        told = dict(zip(family.labels, labels, strict=False))
        seen = found.setdefault(told["endpoint"], Seen())
        if name == "noria_endpoint_attempts":
            seen.attempts[told["result"]] = seen.attempts.get(told["result"], 0) + values[0]
        elif family is _TOOK and not told["error_type"]:
            seen.took.add(values)
        elif family is _FIRST:
            seen.first.add(values)
    return found


def spared(folder: Path) -> Spared:
    """What answers out of a cache did for this node."""
    numbers = read_folder(folder, FAMILIES)
    events = {key[1]: values[0] for key, values in numbers.items() if key[0] == "noria_cache"}
    nanousd, held = (
        sum(values[0] for key, values in numbers.items() if key[0] == name)
        for name in ("noria_cache_saved_nanousd", "noria_cache_bytes")
    )
    return Spared(events, nanousd, held)
