"""`kit.merkle`: the tree of RFC 6962 §2.1."""

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from noria.kit.merkle import EMPTY, holds, leaf_hash, node_hash, proof, root

leaves_ = st.lists(st.binary(max_size=8), min_size=1, max_size=40)


def by_definition(leaves: list[bytes]) -> bytes:
    """MTH as the RFC writes it."""
    if not leaves:
        return blake3(b"").digest()
    if len(leaves) == 1:
        return blake3(b"\x00" + leaves[0]).digest()
    k = max(2**i for i in range(10) if 2**i < len(leaves))
    return blake3(b"\x01" + by_definition(leaves[:k]) + by_definition(leaves[k:])).digest()


@given(st.lists(st.binary(max_size=8), max_size=70))
def test_the_root_is_that_of_the_rfc(leaves):
    assert root(iter(leaves)) == by_definition(leaves)


def test_no_leaves_and_known_shapes():
    assert root([]) == EMPTY
    a, b, c = (leaf_hash(x) for x in (b"a", b"b", b"c"))
    assert root([b"a", b"b", b"c"]) == node_hash(node_hash(a, b), c)
    assert root([b"a"]) != root([b"a", b"a"])


def test_a_node_cannot_stand_for_a_leaf():
    inner = leaf_hash(b"a") + leaf_hash(b"b")
    assert root([inner]) != root([b"a", b"b"])


@given(leaves_, st.data())
def test_every_leaf_is_proven_and_nothing_else_is(leaves, data):
    index = data.draw(st.integers(0, len(leaves) - 1))
    path, top = proof(leaves, index), root(leaves)
    assert holds(leaves[index], index, len(leaves), path, top)
    assert not holds(leaves[index] + b"x", index, len(leaves), path, top)
    assert not holds(leaves[index], index, len(leaves), (*path, top), top)
    assert not holds(leaves[index], len(leaves), len(leaves), path, top)
    if path:
        assert not holds(leaves[index], index, len(leaves), path[:-1], top)
        bad = data.draw(st.integers(0, len(path) - 1))
        wrong = bytes([path[bad][0] ^ 1]) + path[bad][1:]
        assert not holds(leaves[index], index, len(leaves), (*path[:bad], wrong, *path[bad + 1 :]), top)


@given(leaves_, st.data())
def test_any_changed_bit_changes_the_root(leaves, data):
    index = data.draw(st.integers(0, len(leaves) - 1))
    changed = list(leaves)
    changed[index] = bytes([leaves[index][0] ^ 1]) + leaves[index][1:] if leaves[index] else b"\0"
    assert root(changed) != root(leaves)


def test_a_leaf_that_is_not_there_has_no_proof():
    with pytest.raises(IndexError):
        proof([b"a"], 1)
    with pytest.raises(IndexError):
        proof([], 0)
