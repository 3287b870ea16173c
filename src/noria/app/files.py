"""Files that callers store: metadata in the RecordStore, content sealed in the BlobStore, parted by owner.

An owner is a team, or a key that has none (`contracts.batch.Owner`). Who asks for another's file learns that there is
no such file. What is longer than `PIECE` is sealed and stored in pieces, so that no size is held in memory.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from noria.contracts.batch import Owner, StoredFile
from noria.contracts.error import Conflict, NotFound, RequestError, StoreError
from noria.contracts.port import BlobStore, RecordStore, Write
from noria.kit.ids import digest, uuid7
from noria.observe.vault import Vault
from noria.settings.files import FileSettings

log = logging.getLogger("noria.files")

FILE = "file"
MOST_FILES = 10_000
"""Files of one owner."""
_LONGEST_NAME = 255
_DAY_NS = 86_400 * 1_000_000_000
_SECOND_NS = 1_000_000_000
PIECE = 4 * 1024 * 1024
"""Bytes that are sealed and stored together."""
UNFINISHED_NS = 3600 * _SECOND_NS
"""How long a file may take until it is whole; a keeper that was killed meanwhile has left it."""
SWEEP = 60.0
"""Seconds between looks for files that are over."""

Secret = Callable[[str, str], Awaitable[bytes]]
"""`await secret(tenant, name)`: 32 bytes, the same each time."""
T = TypeVar("T")


class Files:
    """What `/v1/files` does, and where batches read and leave theirs. `quota` 0 = nothing may be stored."""

    def __init__(self, records: RecordStore, blobs: BlobStore, secret: Secret, settings: FileSettings) -> None:
        self._records = records
        self._blobs = blobs
        self._secret = secret
        self._settings = settings
        self._adding = asyncio.Lock()

    async def add(
        self, owner: Owner, data: bytes, *, filename: str, purpose: str, keep_seconds: int = 0, id: str = ""
    ) -> StoredFile:
        """Store a file. Raises `RequestError` over the quota.

        With an `id`, which is for results of batches: free of the quota, and the same file where it is there already.
        """
        file = self._fresh(owner, filename, purpose, keep_seconds)
        file = replace(file, id=id or file.id, bytes=len(data))
        async with self._adding:  # one at a time, so that two cannot fill the last room together
            if not id:
                await self._room(owner, file.bytes)
            elif (there := await self._stored(owner, id)) is not None:
                if there.ready:
                    return there
                await self._forget(owner.tenant, place(owner.scope, id), there)
            return await self._write(owner, file, _sliced(data))

    async def take_in(
        self, owner: Owner, pieces: Iterator[bytes], size: int, *, filename: str, purpose: str, keep_seconds: int = 0
    ) -> StoredFile:
        """As `add`, for a file of `size` bytes that comes in `pieces` of `PIECE` bytes, read in a thread."""
        file = replace(self._fresh(owner, filename, purpose, keep_seconds), bytes=size)
        async with self._adding:
            await self._room(owner, size)
            return await self._write(owner, file, pieces)

    def _fresh(self, owner: Owner, filename: str, purpose: str, keep_seconds: int) -> StoredFile:
        now = time.time_ns()
        kept = keep_seconds * _SECOND_NS or self._settings.keep_days * _DAY_NS
        return StoredFile(
            id="file-" + uuid7(now).replace("-", ""),
            owner=owner.scope,
            filename=named(filename),
            purpose=purpose,
            bytes=0,
            created_ns=now,
            expires_ns=now + kept,
            key=owner.key,
        )

    async def _write(self, owner: Owner, file: StoredFile, pieces: Iterator[bytes]) -> StoredFile:
        """The content, then the word that it is there. Before the first of several pieces stands a record of what is begun:
        what a kill leaves is found and removed.
        """
        tenant, name = owner.tenant, place(owner.scope, file.id)
        file = replace(file, parts=math.ceil(file.bytes / PIECE) if file.bytes > PIECE else 0)
        await self._drop_content(tenant, file)  # left by a keeper that was killed before it could record it
        if file.parts:
            begun = msgspec.msgpack.encode(replace(file, ready=False, expires_ns=time.time_ns() + UNFINISHED_NS))
            await self._records.commit(tenant, [Write(FILE, name, begun, expect=0)], quiet=True)
        for number in range(1, max(file.parts, 1) + 1):
            piece = await asyncio.to_thread(next, pieces, b"")
            await self.put(tenant, _part(file, number), piece)
        value = msgspec.msgpack.encode(file)
        await self._records.commit(tenant, [Write(FILE, name, value, expect=None if file.parts else 0)], quiet=True)
        return file

    async def get(self, owner: Owner, id: str) -> StoredFile:
        """A file's metadata. Raises `NotFound`, also for another's file."""
        file = await self._stored(owner, id)
        if file is None or not file.ready or file.expires_ns <= time.time_ns():
            raise NotFound(f"No such File object: {id[:100]}", code="file_not_found", param="id")
        return file

    async def read(self, owner: Owner, id: str) -> AsyncIterator[bytes]:
        """A file's bytes, piece by piece. Raises `NotFound`, before the first piece."""
        file = await self.get(owner, id)
        for number in range(1, max(file.parts, 1) + 1):
            piece = await self.take(owner.tenant, _part(file, number))
            if piece is None:
                raise NotFound(f"The content of {id} is gone.", code="file_not_found", param="id")
            yield piece

    async def content(self, owner: Owner, id: str) -> bytes:
        """A file's bytes, all at once. Raises `NotFound`."""
        return b"".join([piece async for piece in self.read(owner, id)])

    async def _stored(self, owner: Owner, id: str) -> StoredFile | None:
        record = await self._records.get(owner.tenant, FILE, place(owner.scope, id))
        return msgspec.msgpack.decode(record.value, type=StoredFile) if record else None

    async def every(self, tenant: str) -> list[StoredFile]:
        """The files of all owners that are not over, newest first."""
        now = time.time_ns()
        found = [f async for _, f in owned(self._records, tenant, FILE, None, StoredFile) if f.expires_ns > now]
        return sorted(found, key=lambda f: f.created_ns, reverse=True)

    async def list(self, owner: Owner) -> list[StoredFile]:
        """The files of an owner that are not over, oldest first."""
        now = time.time_ns()
        found = [f async for _, f in owned(self._records, owner.tenant, FILE, owner.scope, StoredFile)]
        return [f for f in found if f.ready and f.expires_ns > now]

    async def delete(self, owner: Owner, id: str) -> None:
        """Forget a file. Raises `NotFound`."""
        file = await self.get(owner, id)
        await self._forget(owner.tenant, place(owner.scope, file.id), file)

    # -- sealed blobs -------------------------------------------------------------------------------

    async def put(self, tenant: str, name: str, data: bytes) -> None:
        """Seal and store bytes under a name."""
        vault = Vault(await self._secret(tenant, "files"))
        sealed = await asyncio.to_thread(vault.seal, tenant, name, data)
        await self._blobs.put(tenant, "files/" + name, sealed)

    async def take(self, tenant: str, name: str) -> bytes | None:
        """The bytes under a name, or None."""
        sealed = await self._blobs.get(tenant, "files/" + name)
        if sealed is None:
            return None
        vault = Vault(await self._secret(tenant, "files"))
        return await asyncio.to_thread(vault.open, tenant, name, sealed)

    async def drop(self, tenant: str, name: str) -> None:
        """Remove the bytes under a name."""
        await self._blobs.delete(tenant, "files/" + name)

    async def _drop_content(self, tenant: str, file: StoredFile) -> None:
        """Remove the content of a file, whole or begun."""
        for number in range(max(file.parts, 1), 0, -1):
            await self.drop(tenant, _part(file, number))

    # -- ageing -------------------------------------------------------------------------------------

    async def age(self, tenant: str) -> None:
        """Remove what is over, again and again, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP)
            try:
                gone = await self.sweep(tenant)
            except StoreError as e:
                log.warning("files that are over stay for now: %s", e)
                continue
            if gone:
                log.info("%d files were over and are removed", gone)

    async def sweep(self, tenant: str) -> int:
        """Remove every file that is over; how many."""
        now, gone = time.time_ns(), 0
        async for name, file in owned(self._records, tenant, FILE, None, StoredFile):
            if file.expires_ns <= now:
                await self._forget(tenant, name, file)
                gone += 1
        return gone

    async def _forget(self, tenant: str, name: str, file: StoredFile) -> None:
        """The content first: a record without content is found again, content without a record never."""
        await self._drop_content(tenant, file)
        try:
            await self._records.commit(tenant, [Write(FILE, name, None)], quiet=True)
        except Conflict:
            return

    async def _room(self, owner: Owner, size: int) -> None:
        there = await self.list(owner)
        if sum(f.bytes for f in there) + size > self._settings.quota or len(there) >= MOST_FILES:
            raise RequestError(
                f"No room for {size:,} bytes: this key (or its team) may store {self._settings.quota:,} bytes"
                f" in {MOST_FILES:,} files.",
                code="file_quota_exceeded", status=413, hint="Delete files, or raise `files.quota` in noria.yaml.",
            )  # fmt: skip


def _part(file: StoredFile, number: int) -> str:
    return f"{file.id}/{number:06d}" if file.parts else file.id


def _sliced(data: bytes) -> Iterator[bytes]:
    return (data[at : at + PIECE] for at in range(0, len(data), PIECE))


def place(scope: str, id: str) -> str:
    """The record id of what belongs to an owner: owners' names may hold anything, so a digest stands for them."""
    return f"{digest(scope.encode())[:32]}/{id}"


async def owned(records: RecordStore, tenant: str, kind: str, scope: str | None, type: type[T]) -> AsyncIterator[tuple[str, T]]:
    """(record id, value) of everything of a kind that an owner has, by id; of every owner where `scope` is None."""
    prefix = "" if scope is None else place(scope, "")
    after = prefix
    while page := await records.scan(tenant, kind, after=after, limit=1000):
        for record in page:
            if not record.id.startswith(prefix):
                return
            yield record.id, msgspec.msgpack.decode(record.value, type=type)
        after = page[-1].id


def named(filename: str) -> str:
    """A file's name as it may stand in headers and terminals: its last part, printable, at most 255 characters."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:_LONGEST_NAME] or "file"
