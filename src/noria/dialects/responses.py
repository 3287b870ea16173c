"""OpenAI's Responses API, answers: the Response object for a chat completion.

What a Response says of its request (tools, temperature, metadata, …) is the caller's own JSON, verbatim. Ids are made
from the exchange's id, so a Response can be asked for again and its items can be referenced.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from noria.contracts.exchange import Usage
from noria.dialects.openai_answer import read_usage
from noria.dialects.responses_items import Fields, item_id, seal

Status = Literal["in_progress", "completed", "incomplete", "failed"]
Raws = dict[str, msgspec.Raw]

WITHOUT_END = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""`finish_reason` → why a Response is incomplete."""
_ECHOED: Fields = {
    "instructions": None, "metadata": {}, "parallel_tool_calls": True, "temperature": None, "tool_choice": "auto", "tools": [],
    "top_p": None, "background": False, "max_output_tokens": None, "max_tool_calls": None, "previous_response_id": None,
    "prompt_cache_key": None, "safety_identifier": None, "service_tier": None, "top_logprobs": 0, "truncation": "disabled",
    "user": None,
}  # fmt: skip
"""Fields of the request that a Response repeats, with what stands there where the request says nothing."""
_CODES = {"rate_limit_exceeded"}
"""Of the codes that a Response may fail with, those that are ours too; everything else is a `server_error`."""


def response_id(exchange: str) -> str:
    """The id of an exchange's Response.

    >>> response_id("01998a3c-0000-7000-8000-000000000000")
    'resp_01998a3c000070008000000000000000'
    """
    return "resp_" + digits_of(exchange)


def digits_of(exchange: str) -> str:
    """The 32 hex digits of an exchange's id."""
    return exchange.replace("-", "")


class Shape:
    """The Response object of one exchange, but for what the model says."""

    def __init__(self, native: Raws, exchange: str, created_s: int) -> None:
        self.digits = digits_of(exchange)
        self.stored = bytes(native.get("store", b"")) != b"false"
        include = bytes(native.get("include", b""))
        self.sealed = b"reasoning.encrypted_content" in include
        """Whether reasoning is given in the form that can be sent back."""
        self._created = created_s
        conversation = _decoded(native, "conversation")
        self._model = native.get("model")
        self._echo: Fields = {name: _one_line(native[name]) if _given(native, name) else v for name, v in _ECHOED.items()}
        self._echo |= {
            "text": {"format": {"type": "text"}} | (_decoded(native, "text") or {}),
            "reasoning": {"effort": None, "summary": None} | (_decoded(native, "reasoning") or {}),
            "conversation": {"id": conversation} if isinstance(conversation, str) else conversation,
        }

    def write(
        self, status: Status, output: list[Fields], *, model: Any = None, usage: Usage | None = None, reason: str = "",
        error: Fields | None = None, tier: Any = None, ended_s: int | None = None,
    ) -> Fields:  # fmt: skip
        """The Response. `reason` is why it is incomplete, `error` why it failed."""
        return {
            "id": "resp_" + self.digits,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "completed_at": ended_s if status == "completed" else None,
            "error": error,
            "incomplete_details": {"reason": reason} if reason else None,
            "model": model if isinstance(model, str) and model else self._model,
            "output": output,
            **self._echo,
            **({} if tier is None else {"service_tier": tier}),
            "store": self.stored,
            "usage": None if usage is None else write_usage(usage),
        }

    def id(self, prefix: str, number: int = 0) -> str:
        """The id of an item."""
        return item_id(prefix, self.digits, number)


def write_response(chat: Fields, shape: Shape, ended_s: int | None = None) -> Fields:
    """The Response for a chat completion (decoded); a field of an odd type is taken as absent."""
    choices = chat.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice["message"] if isinstance(choice.get("message"), dict) else {}
    reason = WITHOUT_END.get(str(choice.get("finish_reason")), "")
    output = _output(message, choice.get("logprobs"), "incomplete" if reason else "completed", shape)
    return shape.write(
        "incomplete" if reason else "completed",
        output,
        model=chat.get("model"),
        usage=read_usage(msgspec.json.encode(chat["usage"])) if chat.get("usage") else None,
        reason=reason,
        tier=chat.get("service_tier"),
        ended_s=ended_s,
    )


