"""When each key was last used: seen in the rows that are recorded, kept once a minute. No request waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from noria.app.definition import KEY
from noria.app.registry import put
from noria.contracts.error import StoreError
from noria.contracts.port import RecordStore
from noria.contracts.trace import ExchangeRow

log = logging.getLogger("noria.keeper")

KEPT = ("key_used", "all")
EVERY = 60.0
"""Seconds between two writes; a keeper that is killed forgets at most these."""


class LastUsed:
    """Key id → int64 ns UTC. One record for all keys; several keepers of one store each keep the later time."""

    def __init__(self, records: RecordStore, tenant: str) -> None:
        self._records = records
        self._tenant = tenant
        self._fresh: dict[str, int] = {}
        self._kept: dict[str, int] = {}

    def see(self, rows: Sequence[ExchangeRow]) -> None:
        """Take note of who asked."""
        fresh, tenant = self._fresh, self._tenant
        for row in rows:
            if row.key and row.tenant == tenant and row.started_ns > fresh.get(row.key, 0):
                fresh[row.key] = row.started_ns

    def of(self, key: str) -> int | None:
        """When the key was last used, as far as it is known."""
        return max(self._fresh.get(key, 0), self._kept.get(key, 0)) or None

    async def run(self) -> None:
        """Read what is kept, then keep what is seen, until cancelled."""
        while True:
            await self.save()
            await asyncio.sleep(EVERY)

    async def save(self) -> None:
        """Merge what was seen into the record, without keys that are gone; tried again later where the store is away."""
        taken = dict(self._fresh)
        try:
            record = await self._records.get(self._tenant, *KEPT)
            kept = msgspec.msgpack.decode(record.value, type=dict[str, int]) if record else {}
            merged = {k: max(kept.get(k, 0), taken.get(k, 0)) for k in kept | taken}
            if merged != kept:
                merged = await self._living(merged)
            if merged != kept:
                kept_at = record.version if record else 0
                await self._records.commit(self._tenant, [put(*KEPT, merged, expect=kept_at)], quiet=True)
        except StoreError as e:
            log.warning("when keys were last used is not kept yet: %s", e)
            return
        self._kept = merged
        self._fresh = {k: at for k, at in self._fresh.items() if at != taken.get(k)}

    async def _living(self, times: dict[str, int]) -> dict[str, int]:
        there: set[str] = set()
        after = ""
        while page := await self._records.scan(self._tenant, KEY, after=after, limit=1000):
            there |= {r.id for r in page}
            after = page[-1].id
        return {k: at for k, at in times.items() if k in there}
