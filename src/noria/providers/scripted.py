"""A model that says what it is told to: the test double for applications, tests, demos and load tests.

Deterministic for a `seed`: the same calls in the same order give the same answers, ids and faults. It speaks
the whole OpenAI wire form (chat, completions, embeddings, streams, `n`, `stop`, tool calls, usage) and fails
in every way a real endpoint does.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Iterator
from itertools import accumulate, count
from typing import Any, Literal, cast

import msgspec

from noria.contracts.error import UpstreamError
from noria.contracts.exchange import ModelCall, ModelReply
from noria.contracts.release import Endpoint
from noria.contracts.stage import Options, Provider, Sink
from noria.dialects.openai import Head, read_head, read_messages, read_texts
from noria.dialects.openai_answer import write_embeddings
from noria.dialects.openai_stream import DONE
from noria.dialects.sse import frame_of
from noria.dialects.upstream import refusal

_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+"
)
_PIECE = re.compile(rf"\s*(?:{_TOKEN.pattern})|\s+")
_CREATED = 1_700_000_000
"""`created` of every answer: a clock would make answers differ."""
_WORDS = ("a", "lantern", "swings", "in", "the", "wind", "and", "tells", "the", "river", "what", "it", "heard", "today")


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that the model makes instead of talking. `arguments` is JSON, as a model would write it."""

    name: str
    arguments: str = "{}"


class Scripted(Provider):
    """Answers from a script. The endpoint's `model` is the served model's name."""

    id = "scripted"

    class Config(Options, frozen=True, forbid_unknown_fields=True):
        """What is said, how fast, and what goes wrong."""

        reply: str | list[str] | dict[str, str] = ""
        """A text for all; a list, used in turn; or a mapping, whose first key found in the last user message decides
        (key `*` = otherwise). Empty: the last user message is echoed."""
        tokens: int | None = None
        """Say exactly this many words instead, whatever `reply` holds."""
        tool: ToolCall | None = None
        first_ms: float = 0.0
        """Wait before the first token, in milliseconds."""
        token_ms: float = 0.0
        """Wait before each further token of a stream, and for all of them before a whole answer."""
        usage: bool = True
        """Whether answers (and streams that ask for it) say how many tokens they took."""
        logprobs: bool = False
        """Log probabilities, where the request asks for them."""
        dimensions: int = 16
        """Of embeddings: deterministic unit vectors; equal texts have equal ones."""
        fail_rate: float = 0.0
        """Share of calls that fail with `fail_status`, from 0 to 1."""
        fail_status: int = 500
        fail_message: str = "The script says to fail."
        retry_after: float | None = None
        """Seconds, sent with a failure."""
        cut_after: int | None = None
        """Break off a stream after this many content frames; 0 = before the first. A whole answer breaks off too."""
        hang_after: int | None = None
        """Say nothing more after this many content frames, until cancelled; 0 = never answer."""
        garbage: bool = False
        """Send bytes that are no answer."""
        seed: int = 0

    def __init__(self, endpoint: Endpoint, secret: str, config: Options) -> None:  # noqa: ARG002  every provider is called so
        self._model = endpoint.model
        self._own = cast("Scripted.Config", config)
        self._random = random.Random(self._own.seed)  # noqa: S311  reproducible on purpose
        self._calls = count()

    async def send(self, call: ModelCall, sink: Sink) -> ModelReply:
        """As `Provider.send`."""
        number = next(self._calls)
        self._fail()
        if call.kind == "embedding":
            return ModelReply(200, self._embed(call.body))
        answer = _Answer(self._own, self._model, number, call)
        if call.stream:
            return await self._stream(answer, sink)
        return await self._whole(answer)

    async def count(self, text: str) -> int:
        """Words between white space, and each Chinese, Japanese or Korean character, are one token each."""
        return len(_TOKEN.findall(text))

    def _fail(self) -> None:
        if self._random.random() >= self._own.fail_rate:
            return
        body = msgspec.json.encode(
            {"error": {"message": self._own.fail_message, "type": "scripted", "param": None, "code": None}}
        )
        wait = [] if self._own.retry_after is None else [("retry-after", f"{self._own.retry_after:g}")]
        raise refusal(self._own.fail_status, wait, body, now=0.0, who="The script")

    async def _whole(self, answer: _Answer) -> ModelReply:
        if self._own.hang_after is not None:
            await asyncio.Event().wait()
        await _wait(self._own.first_ms + self._own.token_ms * max(0, answer.spoken - 1))
        if self._own.cut_after is not None:
            raise _cut(started=False)
        if self._own.garbage:
            raise UpstreamError("The script sent garbage.", code="bad_upstream_response", upstream_status=200, body=b"<html>")
        return ModelReply(200, answer.whole(), upstream_id=answer.id)

    async def _stream(self, answer: _Answer, sink: Sink) -> ModelReply:
        sent = 0
        due = self._own.first_ms
        for frame, content in answer.frames():
            if content:
                await self._before_content(sent)
                await _wait(due)
                due = self._own.token_ms
            sink(frame)
            sent += content
        return ModelReply(200, upstream_id=answer.id)

    async def _before_content(self, sent: int) -> None:
        """What goes wrong after `sent` content frames, if anything does here."""
        if sent == self._own.hang_after:
            await asyncio.Event().wait()
        if sent == self._own.cut_after:
            raise _cut(started=sent > 0)
        if self._own.garbage:
            raise UpstreamError("The script sent garbage.", code="bad_upstream_response", upstream_status=200, started=sent > 0)

    def _embed(self, body: dict[str, msgspec.Raw]) -> bytes:
        raw = body["input"]
        texts = read_texts(raw, "input") or (bytes(raw).decode(),)
        as_base64 = bytes(body.get("encoding_format", b"")) == b'"base64"'
        vectors = [_vector(text, self._own.dimensions) for text in texts]
        return write_embeddings(vectors, self._model, sum(len(_TOKEN.findall(t)) for t in texts), as_base64=as_base64)


