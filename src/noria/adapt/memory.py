"""How much memory a LoRA training will take, before it takes it.

The sum is of parts that follow from shapes; three constants were fitted to measured peaks on CPU (`bench/training.py --memory`;
table and error in docs/how-to/training.md). A prediction is for this process's resident memory at its highest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from noria.adapt import gguf_file
from noria.contracts.error import RequestError
from noria.contracts.training import Lora, TrainingJob

LIBRARIES = 1_360_000_000
"""Resident bytes of Python with torch, transformers, TRL and PEFT, and of what its allocator keeps. Fitted."""
SAVED_VALUES = 22.0
"""Values of a hidden state's width that one layer keeps per token for the backward pass, beside the MLP's. Fitted."""
SAVED_MLP = 8.0
"""The same of the MLP's width. Fitted."""
LOGIT_COPIES = 5
"""Copies of logits, float32, that a loss holds at once. Assumed; the measured answers are too short to tell."""
CHUNK = 1024
"""Tokens whose logits training has at once at most: TRL takes the loss of labelled tokens in chunks."""
SCORED = 4
"""Rows whose whole logits are there at once after training, when the held-out loss is taken (`trainer.loop`)."""
ERROR = 0.15
"""What refusals add: three times the largest relative error over the measured table."""


class ModelShape(msgspec.Struct, frozen=True):
    """What of a model decides its memory. All counts, no bytes."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    """Width of one head."""
    vocabulary: int
    tied: bool

    @property
    def parameters(self) -> int:
        """Of the base."""
        attention = self.hidden * self.head * 2 * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    def trainable(self, lora: Lora) -> int:
        """Of the adapter."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        sides = {
            "q_proj": self.hidden + q, "k_proj": self.hidden + kv, "v_proj": self.hidden + kv, "o_proj": q + self.hidden,
            "gate_proj": self.hidden + self.intermediate, "up_proj": self.hidden + self.intermediate,
            "down_proj": self.intermediate + self.hidden,
        }  # fmt: skip
        unknown = sorted(set(lora.targets) - set(sides))
        if unknown:
            raise RequestError(f"LoRA cannot be put on {unknown[0]!r}.", param="targets", hint=f"Known: {', '.join(sides)}.")
        return self.layers * lora.r * sum(sides[target] for target in lora.targets)


class Prediction(msgspec.Struct, frozen=True):
    """Bytes of the highest moment of each phase, and of the parts of training."""

    peak: int
    training: int
    merging: int
    parts: dict[str, int]


def shape_of(weights: Path) -> ModelShape:
    """The shape of a GGUF file's or a Hugging Face folder's model. Raises `NoriaError`, `RequestError`."""
    if weights.is_file():
        return _of_gguf(gguf_file.read(weights))
    try:
        config: dict[str, Any] = json.loads((weights / "config.json").read_bytes())
        heads = int(config["num_attention_heads"])
        return ModelShape(
            layers=int(config["num_hidden_layers"]), hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]), heads=heads, kv_heads=int(config.get("num_key_value_heads", heads)),
            head=int(config.get("head_dim") or config["hidden_size"] // heads), vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as e:
        raise RequestError(f"{weights / 'config.json'} does not describe a language model: {e!r}.", code="not_a_model") from e


def _of_gguf(file: gguf_file.GgufFile) -> ModelShape:
    kind = file.metadata.get("general.architecture", "")

    def of(key: str) -> int:
        value = file.metadata.get(f"{kind}.{key}")
        if value is None:
            raise RequestError(f"{file.path} does not say its {key}.", code="not_a_model")
        return int(value)

    heads = of("attention.head_count")
    width = of("embedding_length")
    return ModelShape(
        layers=of("block_count"), hidden=width, intermediate=of("feed_forward_length"), heads=heads,
        kv_heads=of("attention.head_count_kv"), head=int(file.metadata.get(f"{kind}.attention.key_length", width // heads)),
        vocabulary=len(file.metadata.get("tokenizer.ggml.tokens", ())), tied="output.weight" not in file.tensors,
    )  # fmt: skip


def predict(shape: ModelShape, job: TrainingJob, longest: int = 0, answer: int = 0) -> Prediction:
    """What a job will take at its highest, in bytes, in bf16 on CPU. `longest` is the longest row in tokens, where it is known
    (else the most that the schedule allows), `answer` of the longest answer.
    """
    row = min(longest or job.schedule.max_length, job.schedule.max_length)
    tokens, labelled = job.schedule.batch * row, job.schedule.batch * min(answer or row, row)
    base, trained = shape.parameters, shape.trainable(job.lora)
    inside = SAVED_VALUES * shape.hidden + SAVED_MLP * shape.intermediate
    parts = {
        "libraries": LIBRARIES,
        "weights": 2 * base,
        "adapter, gradients, optimiser": 16 * trained,
        "activations": int(2 * tokens * shape.layers * inside),
        "logits": int(4 * min(labelled, CHUNK) * shape.vocabulary * LOGIT_COPIES),
    }
    training = sum(parts.values())
    # the merged model in float32, its copy in F16 while it is written, and what training did not give back
    merging = LIBRARIES + 4 * base + (2 * base if any(o.startswith("merged") for o in job.outputs) else 0) + 2 * base
    if job.validation:
        merging += 4 * SCORED * row * shape.vocabulary * LOGIT_COPIES
    return Prediction(max(training, merging), training, merging, parts)


def demand(prediction: Prediction, limit: int, free: int) -> None:
    """Raise `RequestError` (`memory_exceeded`), with the numbers, where it will not fit. `limit` 0 = `free`, in bytes."""
    allowed = min(limit, free) if limit else free
    needed = int(prediction.peak * (1 + ERROR))
    if needed <= allowed:
        return
    whose = f"the limit is {_gb(limit)}" if limit and limit <= free else f"{_gb(free)} are free"
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in prediction.parts.items())
    raise RequestError(
        f"The training is predicted to take {_gb(prediction.peak)} (± {ERROR:.0%}), {_gb(needed)} are asked for to be safe, and {whose}.",
        code="memory_exceeded", param="memory",
        hint=f"It is {parts}. A smaller batch (with accumulate) or a smaller max_length takes less.",
    )  # fmt: skip


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
