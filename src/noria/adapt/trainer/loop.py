"""The training loop proper: TRL's, with our rows, our checkpoints and our progress; and what is asked of the result."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from noria.adapt.trainer.rows import IGNORED, Example
from noria.adapt.trainer.workplace import Workplace
from noria.contracts.training import TrainingJob
from noria.kit.atomic import staged

CHECKPOINTS, WHOLE = "checkpoints", "whole"
TOGETHER = 16
"""Prompts that are answered at once."""
SCORED = 4
"""Rows whose loss is taken at once: all of their logits are in memory."""


class Told(TrainerCallback):  # type: ignore[misc]  # transformers is not there when types are checked
    """Progress of each step, and the mark that makes a checkpoint count."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._began = 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002  the library's signature
        """The clock starts."""
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002  the library's signature
        """The clock stops."""
        self.seconds.append(time.monotonic() - self._began)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002  the library's signature
        """One line a step."""
        if logs and "loss" in logs:
            pace = statistics.median(self.seconds[-10:])
            left = pace * (state.max_steps - state.global_step)
            self._place.tell(
                "train",
                step=state.global_step,
                steps=state.max_steps,
                loss=logs["loss"],
                seconds_per_step=pace,
                eta_seconds=left,
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002  the library's signature
        """A checkpoint counts from now on: its files are on disk before the mark is."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        (folder / WHOLE).touch()


def fit(place: Workplace, base: Path, tokenizer: Any, examples: list[Example]) -> tuple[Any, dict[str, Any]]:
    """Train, or go on; the adapter is then in the folder `adapter`. (trainer's state, figures of the run)."""
    job = place.job
    last = _last_whole(place.folder / CHECKPOINTS)
    told = Told(place)
    trainer = trainer_of(job, base, tokenizer, examples, place.folder / CHECKPOINTS)
    trainer.add_callback(told)
    if last is None:
        trainer.train()
    elif last[0] < trainer.args.max_steps:
        trainer.train(resume_from_checkpoint=str(last[1]))
    else:
        # all steps were done when it was killed: the trainer would add one
        trainer.state = trainer.state.load_from_json(str(last[1] / "trainer_state.json"))
    with staged(place.folder / "adapter") as new:
        if last is not None and last[0] >= trainer.args.max_steps:
            shutil.copytree(last[1], new, dirs_exist_ok=True, ignore=_only_adapter)
        else:
            trainer.model.save_pretrained(str(new))
    figures = {
        "seconds_per_step": round(statistics.median(told.seconds), 4) if told.seconds else None,
        "resumed_at": last[0] if last else 0,
        "device": str(trainer.args.device),
        "bf16": bool(trainer.args.bf16),
        "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "longest": max(len(e.prompt) + len(e.answer) for e in examples),
        "longest_answer": max(len(e.answer) for e in examples),
    }
    return trainer.state, figures


def trainer_of(job: TrainingJob, base: Path, tokenizer: Any, examples: list[Example], checkpoints: Path) -> Any:
    """TRL's trainer, ready to train."""
    if job.threads:
        torch.set_num_threads(job.threads)
    schedule = job.schedule
    a_round = math.ceil(math.ceil(len(examples) / schedule.batch) / schedule.accumulate)
    steps = schedule.steps or max(1, math.ceil(a_round * schedule.epochs))
    half = bf16()
    config = SFTConfig(
        output_dir=str(checkpoints), max_steps=steps, per_device_train_batch_size=schedule.batch,
        gradient_accumulation_steps=schedule.accumulate, learning_rate=schedule.learning_rate,
        warmup_steps=round(steps * schedule.warmup), lr_scheduler_type="linear", seed=job.seed, data_seed=job.seed,
        use_cpu=not torch.cuda.is_available(), bf16=half, gradient_checkpointing=False, logging_steps=1, disable_tqdm=True,
        save_strategy="steps", save_steps=schedule.checkpoint_every, save_total_limit=2, report_to=[], max_length=schedule.max_length,
        dataset_kwargs={"skip_prepare_dataset": True}, dataloader_num_workers=0, dataloader_pin_memory=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.bfloat16 if half else torch.float32)
    own = job.lora
    lora = LoraConfig(
        r=own.r, lora_alpha=own.alpha, lora_dropout=own.dropout, target_modules=list(own.targets), task_type="CAUSAL_LM"
    )
    data = Dataset.from_list([e.columns for e in examples])
    return SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)


def tokenizer_of(base: Path) -> Any:
    """The base's tokenizer."""
    return AutoTokenizer.from_pretrained(str(base))


def bf16() -> bool:
    """Whether this machine computes in bf16 at speed: a GPU that can, or a CPU with the instructions."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in text for flag in ("avx512_bf16", "amx_bf16", " bf16 "))


def merged(base: Path, adapter: Path) -> Any:
    """The trained model in float32 with the adapter added in: what every exported file is held against."""
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    whole: Any = PeftModel.from_pretrained(model, str(adapter))
    return whole.merge_and_unload().eval()


def loss_of(model: Any, examples: list[Example]) -> float | None:
    """Mean cross-entropy of the answers' tokens, nats; None without examples."""
    total, count = 0.0, sum(len(e.answer) for e in examples)
    for start in range(0, len(examples), SCORED):
        some = [e.columns for e in examples[start : start + SCORED]]
        width = max(len(c["input_ids"]) for c in some)
        pad = [width - len(c["input_ids"]) for c in some]
        ids = torch.tensor([c["input_ids"] + [0] * n for c, n in zip(some, pad, strict=True)])
        labels = torch.tensor([c["labels"] + [IGNORED] * n for c, n in zip(some, pad, strict=True)])
        mask = torch.tensor([[1] * (width - n) + [0] * n for n in pad])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
        total += float(
            torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
        )
    return total / count if count else None


def greedy(model: Any, tokenizer: Any, prompts: list[list[int]], longest: int) -> list[str]:
    """The likeliest answer, token by token, to its end. `model` is in float32, where padding changes nothing that matters
    (in bf16 it does: STACK.md, traps).
    """
    said = [""] * len(prompts)
    end = tokenizer.eos_token_id
    by_length = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    for start in range(0, len(by_length), TOGETHER):
        some = by_length[start : start + TOGETHER]
        width = max(len(prompts[at]) for at in some)
        ids = torch.tensor([[end] * (width - len(prompts[at])) + prompts[at] for at in some])
        mask = torch.tensor([[0] * (width - len(prompts[at])) + [1] * len(prompts[at]) for at in some])
        found = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, eos_token_id=end, pad_token_id=end
        )
        for at, row in zip(some, found[:, width:].tolist(), strict=True):
            ended = row.index(end) if end in row else len(row)
            said[at] = tokenizer.decode(row[:ended], skip_special_tokens=True).strip()
    return said


def losses(state: Any) -> list[float]:
    """Every logged training loss, in order."""
    return [float(entry["loss"]) for entry in state.log_history if "loss" in entry]


def _last_whole(checkpoints: Path) -> tuple[int, Path] | None:
    """The last checkpoint that was written to its end; what is not is removed."""
    found = []
    for folder in checkpoints.glob("checkpoint-*"):
        if (folder / WHOLE).exists():
            found.append((int(folder.name.rpartition("-")[2]), folder))
        else:
            shutil.rmtree(folder)
    return max(found, default=None)


def _only_adapter(_folder: str, names: list[str]) -> list[str]:
    return [n for n in names if n not in ("adapter_model.safetensors", "adapter_config.json")]