class _Answer:
    """One answer of the script: which texts, in which frames."""

    def __init__(self, own: Scripted.Config, model: str, number: int, call: ModelCall) -> None:
        self._own = own
        self._chat = call.kind == "chat"
        self._model = model
        self._head: Head = read_head(call.kind, {"model": msgspec.Raw(b'"-"')} | call.body)
        prompt, self._prompt_tokens = _prompt(call)
        self.id = f"{'chatcmpl' if self._chat else 'cmpl'}-scripted-{own.seed}-{number}"
        wish = msgspec.json.decode(bytes(call.body.get("stop", b"null")))
        stops = [wish] if isinstance(wish, str) else wish or []
        self._logprobs = own.logprobs and bytes(call.body.get("logprobs", b"null")) not in (b"null", b"false", b"0")
        text = _say(own, prompt, number)
        self._choices = [_finish(text, stops, self._head.max_tokens) for _ in range(self._head.n)]

    @property
    def spoken(self) -> int:
        """Tokens of the longest choice."""
        return max(len(pieces) for pieces, _ in self._choices)

    def whole(self) -> bytes:
        """The answer in one piece."""
        choices = [self._choice(i, pieces, reason) for i, (pieces, reason) in enumerate(self._choices)]
        top = self._top("chat.completion" if self._chat else "text_completion") | {"choices": choices}
        return msgspec.json.encode(top | ({"usage": self._usage()} if self._own.usage else {}))

    def frames(self) -> Iterator[tuple[bytes, bool]]:
        """(frame, whether it is content) of the stream; the choices take turns token by token."""
        if self._chat:
            for i in range(len(self._choices)):
                yield self._frame(i, {"role": "assistant", "content": None if self._own.tool else ""}), False
        if self._own.tool is not None and self._chat:
            yield from self._tool_frames(self._own.tool)
        else:
            for at in range(self.spoken):
                for i, (pieces, _) in enumerate(self._choices):
                    if at < len(pieces):
                        yield self._text_frame(i, pieces[at]), True
        for i, (_, reason) in enumerate(self._choices):
            yield self._frame(i, {} if self._chat else "", self._reason(reason)), False
        if self._own.usage:
            yield self._encode([], {"usage": self._usage()}), False
        yield DONE, False

    def _tool_frames(self, tool: ToolCall) -> Iterator[tuple[bytes, bool]]:
        for i in range(len(self._choices)):
            call = {"index": 0, "id": f"call_{i}", "type": "function", "function": {"name": tool.name, "arguments": ""}}
            yield self._frame(i, {"tool_calls": [call]}), True
            for at in range(0, len(tool.arguments), 8):
                piece = {"index": 0, "function": {"arguments": tool.arguments[at : at + 8]}}
                yield self._frame(i, {"tool_calls": [piece]}), True

    def _text_frame(self, index: int, text: str) -> bytes:
        logprobs = _logprobs([text], chat=self._chat) if self._logprobs else None
        return self._frame(index, {"content": text} if self._chat else text, logprobs=logprobs)

    def _frame(self, index: int, said: Any, reason: str | None = None, *, logprobs: Any = None) -> bytes:
        said = {"delta": said} if self._chat else {"text": said}
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}
        return self._encode([choice], {"usage": None} if self._own.usage else {})

    def _encode(self, choices: list[Any], more: dict[str, Any]) -> bytes:
        top = self._top("chat.completion.chunk" if self._chat else "text_completion")
        return frame_of(msgspec.json.encode(top | {"choices": choices} | more))

    def _choice(self, index: int, pieces: list[str], reason: str) -> dict[str, Any]:
        logprobs = _logprobs(pieces, chat=self._chat) if self._logprobs else None
        choice: dict[str, Any] = {"index": index}
        if not self._chat:
            choice["text"] = "".join(pieces)
        elif self._own.tool is not None:
            function = {"name": self._own.tool.name, "arguments": self._own.tool.arguments}
            call = {"id": f"call_{index}", "type": "function", "function": function}
            choice["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
        else:
            choice["message"] = {"role": "assistant", "content": "".join(pieces), "refusal": None}
        return choice | {"logprobs": logprobs, "finish_reason": self._reason(reason)}

    def _reason(self, reason: str) -> str:
        return "tool_calls" if self._own.tool is not None and self._chat else reason

    def _top(self, object: str) -> dict[str, Any]:
        return {"id": self.id, "object": object, "created": _CREATED, "model": self._model}

    def _usage(self) -> dict[str, int]:
        if self._own.tool is not None and self._chat:
            output = len(self._choices) * math.ceil(len(self._own.tool.arguments) / 4)
        else:
            output = sum(len(pieces) for pieces, _ in self._choices)
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": output, "total_tokens": self._prompt_tokens + output}


def _prompt(call: ModelCall) -> tuple[str, int]:
    """(last user message, tokens of the whole prompt)."""
    if call.kind == "completion":
        texts = read_texts(call.body["prompt"], "prompt") or ("",)
        return texts[-1], sum(len(_TOKEN.findall(text)) for text in texts)
    messages = read_messages(call.body["messages"])
    last = next((m.text for m in reversed(messages) if m.role == "user"), "")
    return last, sum(len(_TOKEN.findall(m.text)) for m in messages)


def _say(own: Scripted.Config, prompt: str, number: int) -> str:
    if own.tokens is not None:
        return " ".join(_WORDS[i % len(_WORDS)] for i in range(own.tokens))
    if isinstance(own.reply, dict):
        found = next((text for key, text in own.reply.items() if key != "*" and key in prompt), None)
        return found if found is not None else own.reply.get("*", prompt)
    if isinstance(own.reply, list):
        return own.reply[number % len(own.reply)] if own.reply else prompt
    return own.reply or prompt


def _finish(text: str, stops: list[str], limit: int | None) -> tuple[list[str], Literal["stop", "length"]]:
    """(tokens, finish_reason) after the stop sequences and the output limit."""
    ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    pieces = _PIECE.findall(text[: min(ends)] if ends else text)
    if limit is not None and len(pieces) > limit:
        return pieces[:limit], "length"
    return pieces, "stop"


def _logprobs(pieces: list[str], *, chat: bool) -> dict[str, Any]:
    if not chat:
        offsets = list(accumulate(map(len, pieces[:-1]), initial=0))
        return {"tokens": pieces, "token_logprobs": [-0.1] * len(pieces), "top_logprobs": None, "text_offset": offsets}
    return {
        "content": [{"token": p, "logprob": -0.1, "bytes": list(p.encode()), "top_logprobs": []} for p in pieces],
        "refusal": None,
    }


def _vector(text: str, dimensions: int) -> list[float]:
    source = random.Random(text)  # noqa: S311  the text is the seed
    values = [source.gauss(0.0, 1.0) for _ in range(dimensions)]
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / length for value in values]


def _cut(*, started: bool) -> UpstreamError:
    return UpstreamError("The script broke off the connection.", code="upstream_cut", started=started)


async def _wait(milliseconds: float) -> None:
    if milliseconds > 0:
        await asyncio.sleep(milliseconds / 1000)
