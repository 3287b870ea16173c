"""A small text classifier on hashed character n-grams: multinomial logistic regression, in numpy, in one file.

It trains in seconds on one core and is the same to the bit for the same rows and seed on one machine: what proofs of the
machinery around training use in place of a language model. It also serves as an honest baseline for classification.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import msgspec

FORMAT = "noria-ngram-1"
"""First word of the file: a file of another format is refused."""


class Ngram(msgspec.Struct, frozen=True):
    """A trained classifier. `weights` is float32, shape (buckets + 1, classes), row-major; the last row is the bias."""

    format: str
    labels: tuple[str, ...]
    buckets: int
    low: int
    """Shortest n-gram, in characters."""
    high: int
    """Longest n-gram, in characters."""
    weights: bytes

    def classify(self, text: str) -> str:
        """The likeliest label."""
        import numpy as np

        return self.labels[int(np.argmax(self.scores(text)))]

    def scores(self, text: str) -> Any:
        """Logits, float32, shape (classes,)."""
        import numpy as np

        table = np.frombuffer(self.weights, dtype=np.float32).reshape(self.buckets + 1, len(self.labels))
        at, values = features(text, self.buckets, self.low, self.high)
        return values @ table[at] + table[-1]


def features(text: str, buckets: int, low: int = 1, high: int = 4) -> tuple[Any, Any]:
    """(buckets int64, values float32 of length 1 in L2): the n-grams of a text, folded to lower case and NFKC."""
    import numpy as np

    padded = f" {unicodedata.normalize('NFKC', text).casefold().strip()} "
    counts: dict[int, int] = {}
    for size in range(low, high + 1):
        for start in range(len(padded) - size + 1):
            bucket = _hash(padded[start : start + size]) % buckets
            counts[bucket] = counts.get(bucket, 0) + 1
    at = np.fromiter(counts, dtype=np.int64, count=len(counts))
    values = np.log1p(np.fromiter(counts.values(), dtype=np.float32, count=len(counts)))
    length = float(np.linalg.norm(values))
    return at, values / length if length else values


def _hash(text: str) -> int:
    """FNV-1a, 64 bits: Python's own hash differs between processes."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def softmax_step(weights: Any, rows: Sequence[tuple[Any, Any]], targets: Sequence[int], rate: float) -> float:
    """One step of gradient descent on a batch, in place; the mean cross-entropy before it (nats)."""
    import numpy as np

    logits = np.stack([values @ weights[at] + weights[-1] for at, values in rows]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    shares = np.exp(logits)
    shares /= shares.sum(axis=1, keepdims=True)
    loss = float(-np.mean(np.log(shares[np.arange(len(rows)), list(targets)])))
    shares[np.arange(len(rows)), list(targets)] -= 1.0
    for (at, values), gradient in zip(rows, (shares / len(rows)).astype(np.float32), strict=True):
        weights[at] -= rate * values[:, None] * gradient[None, :]
        weights[-1] -= rate * gradient
    return loss


def encode(model: Ngram) -> bytes:
    """The file of a model."""
    return msgspec.msgpack.encode(model)


def decode(data: bytes) -> Ngram:
    """The model of a file. Raises `ValueError`, with what is wrong, for anything else."""
    try:
        model = msgspec.msgpack.decode(data, type=Ngram)
    except msgspec.MsgspecError as e:
        raise ValueError(f"it is no {FORMAT} file: {e}") from e
    if model.format != FORMAT:
        raise ValueError(f"its format is {model.format!r}, not {FORMAT!r}")
    if not model.labels or len(model.weights) != (model.buckets + 1) * len(model.labels) * 4:
        raise ValueError("it does not hold the weights that its head announces")
    return model
