"""The file contract of a training job: `job.json` in; `progress.jsonl` while it runs; `result.json` and artifacts out.

The trainer is a program of its own (`noria.adapt.*`, or anybody's): it sees its folder and nothing else of Noria.
A job that is started again in the same folder goes on from its last checkpoint.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Lora(msgspec.Struct, frozen=True):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Schedule(msgspec.Struct, frozen=True):
    """How long and how fast."""

    epochs: float = 1.0
    steps: int = 0
    """At most so many optimiser steps; 0 = as `epochs` says."""
    batch: int = 8
    accumulate: int = 1
    learning_rate: float = 5e-4
    warmup: float = 0.05
    """Share of the steps."""
    max_length: int = 256
    """Tokens of a row; longer ones are rejected by name, not cut."""
    checkpoint_every: int = 20
    """Steps."""


class TrainingJob(msgspec.Struct, frozen=True):
    """`job.json`. The same job, environment and seed give the same adapter, as far as the hardware does."""

    id: str
    method: Literal["sft", "tiny"]
    base: str
    """Installed model id (`smollm2-135m`)."""
    weights: str
    """Absolute path of the base's GGUF file or Hugging Face folder."""
    weights_sha256: str
    dataset: str
    """Version id."""
    train: str
    """File name in the folder: JSON lines of {id, messages, answer}."""
    validation: str = ""
    system: str = ""
    """The system prompt that the release will be served with: trained as it will be asked."""
    lora: Lora = Lora()
    schedule: Schedule = Schedule()
    seed: int = 0
    threads: int = 0
    """0 = all cores."""
    memory_limit: int = 0
    """Bytes; 0 = what is free. Refused before it starts where the prediction is above."""
    outputs: tuple[Literal["adapter_gguf", "merged_f16", "merged_q8_0", "merged_q4_k_m"], ...] = ("adapter_gguf",)
    cache: str = ""
    """Absolute path of a folder where converted weights are kept for the next job; empty = in the job's own folder."""
    check_rows: int = 64
    """Rows of `validation` that the trained model answers itself, greedily: what a served file is compared with."""
    answer_tokens: int = 24
    """Longest answer of that comparison."""


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of `progress.jsonl`."""

    at_ns: int
    phase: Literal["load", "train", "validate", "merge", "export", "quantize", "check", "done"]
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds_per_step: float | None = None
    eta_seconds: float | None = None
    note: str = ""


class Made(msgspec.Struct, frozen=True):
    """One file that a job made."""

    name: str
    role: str
    """`adapter_gguf`, `merged_q8_0`, `adapter_safetensors`, …"""
    sha256: str
    bytes: int


class Failure(msgspec.Struct, frozen=True):
    """`failure.json`: why a trainer gave up, for those who did not see its log."""

    message: str
    hint: str = ""
    code: str = "training_failed"


class Answered(msgspec.Struct, frozen=True):
    """One line of `answers.jsonl`: what the trained model itself answers to a row of `validation`."""

    id: str
    answer: str
    expected: str


class Checked(msgspec.Struct, frozen=True):
    """`checked-<file>.json`: what came of comparing a served file with the trained model, last."""

    file: str
    at_ns: int
    equivalent: bool | None
    """None where there were too few rows to tell."""
    rows: int = 0
    agreement: float | None = None
    """Share of answers that are the same; None where what is written in the file was refused before it was asked."""
    trained_accuracy: float | None = None
    served_accuracy: float | None = None
    threshold: float | None = None
    code: str = ""
    says: str = ""
    """Why it was refused."""


class Fingerprint(msgspec.Struct, frozen=True):
    """`fingerprint.json`: what must stand in every file that is served in the trained model's place."""

    base_sha256: str
    architecture: str
    template_sha256: str
    """Of the chat template that the rows were written with."""
    tokenizer_sha256: str
    """`noria.adapt.gguf_file.tokenizer_digest` of the tokenizer that they were split with."""
    eos: int
    """The token that every trained answer ends with."""
    bos_added: bool
    lora: Lora
    right: dict[str, str] = {}
    """Tensor → SHA-256 of its bytes in `adapter.gguf` and in the merged F16 file (`merged:` + name there)."""
    unpermuted: dict[str, str] = {}
    """The same without llama.cpp's permutation of q and k, for those that have one."""


class TrainingResult(msgspec.Struct, frozen=True):
    """`result.json`; written last and whole, so that its being there means success."""

    job: str
    made: tuple[Made, ...]
    steps: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    loss: tuple[float, ...]
    """Every logged training loss, in order."""
    validation_loss: float | None = None
    rows: int = 0
    skipped: dict[str, str] = {}
    """Row id → why it was not trained on."""
    environment: dict[str, str] = {}
    """Package → version, with the interpreter and the processor."""
    metrics: dict[str, Any] = {}
