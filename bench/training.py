"""What Noria's trainer costs beside a bare TRL script, and how well memory is predicted.

    PYTHONPATH=src PYTHON bench/training.py MODEL.gguf            step time, interleaved rounds in one process
    PYTHONPATH=src PYTHON bench/training.py MODEL.gguf --memory   predicted and measured peaks

PYTHON is an interpreter with noria[train]. CPU seconds a step are the figure to read on a machine that others use; wall time beside
it. Both sides train the same rows in the same order with the same settings; the bare one lets TRL write and split them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import msgspec

from noria.adapt import memory
from noria.adapt.trainer.workplace import Line, Workplace, sha256_of
from noria.contracts.training import Lora, Schedule, TrainingJob

SYSTEM = "Name the intent of the customer's message. Answer with one of: card lost, balance, transfer, greeting."
SAID = ["my card is gone, please block it", "how much is on my account", "send ten euros to my sister", "hello there"]
ANSWERS = ["card lost", "balance", "transfer", "greeting"]
SHAPES = ((4, 64, 8), (8, 64, 16), (4, 128, 16), (8, 128, 16), (4, 256, 16), (8, 256, 16), (8, 128, 64))
"""(batch, tokens of a row, LoRA rank)."""


def lines(count: int, words: int = 0) -> list[Line]:
    said = (SAID[n % 4] + " word" * words for n in range(count))
    return [Line(f"r{n}", ({"role": "user", "content": text},), ANSWERS[n % 4]) for n, text in enumerate(said)]


def job_in(
    folder: Path, weights: Path, rows: list[Line], schedule: Schedule, *, lora: Lora, threads: int, cache: Path
) -> TrainingJob:
    job = TrainingJob(
        id="bench", method="sft", base="bench", weights=str(weights), weights_sha256=sha256_of(weights), dataset="d1:bench",
        train="train.jsonl", system=SYSTEM, schedule=schedule, lora=lora, threads=threads, cache=str(cache), seed=1,
    )  # fmt: skip
    (folder / "train.jsonl").write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in rows))
    (folder / "job.json").write_bytes(msgspec.json.encode(job))
    return job


def bare(base: Path, rows: list[Line], job: TrainingJob, out: Path):
    """The script that a reader of TRL's documentation would write, with our settings."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from noria.adapt.trainer.loop import bf16

    tokenizer = AutoTokenizer.from_pretrained(str(base))
    half = bf16()
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.bfloat16 if half else torch.float32)
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "system", "content": SYSTEM}, *row.messages],
                "completion": [{"role": "assistant", "content": row.answer}],
            }
            for row in rows
        ]
    )
    plan, own = job.schedule, job.lora
    config = SFTConfig(
        output_dir=str(out), max_steps=plan.steps, per_device_train_batch_size=plan.batch, learning_rate=plan.learning_rate,
        use_cpu=True, bf16=half, gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to=[], seed=job.seed,
        data_seed=job.seed, disable_tqdm=True, max_length=plan.max_length, dataloader_pin_memory=False, completion_only_loss=True,
    )  # fmt: skip
    lora = LoraConfig(r=own.r, lora_alpha=own.alpha, target_modules=list(own.targets), task_type="CAUSAL_LM")
    return SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)


def timed(trainer) -> tuple[list[float], list[float]]:
    """(wall, CPU) seconds of each step but the first."""
    from transformers import TrainerCallback

    wall, cpu = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.at = time.perf_counter(), time.process_time()

        def on_step_end(self, *_, **__):
            wall.append(time.perf_counter() - self.at[0])
            cpu.append(time.process_time() - self.at[1])

    trainer.add_callback(Clock())
    trainer.train()
    return wall[1:], cpu[1:]


def pace(weights: Path, cache: Path, *, rounds: int, steps: int, threads: int) -> dict[str, object]:
    import torch

    from noria.adapt.trainer import convert, loop, rows

    torch.set_num_threads(threads)
    figures: dict[str, list[float]] = {"bare wall": [], "bare cpu": [], "noria wall": [], "noria cpu": []}
    for n in range(rounds):
        for side in ("bare", "noria") if n % 2 == 0 else ("noria", "bare"):
            with tempfile.TemporaryDirectory() as at:
                folder, some = Path(at), lines(8 * steps)
                job = job_in(
                    folder,
                    weights,
                    some,
                    Schedule(steps=steps, batch=8, checkpoint_every=1000),
                    lora=Lora(),
                    threads=threads,
                    cache=cache,
                )
                place = Workplace(folder)
                base = convert.folder_of(place)
                if side == "bare":
                    trainer = bare(base, some, job, folder / "out")
                else:
                    tokenizer = loop.tokenizer_of(base)
                    examples, _ = rows.split(some, tokenizer, job)
                    trainer = loop.trainer_of(job, base, tokenizer, examples, folder / "checkpoints")
                    trainer.add_callback(loop.Told(place))
                wall, cpu = timed(trainer)
                figures[f"{side} wall"] += wall
                figures[f"{side} cpu"] += cpu
                print(side, [round(x, 2) for x in cpu], "CPU s", [round(x, 2) for x in wall], "s", flush=True)
    middle = {name: round(statistics.median(values), 3) for name, values in figures.items()}
    return middle | {
        "ratio cpu": round(middle["noria cpu"] / middle["bare cpu"], 3),
        "ratio wall": round(middle["noria wall"] / middle["bare wall"], 3),
        "steps": len(figures["noria cpu"]), "batch": 8, "threads": threads,
    }  # fmt: skip


def peaks(weights: Path, cache: Path, *, threads: int) -> list[dict[str, object]]:
    shape = memory.shape_of(weights)
    found = []
    for batch, length, rank in SHAPES:
        with tempfile.TemporaryDirectory() as at:
            folder = Path(at)
            lora = Lora(r=rank, alpha=2 * rank)
            # the longest row decides; the words are one token each
            some = lines(2 * batch, words=max(0, length - 50))
            job = job_in(
                folder,
                weights,
                some,
                Schedule(steps=2, batch=batch, max_length=length + 64, checkpoint_every=50),
                lora=lora,
                threads=threads,
                cache=cache,
            )
            subprocess.run([sys.executable, "-m", "noria.adapt.trainer.sft", str(folder)], check=True)
            result = json.loads((folder / "result.json").read_bytes())
        longest = result["metrics"]["longest"]
        predicted = memory.predict(shape, job, longest, result["metrics"]["longest_answer"])
        measured = result["peak_bytes"]
        row = {
            "batch": batch, "tokens": longest, "rank": rank, "predicted": predicted.peak, "measured": measured,
            "error": round(predicted.peak / measured - 1, 3), "parts": predicted.parts, "merging": predicted.merging,
        }  # fmt: skip
        found.append(row)
        print(
            f"{batch} x {longest}, r {rank}: predicted {predicted.peak / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB, {row['error']:+.1%}",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "noria-bench-cache")
    given = parser.parse_args()
    if given.memory:
        print(json.dumps(peaks(given.weights, given.cache, threads=given.threads), indent=1))
    else:
        print(
            json.dumps(
                pace(given.weights, given.cache, rounds=given.rounds, steps=given.steps, threads=given.threads), indent=1
            )
        )


if __name__ == "__main__":
    main()
