"""The GGUF reader says what is in a file, and refuses what is not whole."""

import pytest

from noria.adapt import gguf_file
from noria.contracts.error import NoriaError


def test_metadata_and_tensors_are_read(tmp_path, gguf, metadata, tensors):
    file = gguf_file.read(gguf(tmp_path / "a.gguf", metadata, {"x": tensors[0], "y": tensors[1]}))
    assert file.metadata == metadata | {
        "tokenizer.ggml.tokens": tuple(metadata["tokenizer.ggml.tokens"]), "tokenizer.ggml.merges": ("a b",)
    }  # fmt: skip
    assert (file.tensors["y"].shape, file.tensors["y"].bytes) == ((8, 2), 64)
    assert file.data("y") == tensors[1]


@pytest.mark.parametrize("lost", [1, 64, 200, 700])
def test_a_file_that_ends_too_early_is_refused_by_name(tmp_path, gguf, metadata, tensors, lost):
    path = gguf(tmp_path / "a.gguf", metadata, {"x": tensors[0], "y": tensors[1]})
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(NoriaError, match="truncated") as e:
        gguf_file.read(path)
    assert e.value.code == "gguf_truncated"


@pytest.mark.parametrize("data", [b"", b"GGML" + b"\0" * 40, b"GGUF\x09\0\0\0" + b"\0" * 40])
def test_what_is_no_gguf_is_refused(tmp_path, data):
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(NoriaError) as e:
        gguf_file.read(tmp_path / "a.gguf")
    assert e.value.code == "gguf_unreadable"


def test_the_tokenizers_digest_sees_order_and_boundaries():
    base = {"tokenizer.ggml.tokens": ("ab", "c"), "tokenizer.ggml.merges": ("a b",)}
    others = [
        base | {"tokenizer.ggml.tokens": ("c", "ab")},
        base | {"tokenizer.ggml.tokens": ("a", "bc")},
        base | {"tokenizer.ggml.pre": "qwen2"},
        base | {"tokenizer.ggml.merges": ("a b", "b c")},
    ]
    assert len({gguf_file.tokenizer_digest(m) for m in [base, *others]}) == 5
