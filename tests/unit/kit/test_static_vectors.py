"""The static table: what a text is split into, that it is mapped whole or refused, and that it knows likeness in two languages."""

from __future__ import annotations

import numpy as np
import pytest

from noria.kit.static_vectors import NUMBER, TABLE, StaticVectors, pack, shipped, split

PAIRS = [
    ("How do I reset my password?", "I forgot my login and need a new password", "What is the weather in Paris tomorrow?"),
    ("My parcel has not arrived yet", "Where is the package that I ordered?", "Explain how photosynthesis works"),
    ("怎么重置密码？", "我忘记了登录密码，想换一个新的", "明天巴黎天气怎么样？"),
    ("我的快递还没有到", "我买的包裹在哪里？", "请解释光合作用的原理"),
]


@pytest.mark.parametrize(("text", "near", "far"), PAIRS)
def test_what_means_the_same_is_nearer_than_what_does_not(text, near, far) -> None:
    a, b, c = shipped().embed([text, near, far])
    assert a @ b > a @ c


def test_vectors_have_length_one_whatever_stands_around_them() -> None:
    texts = ["", "hello world", "🙂", "密码", "x" * 100_000, "unsubscribable", "12 345", "the " * 6000]
    together = shipped().embed(texts)
    assert together.shape == (len(texts), shipped().dimensions)
    for text, vector in zip(texts, together, strict=True):
        assert np.allclose(shipped().embed([text])[0], vector, atol=1e-5)
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5) or not vector.any()
    assert not together[0].any()
    assert not together[2].any()
    assert together[5].any(), "an unknown word is read by its parts"
    assert shipped().embed([]).shape == (0, shipped().dimensions)


def test_a_text_is_split_into_words_characters_pairs_and_numbers() -> None:
    assert split("Don't pay €20 twice") == ["don't", "pay", NUMBER, "twice"]
    assert split("订单42号") == ["订", "单", "订单", NUMBER, "号"]


def test_a_vector_is_the_sum_of_the_rows_of_what_the_text_is_split_into(tmp_path) -> None:
    tokens = ["密", "码", "密码", "重", "reset", NUMBER, "is"]
    rows = np.eye(len(tokens))
    path = tmp_path / "t.bin"
    path.write_bytes(pack(tokens, rows))
    for text in ["重置密码", "reset 密码 3 密", "码", "is 12 RESET, 34", "Ａ密", "𠀀码密密码"]:
        wanted = sum(rows[tokens.index(t)] for t in split(text) if t in tokens)
        assert np.allclose(StaticVectors(path).embed([text])[0], wanted / np.linalg.norm(wanted), atol=0.01), text


def test_a_table_comes_back_as_it_was_packed(tmp_path) -> None:
    rows = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 3.0]])
    path = tmp_path / "t.bin"
    path.write_bytes(pack(["one", "two"], rows))
    made = StaticVectors(path).embed(["one", "two", "one two"])
    for got, wanted in zip(made, [rows[0], rows[1], rows[0] + rows[1]], strict=True):
        assert np.allclose(got, wanted / np.linalg.norm(wanted), atol=0.01)


@pytest.mark.parametrize("damage", [lambda d: b"XXXX" + d[4:], lambda d: d[: len(d) // 2], lambda d: d[:10], lambda d: d[:-64]])
def test_a_damaged_table_is_refused(tmp_path, damage) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(damage(pack([f"word{i}" for i in range(100)], np.ones((100, 16)))))
    with pytest.raises(ValueError, match=r"no table|cut off"):
        StaticVectors(path)


def test_the_shipped_table_is_small() -> None:
    assert TABLE.stat().st_size <= 3_000_000
