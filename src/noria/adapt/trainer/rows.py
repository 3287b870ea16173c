"""From rows to tokens: written as the model will be asked, with the loss on the answer alone."""

from __future__ import annotations

from typing import Any

import msgspec

from noria.adapt.trainer.workplace import Line, TrainingFailed
from noria.contracts.training import TrainingJob

IGNORED = -100
"""The label that PyTorch's cross-entropy leaves out."""


class Example(msgspec.Struct, frozen=True):
    """One row in tokens: `prompt` as the served template writes it, `answer` with the token that ends it."""

    id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def columns(self) -> dict[str, list[int]]:
        """As TRL's collator takes it."""
        return {
            "input_ids": [*self.prompt, *self.answer],
            "labels": [IGNORED] * len(self.prompt) + list(self.answer),
        }


def split(rows: list[Line], tokenizer: Any, job: TrainingJob) -> tuple[list[Example], dict[str, str]]:
    """(examples, row id → why it is none). Nothing is cut: a row that is too long is left out by name."""
    examples, skipped = [], {}
    for row in rows:
        if not row.answer.strip():
            skipped[row.id] = "It has no answer."
            continue
        example = _example(row, tokenizer, job.system)
        length = len(example.prompt) + len(example.answer)
        if length > job.schedule.max_length:
            skipped[row.id] = f"It has {length} tokens, {job.schedule.max_length} are allowed."
            continue
        examples.append(example)
    return examples, skipped


def prompt_of(row: Line, tokenizer: Any, system: str) -> list[int]:
    """The tokens that a server makes of this row's prompt."""
    text = tokenizer.apply_chat_template(_messages(row, system), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _example(row: Line, tokenizer: Any, system: str) -> Example:
    messages = _messages(row, system)
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": row.answer}], tokenize=False)
    if not whole.startswith(asked + row.answer):
        raise TrainingFailed(
            f"The chat template writes the row {row.id} so that its answer does not follow its prompt.",
            code="template_unusable", hint="Train a model whose template writes an answer where it asks for one.",
        )  # fmt: skip
    # prompt and answer are split apart, as they are when the model is served; a template may write on after the end of the turn
    prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
    answer = tokenizer(whole[len(asked) :], add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    if end not in answer:
        answer = [*answer, end]
    return Example(row.id, tuple(prompt), tuple(answer[: answer.index(end) + 1]))


def _messages(row: Line, system: str) -> list[dict[str, Any]]:
    return [*([{"role": "system", "content": system}] if system else []), *row.messages]
