"""Merkle trees after RFC 6962 §2.1 with BLAKE3 for SHA-256: a root for an ordered list of leaves, and short proofs that a leaf
is in it. A leaf is hashed behind a byte 0, a node behind a byte 1, so that neither can stand for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blake3 import blake3

SIZE = 32
"""Bytes of a hash."""
EMPTY = blake3(b"").digest()
"""The root of no leaves."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf."""
    return blake3(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node over its children's."""
    return blake3(b"\1" + left + right).digest()


def root(leaves: Iterable[bytes]) -> bytes:
    """The root over leaves in this order, in memory that grows with the logarithm of their number."""
    done: list[tuple[int, bytes]] = []
    """Whole subtrees, the largest first: (leaves, hash)."""
    for leaf in leaves:
        size, hashed = 1, leaf_hash(leaf)
        while done and done[-1][0] == size:
            hashed = node_hash(done.pop()[1], hashed)
            size *= 2
        done.append((size, hashed))
    if not done:
        return EMPTY
    hashed = done.pop()[1]
    while done:
        hashed = node_hash(done.pop()[1], hashed)
    return hashed


def proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The hashes beside the path from a leaf to the root, from below. Raises `IndexError`."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"there is no leaf {index} of {len(leaves)}")
    if len(leaves) == 1:
        return ()
    half = _split(len(leaves))
    if index < half:
        return (*proof(leaves[:half], index), root(leaves[half:]))
    return (*proof(leaves[half:], index - half), root(leaves[:half]))


def holds(leaf: bytes, index: int, size: int, path: Sequence[bytes], expected: bytes) -> bool:
    """Whether `path` proves that `leaf` stands at `index` among the `size` leaves of the root `expected`."""
    return 0 <= index < size and _climb(leaf_hash(leaf), index, size, list(path)) == expected


def _climb(hashed: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """The root that a path leads to; None where it is too long or too short."""
    if size == 1:
        return hashed if not path else None
    if not path:
        return None
    half, beside = _split(size), path.pop()
    if index < half:
        below = _climb(hashed, index, half, path)
        return None if below is None else node_hash(below, beside)
    below = _climb(hashed, index - half, size - half, path)
    return None if below is None else node_hash(beside, below)


def _split(size: int) -> int:
    """The largest power of two below `size` (RFC 6962: k)."""
    return 1 << (size - 1).bit_length() - 1
