"""The answers that all workers share, as a worker and the keeper reach them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from time import time_ns
from typing import Any

from blake3 import blake3

from noria.contracts.error import NoriaError, StoreError
from noria.contracts.port import CacheStore
from noria.contracts.release import Snapshot
from noria.gateway.cache import Cache
from noria.gateway.tier import Tier
from noria.kit import extension
from noria.observe.tally import spared
from noria.observe.vault import Vault

log = logging.getLogger("noria.cache")

_NAMES, _BODIES = "noria 2026-11-22 names of cached answers", "noria 2026-11-22 bodies of cached answers"
WARM_WITHIN = 1.0
"""Seconds that a worker at its start waits at most until it can look up what is shared: a replacement should know it at once."""
WARMED = 8
"""Tenants for whom it does."""
EXPIRE_EVERY = 60.0
"""Seconds between two looks of the keeper for what has expired; what has is given to nobody meanwhile."""


def open_cache(url: str) -> CacheStore:
    """The engine of a URL. Raises `ConfigError`, `MissingDependency`, `NotFound`."""
    made: CacheStore = extension.engine(url.partition("://")[0]).serves[CacheStore](url)
    return made


def body_key(key: bytes) -> bytes:
    """What seals the cached answers of the subject (or tenant) that has this key: who has it can open nothing else."""
    return blake3(key, derive_key_context=_BODIES).digest()


class Sharing:
    """A worker's part: the tier is opened once the keeper has said where it is, and run until the worker ends."""

    def __init__(self, cache: Cache, key: Callable[[str, str], Awaitable[bytes]]) -> None:
        self._cache = cache
        self._key = key
        self._url = ""
        self._running: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()
        """Set once it is known whether answers are shared, and the way there has been gone once."""

    async def adopt(self, url: str, secret: bytes, tenants: Iterable[str]) -> None:
        """Share by `url`; `secret` names answers. Where that cannot be, the worker's own memory serves, and the log says why."""
        self._cache.share(blake3(secret, derive_key_context=_NAMES).digest())
        if url != self._url:
            await self.close()
            self._url = url
            try:
                await self._open(url, tenants)
            except (NoriaError, KeyError) as e:
                log.error("answers are not shared between workers: %s", e)
        self.ready.set()

    async def _open(self, url: str, tenants: Iterable[str]) -> None:
        if url:
            tier = self._cache.tier = Tier(open_cache(url), self._vault, self._cache.forget, self._cache.counts)
            self._running = asyncio.create_task(tier.run())
            with suppress(TimeoutError):
                async with asyncio.timeout(WARM_WITHIN):
                    for tenant in islice(tenants, WARMED):
                        await tier.warm(tenant)

    async def close(self) -> None:
        """Write what waits, and let go."""
        self._cache.tier = None
        task, self._running, self._url = self._running, None, ""
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _vault(self, tenant: str, subject: str) -> Vault:
        return Vault(await self._key(tenant, subject))


class SharedAnswers:
    """The keeper's part: shows, purges and ages what is shared."""

    def __init__(self, store: CacheStore, url: str) -> None:
        self.url = url
        self._store = store

    async def show(self, tenant: str, snapshot: Snapshot | None, metrics: Path) -> dict[str, Any]:
        """What is shared, by app, and what all workers of this node hold and did."""
        releases = [r for a in snapshot.apps.values() for r in a.releases.values()] if snapshot else []
        room = {r.app: r.caching.shared_bytes for r in releases if r.caching is not None and r.caching.ttl > 0}
        held = {t.app: t for t in await self._store.totals(tenant, now_ns=time_ns())}
        told = spared(metrics)
        return {
            "tenant": tenant,
            "apps": [
                {
                    "app": app,
                    "answers": held[app].answers if app in held else 0,
                    "bytes": held[app].bytes if app in held else 0,
                    "room_bytes": room.get(app),
                    "oldest_ns": held[app].oldest_ns if app in held else None,
                    "newest_ns": held[app].newest_ns if app in held else None,
                }
                for app in sorted(room.keys() | held.keys())
            ],
            "memory_bytes": told.held,
            "saved_usd": told.nanousd / 1e9,
            "events": told.events,
        }

    async def purge(self, tenant: str, app: str, subject: str) -> int:
        """Drop answers, in the shared cache now and in every worker's memory within a second; how many were shared."""
        _, dropped = await self._store.purge(tenant, app=app, subject=subject, now_ns=time_ns())
        return dropped

    async def run(self) -> None:
        """Age until cancelled."""
        while True:
            try:
                await self._store.expire(now_ns=time_ns())
            except StoreError as e:
                log.warning("the shared cache: %s", e)
            await asyncio.sleep(EXPIRE_EVERY)

    async def close(self) -> None:
        """Let go of the store."""
        await self._store.close()
