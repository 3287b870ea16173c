"""What was trained, as llama.cpp reads it: a LoRA adapter, or the merged model; and what must stand in either.

llama.cpp stores the rows of q and k in another order than transformers (it rotates neighbours, not halves): `permuted` is that
order, after `permute` of llama.cpp's `conversion`. Without it every figure is finite and every answer wrong.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from noria.adapt.gguf_file import read, template_digest, tokenizer_digest
from noria.adapt.trainer.workplace import TrainingFailed
from noria.contracts.training import Fingerprint, TrainingJob

PERMUTED = ("llama",)
"""Architectures whose q and k are stored in another order."""
PREFIX = "base_model.model."
"""Of PEFT's names."""
MOSTLY_F16 = 1
"""`general.file_type` of llama.cpp."""


class Shape:
    """What an exporter must know of a model. `config` is transformers'."""

    def __init__(self, architecture: str, config: Any) -> None:
        import gguf

        self.architecture = architecture
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.tied = bool(config.tie_word_embeddings)
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        self._names = gguf.get_tensor_name_map(kinds[architecture], int(config.num_hidden_layers))

    def name(self, key: str) -> str:
        """GGUF's name of a tensor of transformers'. Raises `TrainingFailed` for one it has none for."""
        found = self._names.get_name(key, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise TrainingFailed(f"GGUF has no name for the tensor {key}.", code="unknown_architecture")
        return str(found)

    def heads_of(self, name: str) -> int:
        """How many heads share the rows of this tensor if it is stored permuted, else 0. `name` is GGUF's."""
        if self.architecture not in PERMUTED:
            return 0
        part = name.split(".")[2] if name.startswith("blk.") else ""
        return {"attn_q": self.heads, "attn_k": self.kv_heads}.get(part, 0)


def permuted(weight: Any, heads: int) -> Any:
    """The rows of a numpy array in llama.cpp's order; as they are where `heads` is 0."""
    import numpy as np

    if not heads:
        return weight
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(weight.shape))


def write_adapter(state: dict[str, Any], job: TrainingJob, shape: Shape, path: Path) -> dict[str, tuple[str, str]]:
    """The LoRA weights (PEFT's names → float32 arrays) as a GGUF adapter; tensor → (SHA-256, SHA-256 without the permutation)
    of those that are permuted, empty second where it changes nothing.
    """
    import gguf

    aside = path.with_suffix(".part")
    writer = gguf.GGUFWriter(str(aside), shape.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(job.lora.alpha))
    writer.add_string("noria.job", job.id)
    writer.add_string("noria.base.sha256", job.weights_sha256)
    digests = {}
    for key, weight in sorted(state.items()):
        stem, _, side = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        base = shape.name(stem + ".weight")
        name = f"{base}.{'lora_a' if side == 'lora_A' else 'lora_b'}"
        # only the rows of the product change their order, and those are lora_b's
        stored = permuted(weight, shape.heads_of(base)) if side == "lora_B" else weight
        writer.add_tensor(name, stored)
        digests[name] = (_digest(stored), _digest(weight))
    _close(writer, aside, path)
    return digests


def write_merged(state: dict[str, Any], source: Path, shape: Shape, path: Path) -> dict[str, tuple[str, str]]:
    """The merged weights (transformers' names → callables that give float32 arrays) as GGUF F16 with the metadata of `source`,
    tokenizer and template included. Norms and biases stay F32, as llama.cpp wants them. As `write_adapter`, for q and k.
    """
    import gguf
    import numpy as np

    origin = gguf.GGUFReader(str(source))
    aside = path.with_suffix(".part")
    writer = gguf.GGUFWriter(str(aside), shape.architecture)
    _copy_metadata(origin, writer)
    wanted = {str(t.name) for t in origin.tensors}
    digests = {}
    for key, load in state.items():
        name = shape.name(key)
        if name == "output.weight" and name not in wanted and shape.tied:
            continue
        weight = load()
        kind = np.float32 if weight.ndim == 1 else np.float16
        stored = permuted(weight, shape.heads_of(name)).astype(kind)
        writer.add_tensor(name, stored)
        wanted.discard(name)
        if shape.heads_of(name):
            digests[name] = (_digest(stored), _digest(weight.astype(kind)))
    for tensor in origin.tensors:
        if tensor.name == "rope_freqs.weight":
            writer.add_tensor(str(tensor.name), np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
            wanted.discard(str(tensor.name))
    if wanted:
        raise TrainingFailed(f"The merged model lacks {sorted(wanted)[:3]}, which its base has.", code="export_failed")
    _close(writer, aside, path)
    return digests


def fingerprint(job: TrainingJob, tokenizer: Any, architecture: str, digests: dict[str, tuple[str, str]]) -> Fingerprint:
    """What must hold of the served files. The tokenizer is the one that the rows were split with."""
    source = Path(job.weights)
    metadata = read(source).metadata if source.is_file() else {}
    template = hashlib.sha256(str(tokenizer.chat_template or "").encode()).hexdigest()
    if metadata and template != template_digest(metadata):
        raise TrainingFailed("The chat template that was trained with is not the one in the GGUF file.", code="wrong_template")
    return Fingerprint(
        base_sha256=job.weights_sha256,
        architecture=architecture,
        template_sha256=template,
        tokenizer_sha256=tokenizer_digest(metadata) if metadata else "",
        eos=int(tokenizer.eos_token_id),
        bos_added=bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        lora=job.lora,
        right={name: right for name, (right, _) in digests.items()},
        unpermuted={name: plain for name, (right, plain) in digests.items() if plain != right},
    )


def _copy_metadata(origin: Any, writer: Any) -> None:
    """Every key of the source but those that the writer sets itself."""
    import gguf

    for field in origin.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        if field.name == gguf.Keys.General.FILE_TYPE:
            writer.add_file_type(MOSTLY_F16)
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)


def _close(writer: Any, aside: Path, path: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)


def _digest(weight: Any) -> str:
    return hashlib.sha256(weight.tobytes()).hexdigest()
