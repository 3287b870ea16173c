"""A GGUF file as a folder that transformers loads: made once, kept under the hash of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noria.adapt.trainer.workplace import TrainingFailed, Workplace
from noria.contracts.error import boundary
from noria.kit.atomic import staged, write_whole

TRAINABLE = ("llama", "qwen2")
"""Architectures whose way into GGUF is proven here."""
WHOLE = "converted.json"


def is_gguf(path: Path) -> bool:
    """Whether the weights are one GGUF file rather than a folder."""
    return path.is_file()


def folder_of(place: Workplace) -> Path:
    """The folder to load from: the job's own, or the one made of its GGUF file, in bf16. About 20 CPU seconds the first time."""
    job = place.job
    weights = Path(job.weights)
    if not is_gguf(weights):
        return weights
    kept = Path(job.cache or place.folder / "cache") / "hf" / job.weights_sha256
    if not (kept / WHOLE).exists():
        place.tell("load", note="The GGUF file is converted; the next job finds it converted.")
        with boundary(TrainingFailed, f"{weights} could not be converted"), staged(kept) as new:
            _convert(weights, new)
    return kept


def _convert(weights: Path, into: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name)
    tokenizer.save_pretrained(str(into))
    model: Any = AutoModelForCausalLM.from_pretrained(str(weights.parent), gguf_file=weights.name, dtype=torch.bfloat16)
    # transformers takes it for quantised still, and refuses to save it (STACK.md, traps)
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(str(into))
    write_whole(into / WHOLE, b"{}")


def architecture(config: Any) -> str:
    """GGUF's name of the architecture. Raises `TrainingFailed` for one whose export is not proven."""
    name = str(config.model_type)
    if name not in TRAINABLE:
        raise TrainingFailed(
            f"Models of the architecture {name!r} cannot be exported.", code="unknown_architecture",
            hint=f"These can: {', '.join(TRAINABLE)}.",
        )  # fmt: skip
    return name
