"""A classifier that the trainer without torch made (`noria adapt tiny`), as a model: it answers with the label of the last turn.

For the proof of what is around a model, and as a baseline: an n-gram classifier that does as well as a language model says
that the language model is not needed.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec

from noria.contracts.error import NoriaError, RequestError, Unavailable
from noria.contracts.exchange import ModelCall, ModelReply
from noria.contracts.release import Endpoint
from noria.contracts.stage import Options, Provider, Sink
from noria.dialects.openai import read_head, read_messages, read_texts
from noria.dialects.openai_replay import as_stream
from noria.kit.ids import uuid7
from noria.kit.ngram import Ngram, decode


class TinyOptions(Options, frozen=True, forbid_unknown_fields=True):
    """Which file is served."""

    file: str
    """Path of the model file (`tiny.model` of a training job)."""
    sha256: str = ""
    """What the file must be; any is served where this is empty."""
    artifact: str = ""
    """The artifact that the file is of, where it is of one (`noria release artifacts`)."""


class Tiny(Provider):
    """Answers at once, in this process."""

    Config = TinyOptions

    def __init__(self, endpoint: Endpoint, secret: str, config: TinyOptions) -> None:
        del secret  # nobody is asked
        self._name = endpoint.model
        self._model: Ngram | None = None
        self._trouble: NoriaError | None = None
        try:
            self._model = _load(Path(config.file).expanduser(), config.sha256 or endpoint.digests.get("weights", ""))
        except NoriaError as e:
            self._trouble = e

    @property
    def ready(self) -> NoriaError | None:
        """None, or why the file is not served."""
        return self._trouble

    async def send(self, call: ModelCall, sink: Sink) -> ModelReply:
        """As `Provider.send`. Raises `Unavailable` as `ready`."""
        if self._model is None:
            raise self._trouble or Unavailable(f"{self._name} is not loaded.", code="model_failed")
        if call.kind == "embedding":
            raise RequestError(f"{self._name} is a classifier: it makes no embeddings.", code="unsupported", param="model")
        head = read_head(call.kind, {"model": msgspec.Raw(b'"-"')} | call.body)
        prompt = _prompt(call)
        label = self._model.classify(prompt)
        choices = [_choice(call.kind, at, label) for at in range(head.n)]
        asked, said = len(prompt.split()), len(label.split()) * head.n
        answer = msgspec.json.encode({
            "id": f"{'chatcmpl' if call.kind == 'chat' else 'cmpl'}-{uuid7()}",
            "object": "chat.completion" if call.kind == "chat" else "text_completion",
            "created": int(time.time()), "model": self._name, "choices": choices,
            "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
        })  # fmt: skip
        if not call.stream:
            return ModelReply(200, answer)
        sink(as_stream(answer))
        return ModelReply(200, b"")

    async def count(self, text: str) -> int:
        """Words are its tokens."""
        return len(text.split())


def _load(path: Path, sha256: str) -> Ngram:
    try:
        data = path.read_bytes()
        model = decode(data)
    except (OSError, ValueError) as e:
        raise _refused(f"The classifier {path} cannot be loaded: {e}.", "Train it with `noria adapt tiny`.") from e
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256.removeprefix("sha256:"):
        raise _refused(
            f"The classifier {path} is refused: it has sha256 {found}, not {sha256}.", "Name the file that was trained."
        )
    return model


def _refused(message: str, hint: str) -> Unavailable:
    return Unavailable(message, code="model_failed", retry_after=10.0, hint=hint)


def _prompt(call: ModelCall) -> str:
    """The last user turn, or the text to complete."""
    if call.kind == "completion":
        return (read_texts(call.body["prompt"], "prompt") or ("",))[-1]
    return next((m.text for m in reversed(read_messages(call.body["messages"])) if m.role == "user"), "")


def _choice(kind: str, at: int, label: str) -> dict[str, Any]:
    said: dict[str, Any] = {"message": {"role": "assistant", "content": label}} if kind == "chat" else {"text": label}
    return {"index": at, **said, "logprobs": None, "finish_reason": "stop"}
