"""GGUF files small enough to plant faults in, and a finished job that they belong to."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from noria.adapt import gguf_file
from noria.adapt.trainer.workplace import Line, sha256_of
from noria.contracts.training import Answered, Fingerprint, Lora, Made, Schedule, TrainingJob, TrainingResult

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2, "llama.embedding_length": 8, "llama.feed_forward_length": 16,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": ["<unk>", "<s>", "<|im_end|>", "a"],
    "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": TEMPLATE,
}  # fmt: skip
RIGHT, PLAIN, OTHER = (struct.pack("<16f", *(float(n * k) for n in range(16))) for k in (1, 2, 3))
"""The bytes of a tensor in llama.cpp's order, without the permutation, and of another model."""


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(of: Any) -> bytes:
    if isinstance(of, bool):
        return struct.pack("<I?", 7, of)
    if isinstance(of, int):
        return struct.pack("<II", 4, of)
    if isinstance(of, float):
        return struct.pack("<If", 6, of)
    if isinstance(of, str):
        return struct.pack("<I", 8) + text(of)
    return struct.pack("<IIQ", 9, 8, len(of)) + b"".join(text(v) for v in of)


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, bytes], shape: tuple[int, ...] = (8, 2)) -> Path:
    """A GGUF file of float32 tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(k) + value(v) for k, v in metadata.items())
    offset = 0
    for name, data in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", gguf_file.F32, offset)
        offset += len(data)
    head += b"\0" * (-len(head) % 32)
    path.write_bytes(head + b"".join(tensors.values()))
    return path


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Finished:
    """A job's folder as a trainer leaves it: an adapter on a base, and a merged model. `said` is what a server would answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = write_gguf(folder / "base.gguf", METADATA, {"blk.0.attn_q.weight": OTHER})
        self.merged = self.write_merged()
        self.adapter = self.write_adapter()
        self.fingerprint = Fingerprint(
            base_sha256=sha256_of(self.base), architecture="llama", template_sha256=digest(TEMPLATE.encode()),
            tokenizer_sha256=gguf_file.tokenizer_digest(gguf_file.read(self.base).metadata), eos=2, bos_added=False, lora=Lora(r=2),
            right={"blk.0.attn_q.weight.lora_b": digest(RIGHT), "merged:blk.0.attn_q.weight": digest(RIGHT)},
            unpermuted={"blk.0.attn_q.weight.lora_b": digest(PLAIN), "merged:blk.0.attn_q.weight": digest(PLAIN)},
        )  # fmt: skip
        self.answers = [Answered(f"r{n}", "yes" if n % 2 else "no", "yes" if n % 2 else "no") for n in range(40)]
        self._keep()

    def write_merged(self, tensor: bytes = RIGHT, **metadata: Any) -> Path:
        changed = METADATA | {k.replace("__", "."): v for k, v in metadata.items()}
        return write_gguf(self.folder / "merged-f16.gguf", changed, {"blk.0.attn_q.weight": tensor})

    def write_adapter(self, tensor: bytes = RIGHT, alpha: float = 32.0) -> Path:
        head = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha}
        tensors = {"blk.0.attn_q.weight.lora_a": RIGHT, "blk.0.attn_q.weight.lora_b": tensor}
        return write_gguf(self.folder / "adapter.gguf", head, tensors)

    def _keep(self) -> None:
        job = TrainingJob(
            id="train_1", method="sft", base="b", weights=str(self.base), weights_sha256="", dataset="d1:0", train="train.jsonl",
            validation="validation.jsonl", schedule=Schedule(),
        )  # fmt: skip
        result = TrainingResult("train_1", (), 1, 1.0, 1.0, 1, (1.0,))
        lines = [Line(a.id, ({"role": "user", "content": "?"},), a.expected) for a in self.answers]
        self.put("job.json", job)
        self.put("result.json", result)
        self.put("fingerprint.json", self.fingerprint)
        (self.folder / "answers.jsonl").write_bytes(b"".join(msgspec.json.encode(a) + b"\n" for a in self.answers))
        (self.folder / "validation.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))

    def put(self, name: str, what: Any) -> None:
        (self.folder / name).write_bytes(msgspec.json.encode(what))

    def pinned(self) -> None:
        """The result names the files by their hashes, as a trainer's does."""
        made = tuple(Made(p.name, "x", sha256_of(p), p.stat().st_size) for p in (self.adapter, self.merged))
        self.put("result.json", TrainingResult("train_1", made, 1, 1.0, 1.0, 1, (1.0,)))


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    return Finished(tmp_path)


@pytest.fixture
def gguf():
    return write_gguf


@pytest.fixture
def tensors() -> tuple[bytes, bytes, bytes]:
    """(right, without the permutation, another model's)."""
    return RIGHT, PLAIN, OTHER


@pytest.fixture
def metadata() -> dict[str, Any]:
    return dict(METADATA)