def write_usage(usage: Usage) -> Fields:
    """Usage as a Response has it; counts that are not known are 0 only beside one that is."""
    read, written = usage.input or 0, usage.output or 0
    return {
        "input_tokens": read,
        "input_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.cache_write + usage.cache_write_long,
        },
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": read + written,
    }


def write_failure(error: Fields) -> Fields:
    """The `error` of a failed Response, for an error in OpenAI's shape."""
    code = error.get("code")
    return {"code": code if code in _CODES else "server_error", "message": str(error.get("message") or "The answer failed.")}


def reasoning_item(id: str, text: str, blocks: list[Any], status: str, *, sealed: bool) -> Fields:
    """A reasoning item: the model's own words, not a summary of them."""
    content = [{"type": "reasoning_text", "text": text}] if text else []
    made: Fields = {"id": id, "type": "reasoning", "summary": [], "content": content, "status": status}
    return made | ({"encrypted_content": seal(blocks) if blocks else None} if sealed else {})


def message_item(id: str, content: list[Fields], status: str) -> Fields:
    """A message of the assistant."""
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": content}


def text_part(text: str, logprobs: Any = None, annotations: Any = None) -> Fields:
    """The text of a message. `logprobs` and `annotations` are as chat has them."""
    tokens = logprobs if isinstance(logprobs, list) else []
    notes = [flat(note) for note in annotations] if isinstance(annotations, list) else []
    return {"type": "output_text", "text": text, "annotations": notes, "logprobs": tokens}


def call_item(id: str, call_id: str, name: str, arguments: str, status: str) -> Fields:
    """A function call."""
    made = {"id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name}
    return made | {"arguments": arguments}


def flat(note: Any) -> Any:
    """An annotation: chat nests it under its type."""
    kind = note.get("type") if isinstance(note, dict) else None
    return {"type": kind, **note[kind]} if isinstance(kind, str) and isinstance(note.get(kind), dict) else note


def texts_in(content: Any) -> tuple[str, str]:
    """(text, reasoning) of a message's content: a string, or parts (Mistral)."""
    if isinstance(content, str):
        return content, ""
    text, thought = "", ""
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict):
            text += part["text"] if isinstance(part.get("text"), str) else ""
            thought += texts_in(part["thinking"])[0] if isinstance(part.get("thinking"), list) else ""
    return text, thought


def _output(message: Fields, logprobs: Any, status: str, shape: Shape) -> list[Fields]:
    text, thought = texts_in(message.get("content"))
    thought = next((message[k] for k in ("reasoning_content", "reasoning") if isinstance(message.get(k), str)), "") or thought
    blocks = message.get("thinking_blocks")
    blocks = blocks if isinstance(blocks, list) else []
    output = []
    if thought or blocks:
        output.append(reasoning_item(shape.id("rs"), thought, blocks, status, sealed=shape.sealed))
    content = []
    if text:
        tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
        content.append(text_part(text, tokens, message.get("annotations")))
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        content.append({"type": "refusal", "refusal": message["refusal"]})
    calls = [c for c in message.get("tool_calls") or () if isinstance(c, dict)]
    if content or not (calls or output):
        output.append(message_item(shape.id("msg"), content or [text_part("")], status))
    for n, call in enumerate(calls):
        function = call["function"] if isinstance(call.get("function"), dict) else {}
        named = (
            str(call.get("id") or shape.id("call", n)),
            str(function.get("name") or ""),
            str(function.get("arguments") or ""),
        )
        output.append(call_item(shape.id("fc", n), *named, status))
    return output


def _given(native: Raws, name: str) -> bool:
    return name in native and bytes(native[name]) != b"null"


def _one_line(raw: msgspec.Raw) -> msgspec.Raw:
    """The JSON without line ends between its values: it goes into an event, which they would cut."""
    data = bytes(raw)
    return msgspec.Raw(msgspec.json.format(data, indent=-1)) if b"\n" in data or b"\r" in data else raw


def _decoded(native: Raws, name: str) -> Any:
    return msgspec.json.decode(native[name]) if name in native else None
