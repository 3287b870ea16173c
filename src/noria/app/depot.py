"""Files and batches of callers, put together for a keeper."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from noria.app.batches import Batches
from noria.app.files import Files
from noria.app.lane import Calls, Heard
from noria.app.upstream_batch import UpstreamBatches
from noria.contracts.port import BlobStore, Queue, RecordStore
from noria.contracts.release import Snapshot
from noria.kit.upload import ABANDONED, sweep
from noria.settings.files import BatchSettings, FileSettings

Secret = Callable[[str, str], Awaitable[bytes]]


class Depot:
    """What `/v1/files` and `/v1/batches` are served from; `run` works on batches and clears away what is over."""

    def __init__(self, home: Path, queue: Queue, blobs: BlobStore, files: FileSettings, batches: BatchSettings) -> None:
        self.home = home
        self.queue = queue
        """Whose jobs are batches; dead ones can be looked at, and revived."""
        self._blobs = blobs
        self._settings = (files, batches)
        self._tenant = "local"
        self._tasks: list[asyncio.Task[None]] = []
        self._upstream: UpstreamBatches | None = None
        self.files: Files
        self.batches: Batches

    def open(
        self, tenant: str, records: RecordStore, secret: Secret, heard: Heard, *, snapshot: Callable[[], Snapshot | None]
    ) -> None:
        """Take hold of what the keeper has, and begin to work."""
        kept, worked = self._settings
        self._tenant = tenant
        calls = Calls(self.home, lambda: secret(tenant, "subjects"), heard)
        self.files = Files(records, self._blobs, secret, kept)
        self._upstream = UpstreamBatches(self.home, calls, snapshot, poll=worked.poll)
        self.batches = Batches(records, self.queue, self.files, calls=calls, settings=worked, upstream=self._upstream)
        self._tasks = [
            asyncio.create_task(self.files.age(tenant)),
            asyncio.create_task(self.batches.run(tenant)),
            asyncio.create_task(self._tidy()),
        ]

    async def _tidy(self) -> None:
        """Remove what killed workers have left of uploads, again and again."""
        while True:
            await asyncio.to_thread(sweep, self.home)
            await asyncio.sleep(ABANDONED / 2)

    async def close(self) -> None:
        """Stop working; what is unfinished goes on at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._upstream is not None:
            await self._upstream.close()
        await self.queue.close()
