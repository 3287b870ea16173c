from __future__ import annotations

import numpy as np

from noria.gateway.vectors import MOST_IN_BUCKET, NEAREST, Index, Probe
from noria.gateway.wording import wording


def probe(*numbers: float, bucket: bytes = b"b") -> Probe:
    vector = np.array(numbers, np.float32)
    return Probe(bucket, vector / np.linalg.norm(vector), wording("x"))


def keys(found: list) -> list[bytes]:
    return [key for _, key, _ in found]


def test_the_nearest_comes_first_and_what_is_too_far_not_at_all():
    index = Index(10)
    index.add(probe(1, 0), b"east")
    index.add(probe(1, 1), b"north-east")
    index.add(probe(0, 1), b"north")
    assert keys(index.near(probe(0.1, 1), 0.7)) == [b"north", b"north-east"]
    assert keys(index.near(probe(-1, 0), 0.7)) == []


def test_no_likeness_leads_out_of_a_bucket():
    index = Index(10)
    index.add(probe(1, 0, bucket=b"ann"), b"hers")
    assert index.near(probe(1, 0, bucket=b"bob"), -1.0) == []


def test_the_oldest_makes_room():
    index = Index(300)
    for n in range(1000):
        index.add(probe(1, n, bucket=bytes([n % 7])), n.to_bytes(2, "big"))
    assert len(index) == 300
    left = {int.from_bytes(k, "big") for b in range(7) for k in keys(index.near(probe(1, 1, bucket=bytes([b])), -1.0))}
    assert min(left) >= 700
    assert len(index.near(probe(1, 1, bucket=b"\0"), -1.0)) == NEAREST


def test_one_bucket_is_bounded_too():
    index = Index(5000)
    for n in range(MOST_IN_BUCKET + 50):
        index.add(probe(1, n), b"k")
    assert len(index) == MOST_IN_BUCKET


def test_what_was_dropped_is_not_found_and_its_row_can_be_used_again():
    index = Index(2)
    index.add(probe(1, 0), b"a")
    [(row, _, _)] = index.near(probe(1, 0), 0.9)
    index.drop(row)
    index.drop(row)
    assert index.near(probe(1, 0), 0.9) == []
    for name in (b"b", b"c", b"d"):
        index.add(probe(1, 0), name)
    assert sorted(keys(index.near(probe(1, 0), 0.9))) == [b"c", b"d"]
