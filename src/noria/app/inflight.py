"""The reservations that a worker has open, where the keeper finds them after its death (`kit.slots`)."""

from __future__ import annotations

import logging
from pathlib import Path

from noria.kit.slots import Slots

log = logging.getLogger("noria.worker")


class Inflight:
    """`gateway.budget.Journal` of one worker's life. Without a disk to write to, nothing can be set aside: budgets answer 503,
    everything else goes on.
    """

    def __init__(self, folder: Path, worker: str, epoch: int) -> None:
        self.holder = f"{worker}.{epoch}"
        self._slots: Slots | None = None
        try:
            self._slots = Slots(folder, worker, epoch)
        except OSError as e:
            log.error("budgets cannot be reserved: %s cannot be written (%s)", folder, e.strerror)

    def put(self, payload: bytes, /) -> int:
        """As `Journal.put`."""
        if self._slots is None:
            raise OSError("no file for reservations")
        return self._slots.put(payload)

    def clear(self, slot: int, /) -> None:
        """As `Journal.clear`."""
        if self._slots is not None:
            self._slots.clear(slot)

    def close(self) -> None:
        """Nothing is under way any more."""
        if self._slots is not None:
            self._slots.close()
