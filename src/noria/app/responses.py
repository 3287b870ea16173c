"""Stored Responses, at the keeper: sealed under their subject's key, found by their own key only, gone after their time.

A record's id is the Response's, whose first digits are its time (UUIDv7): the oldest come first in every scan.
"""

from __future__ import annotations

import msgspec

from noria.contracts.error import StoreError
from noria.contracts.port import RecordStore, Write
from noria.ground.responses import MAX_REFERRED, Kept
from noria.observe.trace import KeySource
from noria.observe.vault import Vault

RESPONSE = "response"
DAY_NS = 86_400 * 1_000_000_000
MAX_CHAIN = 1000
"""Responses that one follows at most; what lies further back cannot be brought back."""
MAX_BYTES = 32 * 1024 * 1024
"""Bytes that one question brings back, of a chain or of several Responses; the rest is as if it were not there."""
_AT_ONCE = 50
"""Records looked at in one step of `expire`: each may hold 8 MiB."""


class _Sealed(msgspec.Struct, frozen=True):
    """What a record holds: the owner in the clear, the content under the subject's key."""

    key: str
    subject: str
    data: bytes


class KeptResponses:
    """Stores, finds and forgets Responses. Behind `ground.responses.ResponseStore`, whose promises are kept here."""

    def __init__(self, records: RecordStore, secret: KeySource, *, days: int = 30) -> None:
        self.days = days
        self._records = records
        self._secret = secret

    async def retain(self, tenant: str, kept: Kept) -> bool:
        """Store it, durably; False where nothing is stored."""
        if self.days <= 0:
            return False
        secret = await self._secret(tenant, kept.subject)
        if not secret:
            return False
        data = Vault(secret).seal(tenant, kept.id, msgspec.msgpack.encode(kept))
        value = msgspec.msgpack.encode(_Sealed(kept.key, kept.subject, data))
        await self._records.commit(tenant, [Write(RESPONSE, kept.id, value)], quiet=True)
        return True

    async def recall(self, tenant: str, key: str, ids: tuple[str, ...], *, chain: bool = False) -> tuple[Kept, ...]:
        """See `ground.responses.ResponseStore`."""
        if chain:
            return await self._chain(tenant, key, ids[0]) if ids else ()
        found: list[Kept] = []
        size = 0
        for name in ids[:MAX_REFERRED]:
            if size < MAX_BYTES and (kept := await self._one(tenant, key, name)) is not None:
                found.append(kept)
                size += len(kept.input) + len(kept.answer) + len(kept.response)
        return tuple(found)

    async def _chain(self, tenant: str, key: str, id: str) -> tuple[Kept, ...]:
        chain: list[Kept] = []
        size = 0
        name = id
        while name and len(chain) < MAX_CHAIN and size < MAX_BYTES:
            kept = await self._one(tenant, key, name)
            if kept is None:
                break
            chain.append(msgspec.structs.replace(kept, response=b""))
            size += len(kept.input) + len(kept.answer)
            name = kept.previous
        return tuple(reversed(chain))

    async def _one(self, tenant: str, key: str, id: str) -> Kept | None:
        """A Response of this key; None for another's, and for one whose subject was erased."""
        record = await self._records.get(tenant, RESPONSE, id)
        if record is None:
            return None
        sealed = msgspec.msgpack.decode(record.value, type=_Sealed)
        secret = await self._secret(tenant, sealed.subject) if sealed.key == key else None
        if not secret:
            return None
        try:
            return msgspec.msgpack.decode(Vault(secret).open(tenant, id, sealed.data), type=Kept)
        except StoreError:
            return None

    async def forget(self, tenant: str, key: str, id: str) -> bool:
        """Delete it; whether this key had it."""
        if await self._one(tenant, key, id) is None:
            return False
        await self._records.commit(tenant, [Write(RESPONSE, id, None)], quiet=True)
        return True

    async def expire(self, tenant: str, now_ns: int) -> int:
        """Delete what is older than `days`; how many there were."""
        before = f"{max(0, now_ns - self.days * DAY_NS) // 1_000_000:012x}"
        count = 0
        while True:
            old = [r.id for r in await self._records.scan(tenant, RESPONSE, limit=_AT_ONCE) if r.id[:12] < before]
            if old:
                await self._records.commit(tenant, [Write(RESPONSE, name, None) for name in old], quiet=True)
                count += len(old)
            if len(old) < _AT_ONCE:
                return count
