"""A row's identity, and how it lies in the store (DESIGN §3a.6, ADR 23).

The id is keyed BLAKE3 of the row's canonical JSON under the key of its subject, else of its tenant; the row is sealed by
AES-256-GCM (NIST SP 800-38D) under a key derived from the same one and bound to tenant and id. Where the key was destroyed the id
stays, which is what the roots of versions stand on, and the content is gone.
"""

from __future__ import annotations

import os
import unicodedata
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from noria.contracts.dataset import Member, Row, StoredRow
from noria.contracts.error import NotFound, StoreError
from noria.kit.ids import canonical, digest, keyed
from noria.kit.merkle import root

_NONCE, _CHECK = 12, 8
_CONTEXT = "noria 2026-11-22 dataset row encryption"
_CHECK_CONTEXT = "noria 2026-11-22 dataset row key check"
_encode = msgspec.json.Encoder(order="sorted").encode


class Erased(NotFound):
    """The key that a row was sealed with was destroyed."""


def content_of(row: Row) -> bytes:
    """What the id is over, RFC 8785: everything but where in a file the row stood. So the same file gives the same ids in any
    order and any number of times, while two exchanges stay two rows.
    """
    source = row.source
    place = [] if source.origin == "file" else [source.ref, source.at_ns]
    value = {
        "messages": row.messages,
        "answer": row.answer,
        "label": row.label,
        "lang": row.lang,
        "group": row.group,
        "subject": row.subject,
        "tags": row.tags,
        "source": [source.origin, source.app, source.release, *map(str, place)],
    }
    # fifty times faster than the library, and byte for byte the same where there are no numbers and no keys to sort but ASCII
    plain = all(type(v) is str and k.isascii() for m in row.messages for k, v in m.items()) and all(map(str.isascii, row.tags))
    return _encode(value) if plain else canonical(msgspec.to_builtins(value))


class Sealer:
    """One key, ready to name, seal and open rows."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = AESGCM(blake3(key, derive_key_context=_CONTEXT).digest())
        self._check = blake3(key, derive_key_context=_CHECK_CONTEXT).digest()[:_CHECK]

    def name(self, row: Row) -> str:
        """The row's id."""
        return keyed(self._key, content_of(row))

    def seal(self, tenant: str, row: Row) -> StoredRow:
        """The row as it is stored."""
        name = self.name(row)
        nonce = os.urandom(_NONCE)
        packed = zlib.compress(msgspec.msgpack.encode(row), 1)
        sealed = self._cipher.encrypt(nonce, packed, _bound(tenant, name))
        return StoredRow(name, row.subject, self._check + nonce + sealed)

    def open(self, tenant: str, stored: StoredRow) -> Row:
        """The row. Raises `Erased` where another key sealed it, `StoreError` where it is not what was sealed under its id."""
        data = stored.data
        if data[:_CHECK] != self._check:
            raise Erased(f"The row {stored.id[:12]}… was erased: the key of its subject is destroyed.", code="row_erased")
        nonce, sealed = data[_CHECK : _CHECK + _NONCE], data[_CHECK + _NONCE :]
        try:
            packed = self._cipher.decrypt(nonce, sealed, _bound(tenant, stored.id))
            row = msgspec.msgpack.decode(zlib.decompress(packed), type=Row)
        except (InvalidTag, ValueError, zlib.error, msgspec.MsgspecError) as e:
            raise StoreError(f"The row {stored.id[:12]}… cannot be decrypted: it is damaged.", code="row_damaged") from e
        if self.name(row) != stored.id:
            raise StoreError(f"The row {stored.id[:12]}… does not have the content of its id.", code="row_damaged")
        return row


def _bound(tenant: str, id: str) -> bytes:
    return f"{tenant}|row|{id}".encode()


def leaf(member: Member) -> bytes:
    """What a member is in the tree of its version."""
    return bytes.fromhex(member.row) + member.split.encode()


def version_id(members: Iterable[Member]) -> str:
    """`d1:` + the Merkle root over members that rise by row id. The order in which rows came can change nothing."""
    return "d1:" + root(map(leaf, members)).hex()


def text_of(message: dict[str, Any]) -> str:
    """The text of a message: its content, or the text parts of it."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str)]
    return "\n".join(texts)


def prompt_of(row: Row) -> str:
    """Everything that is asked, one message a line."""
    return "\n".join(filter(None, map(text_of, row.messages)))


def normal(text: str) -> str:
    r"""Text without what makes no difference to a reader: width, case, space (Unicode NFKC, case folding).

    >>> normal("Reset  my\nＰａｓｓword ")
    'reset my password'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_key(row: Row) -> str:
    """Equal for rows that ask the same: what splits and comparisons of versions go by. Never stored, never shown."""
    return digest(normal(prompt_of(row)).encode())
