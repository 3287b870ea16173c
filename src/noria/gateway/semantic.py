"""Questions that mean the same: the nearest one asked before whose answer may be given again.

Only the text of the last user turn may differ. Everything else (tenant, partition, release, system prompt, earlier turns,
tools, parameters) is an exact part of the bucket's key, so no likeness ever leads from one caller to another's answer.
Two questions share an answer where their vectors' cosine reaches the threshold and `wording` finds no difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from noria.contracts.error import NoriaError
from noria.contracts.exchange import Exchange, ModelCall
from noria.contracts.release import SemanticCaching
from noria.contracts.stage import Provider
from noria.dialects.openai_answer import decode_vector
from noria.gateway.constraint import Regions, demanded, within
from noria.gateway.sameness import Sameness, fields_but
from noria.gateway.shelf import Kept
from noria.gateway.vectors import Index, Probe
from noria.gateway.wording import LONGEST, agree, wording

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]

MOST_WAITING = 16
"""Questions being embedded at once, for one release and worker."""
WITHIN = 0.25
"""Seconds that a request waits for its vector; after them it is asked like any other."""
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Embedding(msgspec.Struct):
    embedding: str | list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


class Meanings:
    """`gateway.cache.Likeness` of one release, by an embedder. `regions` are the release's own constraints."""

    def __init__(self, semantic: SemanticCaching, embedder: Provider, index: Index, regions: Regions = ()) -> None:
        self._semantic = semantic
        self._regions = regions
        self._embedder = embedder
        self._index = index
        self._waiting = 0

    async def probe(self, x: Exchange, prefix: bytes, sameness: Sameness) -> Probe | None:
        """What is compared of `x`; None where its last turn is no short text of the user's, the embedder computes
        outside of its regions, or no vector came in time.
        """
        parted = question(x)
        if parted is None:
            return None
        text, around = parted
        regions = demanded(x, self._regions)
        if regions and not within(self._semantic.embedder, regions):
            return None
        vector = await self._embedded(text)
        if vector is None:
            return None
        bucket = sameness.hashed(["likeness", prefix, *_framed_fields(x), *around])
        return Probe(bucket, vector, wording(text))

    def match(self, probe: Probe, get: Callable[[bytes], Kept | None]) -> Kept | None:
        """The answer to the nearest question that agrees with this one and is still kept."""
        for row, key, other in self._index.near(probe, self._semantic.threshold):
            if not agree(probe.wording, other):
                continue
            kept = get(key)
            if kept is not None:
                return kept
            self._index.drop(row)
        return None

    def add(self, probe: Probe, key: bytes) -> None:
        """The answer to this question is under `key`."""
        self._index.add(probe, key)

    async def _embedded(self, text: str) -> Vector | None:
        import numpy as np

        if self._waiting >= MOST_WAITING or self._embedder.ready is not None:
            return None
        endpoint = self._semantic.embedder
        fields = {"model": endpoint.model, "input": [text], "encoding_format": "base64"}
        body = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}
        self._waiting += 1
        try:
            async with asyncio.timeout(WITHIN):
                reply = await self._embedder.send(ModelCall("", "embedding", False, body), lambda _: None)
            found = msgspec.json.decode(reply.body, type=_Embeddings).data[0].embedding
            vector = np.asarray(decode_vector(found) if isinstance(found, str) else found, np.float32)
        except (NoriaError, TimeoutError, msgspec.MsgspecError, ValueError, IndexError):
            return None
        finally:
            self._waiting -= 1
        length = float(np.linalg.norm(vector))
        return vector / length if np.isfinite(length) and length > 0 else None


def question(x: Exchange) -> tuple[str, list[bytes | msgspec.Raw]] | None:
    """(text of the last turn, everything around it) of a chat that ends with a short plain text of the user's."""
    if x.kind != "chat":
        return None
    messages = _LIST.decode(x.body["messages"])
    last = _FIELDS.decode(messages[-1])
    content = bytes(last.get("content", b""))
    if bytes(last.get("role", b"")) != b'"user"' or not content.startswith(b'"'):
        return None
    text = msgspec.json.decode(content, type=str)
    if not text.strip() or len(text) > LONGEST:
        return None
    around: list[bytes | msgspec.Raw] = [len(messages).to_bytes(4, "big"), *messages[:-1]]
    for name in sorted(last.keys() - {"content"}):
        around += (name.encode(), last[name])
    return text, around


def _framed_fields(x: Exchange) -> list[bytes | str | msgspec.Raw]:
    fields = fields_but(x.body, "messages")
    return [len(fields).to_bytes(4, "big"), *fields]
