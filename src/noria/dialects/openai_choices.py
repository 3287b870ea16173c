"""OpenAI's wire form, several choices: one request with `n` or a list of prompts as single ones, and back.

For endpoints that do not know `n`, or count the tokens of one choice only. Choice `i` of prompt `p` has index
`p * n + i`, as the completions API numbers them. With a `seed`, choice `i` gets `seed + i`: the same seed
would give the same answer n times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from noria.contracts.error import RequestError
from noria.contracts.exchange import Kind
from noria.contracts.stage import Sink
from noria.dialects.openai_stream import is_content
from noria.dialects.sse import FrameSplitter, data_of, frame_of

MOST_CHOICES = 128
"""OpenAI's own limit of `n`."""

Body = dict[str, msgspec.Raw]


class Single(msgspec.Struct, frozen=True):
    """One of the single requests. `counts_prompt`: its prompt is not that of the request before it."""

    body: Body
    counts_prompt: bool


def split(kind: Kind, body: Body) -> list[Single]:
    """The single requests that `body` amounts to; itself alone where it asks for one choice.

    Raises `RequestError` for an `n` out of range, or more than 128 choices in all.
    """
    if kind == "embedding":
        return [Single(body, counts_prompt=True)]
    count = _count(body)
    prompts = _prompts(body) if kind == "completion" else None
    if count == 1 and prompts is None:
        return [Single(body, counts_prompt=True)]
    if count * len(prompts or ("",)) > MOST_CHOICES:
        raise RequestError(f"n times the number of prompts may be {MOST_CHOICES} at most.", code="invalid_value", param="n")
    seed = msgspec.json.decode(body["seed"]) if "seed" in body else None
    bare = {k: v for k, v in body.items() if k not in ("n", "seed")}
    if "seed" in body:
        bare["seed"] = body["seed"]
    singles = []
    for asked in [{**bare, "prompt": p} for p in prompts] if prompts else [bare]:
        for i in range(count):
            own = asked if i == 0 or not isinstance(seed, int) else {**asked, "seed": msgspec.Raw(b"%d" % (seed + i))}
            singles.append(Single(own, counts_prompt=i == 0))
    return singles


def merge(singles: Sequence[Single], answers: Sequence[bytes]) -> bytes:
    """One answer out of the answers to `singles`, in their order. Raises `ValueError` where one is no answer."""
    try:
        read: list[dict[str, Any]] = [msgspec.json.decode(a, type=dict[str, Any]) for a in answers]
        choices = [{**a["choices"][0], "index": n} for n, a in enumerate(read)]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError) as e:
        raise ValueError(f"an answer has no choice: {e}") from e
    tally = Tally()
    for single, answer in zip(singles, read, strict=True):
        tally.add(answer.get("usage"), counts_prompt=single.counts_prompt)
    merged = {k: v for k, v in read[0].items() if k not in ("choices", "usage", "timings")}
    usage = {"usage": tally.usage} if tally.complete else {}
    return msgspec.json.encode({**merged, "choices": choices, **usage})


class Tally:
    """Adds up usage: each prompt once, every answer. `complete` is false once an answer came without."""

    def __init__(self) -> None:
        self._prompt = self._cached = self._answer = 0
        self.complete = True

    def add(self, usage: Any, *, counts_prompt: bool) -> None:
        """One answer's usage, or None."""
        if not isinstance(usage, dict):
            self.complete = False
            return
        self._answer += int(usage.get("completion_tokens") or 0)
        if counts_prompt:
            self._prompt += int(usage.get("prompt_tokens") or 0)
            self._cached += int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    @property
    def usage(self) -> dict[str, Any]:
        """The sum, in OpenAI's form."""
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._answer,
            "total_tokens": self._prompt + self._answer,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }


class StreamMerger:
    """Interleaves the streams of `singles` into one: own indices, one id, one usage frame, one `[DONE]`."""

    def __init__(self, singles: Sequence[Single], sink: Sink) -> None:
        self._singles = singles
        self._sink = sink
        self._head: dict[str, Any] = {}
        self._usages: dict[int, Any] = {}
        stream_options = msgspec.json.decode(singles[0].body.get("stream_options") or b"null")
        self.started = False
        """Whether content of some choice has been passed on."""
        self._usage_wanted = isinstance(stream_options, dict) and stream_options.get("include_usage") is True

    def sink(self, n: int) -> Sink:
        """Where the stream of single request `n` goes."""
        splitter = FrameSplitter()

        def take(data: bytes) -> None:
            out = b"".join(self._rewrite(n, frame) for frame in splitter.feed(data))
            if out:
                self._sink(out)

        return take

    def end(self) -> None:
        """All streams are complete."""
        tally = Tally()
        for n, single in enumerate(self._singles):
            tally.add(self._usages.get(n), counts_prompt=single.counts_prompt)
        last = b"data: [DONE]\n\n"
        if self._usage_wanted and tally.complete:
            last = frame_of(msgspec.json.encode({**self._head, "choices": [], "usage": tally.usage})) + last
        self._sink(last)

    def _rewrite(self, n: int, frame: bytes) -> bytes:
        data = data_of(frame)
        if data is None:
            return frame
        if data == b"[DONE]":
            return b""
        chunk = msgspec.json.decode(data)  # a frame that has passed the gate is JSON
        if not isinstance(chunk, dict):
            return frame
        self._usages[n] = chunk.pop("usage", None) or self._usages.get(n)
        chunk.pop("timings", None)
        choices = chunk.get("choices")
        if not choices:
            return b""
        if not self._head:
            self._head = {k: v for k, v in chunk.items() if k != "choices"}
        chunk["id"] = self._head.get("id", "")
        chunk["choices"] = [{**c, "index": n} for c in choices]
        self.started = self.started or is_content(frame)
        return frame_of(msgspec.json.encode(chunk))


def _count(body: Body) -> int:
    count = msgspec.json.decode(body["n"]) if "n" in body else None
    if count is None:
        return 1
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_CHOICES:
        raise RequestError(f"n must be a whole number from 1 to {MOST_CHOICES}.", code="invalid_value", param="n")
    return count


def _prompts(body: Body) -> list[msgspec.Raw] | None:
    """The prompts of a list of prompts; None for one prompt, which may itself be a list of tokens."""
    raw = body.get("prompt", msgspec.Raw(b'""'))
    if not bytes(raw).lstrip().startswith(b"["):
        return None
    prompts = msgspec.json.decode(raw, type=list[msgspec.Raw])
    return prompts if prompts and bytes(prompts[0]).lstrip()[:1] in (b'"', b"[") else None
