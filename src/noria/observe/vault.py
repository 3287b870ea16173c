"""Bodies named, compressed and sealed (DESIGN §3a.6).

A body is named by keyed BLAKE3 under the key of its subject, or of its tenant where it has none; its ciphertext is AES-256-GCM
(NIST SP 800-38D) with a random nonce under a key derived from the same one, so equal bodies of two people look unrelated, and
destroying the key makes both id and content meaningless. Small bodies of one subject are sealed together: what they have in
common (a system prompt, the frames of a stream) is then written once, and a compressor costs more to set up than to feed.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from noria.contracts.error import StoreError
from noria.contracts.port import Body
from noria.contracts.trace import ExchangeRow
from noria.kit.ids import keyed

TOGETHER = 64 * 1024
"""Bytes of bodies that are sealed together, and the size from which on one is sealed alone: reading one opens all (0.5 ms)."""
COMPANY = 256
"""Bodies that are sealed together at most."""
REMEMBERED = 16_384
"""Names of stored bodies that are remembered: what comes again soon is not stored again."""

_NONCE = 12
_PACK_FROM = 512
"""Shorter bodies are not worth compressing."""
_PLAIN, _ZLIB, _ZLIB_ARRAY = b"\0", b"\1", b"\2"
_CONTEXT = "noria 2026-11-22 trace body encryption"
_DAY_NS = 86_400_000_000_000

Named = tuple[ExchangeRow, str, str]
"""A row with the names of its request and answer body; "" = none."""


class Vault:
    """One key, ready to name, seal and open bodies."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = AESGCM(blake3(key, derive_key_context=_CONTEXT).digest())

    def name(self, content: bytes) -> str:
        """The keyed id of a body."""
        return keyed(self._key, content)

    def seal(self, tenant: str, id: str, content: bytes) -> bytes:
        """The ciphertext of a body, bound to its tenant and id."""
        return self._seal(_bound(tenant, id), _ZLIB + _packed(content) if len(content) >= _PACK_FROM else _PLAIN + content)

    def seal_all(self, tenant: str, ids: Sequence[str], contents: Sequence[bytes]) -> bytes:
        """One ciphertext of several bodies, bound to their tenant and to their ids in this order."""
        if len(ids) == 1:
            return self.seal(tenant, ids[0], contents[0])
        return self._seal(_bound(tenant, *ids), _ZLIB_ARRAY + zlib.compress(msgspec.msgpack.encode(contents), 1))

    def open(self, tenant: str, id: str, data: bytes) -> bytes:
        """The body; raises `StoreError` where it is not what was sealed under this key, tenant and id."""
        return self.open_all(tenant, (id,), data)[0]

    def open_all(self, tenant: str, ids: Sequence[str], data: bytes) -> Sequence[bytes]:
        """The bodies, in the order of their ids; raises as `open`."""
        try:
            packed = self._cipher.decrypt(data[:_NONCE], data[_NONCE:], _bound(tenant, *ids))
        except (InvalidTag, ValueError) as e:
            raise StoreError(f"The body {ids[0][:12]}… cannot be decrypted: it is damaged, or of another key.") from e
        kind, packed = packed[:1], packed[1:]
        if kind == _ZLIB_ARRAY:
            return msgspec.msgpack.decode(zlib.decompress(packed), type=list[bytes])
        return [zlib.decompress(packed) if kind == _ZLIB else packed]

    def _seal(self, bound: bytes, packed: bytes) -> bytes:
        nonce = os.urandom(_NONCE)  # not from the pool of ids: threads seal too, and a nonce must never come twice
        return nonce + self._cipher.encrypt(nonce, packed, bound)


def _packed(content: bytes) -> bytes:
    """Compressed with a small window: setting up the default one costs more than all else (8 against 41 us for 11 KB)."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 12, 4)
    return packer.compress(content) + packer.flush()


def _bound(tenant: str, *ids: str) -> bytes:
    return f"{tenant}|{'|'.join(ids)}".encode()


class Remembered:
    """Names of bodies that are stored, by tenant and day: a day that is dropped takes its bodies along. The latest only."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._names: dict[tuple[str, int, str], None] = {}

    def __contains__(self, name: tuple[str, int, str]) -> bool:
        return name in self._names

    def add(self, names: Iterable[tuple[str, int, str]]) -> None:
        """Remember (tenant, day, name) of bodies that are stored, or were asked for again."""
        for name in names:
            self._names.pop(name, None)
            self._names[name] = None
        for name in list(islice(self._names, max(0, len(self._names) - self._most))):
            del self._names[name]


class Packing:
    """Bodies of one tenant's rows, on their way to be stored."""

    def __init__(self, tenant: str, vaults: Mapping[str, Vault | None], stored: Remembered) -> None:
        self._tenant = tenant
        self._vaults = vaults
        self._stored = stored
        self._open: dict[str, tuple[list[str], list[bytes], list[int]]] = {}
        """By subject: ids, contents, and in one element their bytes."""
        self._here: set[str] = set()
        self.bodies: list[Body] = []
        self.names: list[tuple[str, int, str]] = []
        """What `Remembered` is to be told once the bodies are stored."""

    def take(self, rows: Sequence[ExchangeRow]) -> list[Named]:
        """The rows with the names of their bodies. Without its key a body is not kept."""
        return [(row, self._keep(row, row.request), self._keep(row, row.answer)) for row in rows]

    def close(self) -> list[Body]:
        """All bodies that are not stored yet, sealed."""
        for subject in list(self._open):
            self._seal(subject)
        return self.bodies

    def _keep(self, row: ExchangeRow, content: bytes) -> str:
        subject = row.subject
        if not content or (vault := self._vaults.get(subject)) is None:
            return ""
        name = vault.name(content)
        place = (self._tenant, row.started_ns // _DAY_NS, name)
        self.names.append(place)
        if name in self._here or place in self._stored:
            return name
        self._here.add(name)
        if len(content) >= TOGETHER:
            self.bodies.append(Body(name, subject, vault.seal(self._tenant, name, content)))
            return name
        ids, contents, size = self._open.setdefault(subject, ([], [], [0]))
        ids.append(name)
        contents.append(content)
        size[0] += len(content)
        if size[0] >= TOGETHER or len(ids) == COMPANY:
            self._seal(subject)
        return name

    def _seal(self, subject: str) -> None:
        ids, contents, _ = self._open.pop(subject)
        vault = self._vaults[subject]
        assert vault is not None  # `take` gave it nothing to keep
        self.bodies.append(Body(ids[0], subject, vault.seal_all(self._tenant, ids, contents), tuple(ids[1:])))
