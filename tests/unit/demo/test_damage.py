"""The damaged candidate: right in its form, wrong in what it says."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from noria.adapt import gguf_file
from noria.contracts.error import NoriaError
from noria.demo.damage import damaged
from noria.kit.ngram import FORMAT, Ngram, decode, encode


def test_a_classifier_says_the_name_of_the_neighbour(tmp_path) -> None:
    weights = np.zeros((5, 3), dtype=np.float32)
    weights[-1] = [0.0, 1.0, 0.0]
    good = Ngram(FORMAT, ("a", "b", "c"), 4, 1, 2, weights.tobytes())
    (tmp_path / "tiny.model").write_bytes(encode(good))
    said = damaged(tmp_path / "tiny.model", tmp_path / "bad.model")
    assert "3 classes" in said
    assert (good.classify("x"), decode((tmp_path / "bad.model").read_bytes()).classify("x")) == ("b", "c")
    assert decode((tmp_path / "tiny.model").read_bytes()) == good, "the source is not touched"


def adapter(path, names: list[str]) -> None:
    """A GGUF file with one float32 tensor of 8 values for each name."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(names), 0)
    for n, name in enumerate(names):
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQIQ", 1, 8, gguf_file.F32, 32 * n)
    head += bytes(-len(head) % gguf_file.ALIGNMENT)
    path.write_bytes(head + b"".join(struct.pack("<8f", *[n + 1.0] * 8) for n in range(len(names))))


def test_an_adapter_keeps_its_form_and_loses_what_it_adds(tmp_path) -> None:
    source, target = tmp_path / "adapter.gguf", tmp_path / "bad.gguf"
    adapter(source, ["blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"])
    assert "1 lora_b tensors are zero" in damaged(source, target)
    before, after = gguf_file.read(source), gguf_file.read(target)
    assert (after.metadata, after.tensors) == (before.metadata, before.tensors)
    assert after.data("blk.0.attn_q.weight.lora_b") == bytes(32)
    assert after.data("blk.0.attn_q.weight.lora_a") == before.data("blk.0.attn_q.weight.lora_a")


def test_what_is_no_adapter_is_refused(tmp_path) -> None:
    adapter(tmp_path / "model.gguf", ["blk.0.attn_q.weight"])
    with pytest.raises(NoriaError, match=r"no LoRA adapter"):
        damaged(tmp_path / "model.gguf", tmp_path / "bad.gguf")
