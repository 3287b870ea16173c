"""OpenAI's wire form, whole answers: the facts that are recorded, edits of their text, embeddings, model lists.

Reading is lenient, because look-alike vendors bend the format: a field of an odd type is taken as absent,
only what is no answer at all is refused. Editing replaces text and leaves every other value verbatim.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from noria.contracts.exchange import Answer, Kind, Usage
from noria.contracts.stage import Channel

Edit = Callable[[int, Channel, str], str]
"""(choice, channel, whole text) → the text that leaves."""

Fields = dict[str, Any]
"""One JSON object; values are `Raw` until they are replaced."""

FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FIELDS_LIST = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_answer(kind: Kind, body: bytes) -> Answer:
    """The facts of a whole answer. Raises ValueError on what is none (no JSON object, no choices, no data)."""
    if kind != "embedding":
        try:
            whole = _WHOLE.decode(body)
        except _GARBAGE:
            return _read_odd(kind, body)  # a field of an odd type, or no answer at all
        if whole.choices:
            first = whole.choices[0] if len(whole.choices) == 1 else min(whole.choices, key=lambda c: c.index)
            usage = None if whole.usage is None else at_tier(_counts(whole.usage), whole.service_tier)
            return Answer(whole.id or "", whole.model or "", first.finish_reason or "", usage)
    return _read_odd(kind, body)


def _read_odd(kind: Kind, body: bytes) -> Answer:
    try:
        fields = FIELDS.decode(body)
        if kind == "embedding":
            msgspec.json.decode(fields.get("data", b""), type=list[msgspec.Raw])
            choices = []
        else:
            choices = _FIELDS_LIST.decode(fields.get("choices", b""))
    except _GARBAGE as e:
        raise ValueError(f"not an answer in OpenAI's form: {e}") from None
    if kind != "embedding" and not choices:
        raise ValueError("not an answer in OpenAI's form: it has no choices")
    choices.sort(key=lambda choice: integer(choice.get("index")))
    return Answer(
        string(fields.get("id")),
        string(fields.get("model")),
        string(choices[0].get("finish_reason")) if choices else "",
        at_tier(read_usage(fields.get("usage")), string(fields.get("service_tier"))),
    )


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    """Ours: how much of `cache_write_tokens` is kept for an hour (`dialects.anthropic.usage_of`)."""
    cached_audio_tokens: int | None = None
    """Ours: how much of `cached_tokens` is audio (`dialects.gemini.usage_of`)."""


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _ToolUse(msgspec.Struct):
    web_search_requests: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    """DeepSeek's word for cached tokens."""
    cached_tokens: int | None = None
    """Moonshot's."""
    reasoning_tokens: int | None = None
    """Perplexity's: of its research models, not part of `completion_tokens`."""
    citation_tokens: int | None = None
    num_search_queries: int | None = None
    """Perplexity's: both billed apart."""
    num_sources_used: int | None = None
    """xAI's: billed apart."""
    server_tool_use: _ToolUse | None = None
    """Anthropic's and OpenRouter's word for what the provider ran."""
    billed_apart: int | None = None
    """Ours: `Usage.apart`."""


_USAGE = msgspec.json.Decoder(_Usage | None)


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Whole(msgspec.Struct):
    """An answer as it should be, decoded at once: what has an odd field is read piece by piece."""

    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    service_tier: str | None = None


_WHOLE = msgspec.json.Decoder(_Whole)


def read_usage(raw: bytes | msgspec.Raw | None) -> Usage | None:
    """Token counts in OpenAI's sense, or None where there are none that can be read.

    Where the total exceeds prompt and completion, the rest is reasoning that the vendor left out of
    `completion_tokens` though it is billed as output (xAI, Gemini's compatible endpoint).
    """
    if not raw:
        return None
    try:
        usage = _USAGE.decode(raw)
    except _GARBAGE:
        return None
    return _counts(usage) if usage is not None else None


ORDINARY = frozenset({"", "auto", "default", "standard", "on_demand"})
"""Service tiers at the price that prices state."""


def at_tier(usage: Usage | None, tier: Any) -> Usage | None:
    """The counts of an answer of a service tier: at another than the ordinary one tokens have another price."""
    if usage is None or not isinstance(tier, str) or tier in ORDINARY:
        return usage
    return msgspec.structs.replace(usage, apart=usage.apart + 1)


def _counts(usage: _Usage) -> Usage | None:
    made = _tokens(usage)
    if made is None:
        return None
    ran = usage.server_tool_use
    searches = (ran and ran.web_search_requests) or usage.num_search_queries or 0
    apart = (usage.billed_apart or 0) + bool(usage.citation_tokens) + bool(usage.num_sources_used)
    return msgspec.structs.replace(made, searches=searches, apart=apart) if searches or apart else made


def _tokens(usage: _Usage) -> Usage | None:
    if usage.prompt_tokens is None and usage.completion_tokens is None:
        return None
    details, spent = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = (details and details.cached_tokens) or usage.prompt_cache_hit_tokens or usage.cached_tokens or 0
    reasoning = (spent and spent.reasoning_tokens) or 0
    output = usage.completion_tokens
    if usage.total_tokens is not None and usage.prompt_tokens is not None:
        hidden = usage.total_tokens - usage.prompt_tokens - (output or 0)
        if output is None:
            output = max(hidden, 0)
        elif hidden > 0:
            output, reasoning = output + hidden, max(reasoning, hidden)
    if (beside := usage.reasoning_tokens or 0) > (output or 0):
        output, reasoning = (output or 0) + beside, beside
    if details is None and spent is None:
        return Usage(usage.prompt_tokens, output, cached, reasoning)
    written, long = (details and details.cache_write_tokens) or 0, (details and details.cache_write_1h_tokens) or 0
    return Usage(
        usage.prompt_tokens,
        output,
        cached,
        reasoning,
        cache_write=max(0, written - long),
        cache_write_long=min(long, written),
        audio_input=(details and details.audio_tokens) or 0,
        audio_output=(spent and spent.audio_tokens) or 0,
        image_input=(details and details.image_tokens) or 0,
        cached_audio=(details and details.cached_audio_tokens) or 0,
        image_output=(spent and spent.image_tokens) or 0,
    )


def edit_answer(body: bytes, edit: Edit) -> bytes:
    """The answer with `edit` applied to each (choice, channel) that has text.

    Without a change the very bytes come back; with one, every other value is verbatim, and `logprobs`
    of an edited choice are null, for they spell the text out. Raises ValueError on what is no answer.
    """
    try:
        fields: Fields = dict(FIELDS.decode(body))
        choices = _FIELDS_LIST.decode(fields.get("choices", b"null")) if "choices" in fields else []
        changed = [_edit_choice(choice, edit) for choice in choices]
    except _GARBAGE as e:
        raise ValueError(f"not an answer in OpenAI's form: {e}") from None
    if not any(changed):
        return body
    fields["choices"] = choices
    return msgspec.json.encode(fields)


def _edit_choice(choice: Fields, edit: Edit) -> bool:
    index = integer(choice.get("index"))
    message = choice if "message" not in choice else object_of(choice["message"])
    changed = edit_texts(message, lambda channel, text: edit(index, channel, text))
    if not changed:
        return False
    if message is not choice:
        choice["message"] = message
    if changed & SPELLED:
        hide_logprobs(choice)
    return True


SPELLED: frozenset[Channel] = frozenset({"content", "refusal"})
"""The channels that `logprobs` spell out."""

_REASONING = ("reasoning_content", "reasoning")
_ECHOES = ("reasoning_details", "thinking_blocks")
"""Vendors' second copies of the reasoning; they go when the reasoning is edited."""


def edit_texts(message: Fields, edit: Callable[[Channel, str], str]) -> set[Channel]:
    """Edit the texts of one message, delta or legacy choice in place; the channels that changed come back.

    An empty text is no text: it is neither shown to `edit` nor changed.
    """
    changed: set[Channel] = set()
    for key, channel in (("content", "content"), ("text", "content"), ("refusal", "refusal")):
        if key in message and _edit_text(message, (key,), lambda text, c=channel: edit(c, text)):  # type: ignore[misc]  # c binds the loop's value
            changed.add(channel)
    if any(key in message for key in _REASONING) and _edit_text(message, _REASONING, lambda text: edit("reasoning", text)):
        changed.add("reasoning")
        hide_reasoning_echoes(message)
    if _edit_thinking_parts(message, lambda text: edit("reasoning", text)):
        changed.add("reasoning")
    if "tool_calls" in message:
        changed |= _edit_tool_calls(message, edit)
    if "function_call" in message and _edit_inside(message, "function_call", "arguments", lambda text: edit("tool.0", text)):
        changed.add("tool.0")
    return changed


def hide_reasoning_echoes(message: Fields) -> None:
    """Leave out second copies of the reasoning."""
    for key in _ECHOES:
        message.pop(key, None)


def hide_logprobs(choice: Fields) -> None:
    """Null the log probabilities, where there are any."""
    if "logprobs" in choice:
        choice["logprobs"] = None


def _edit_text(message: Fields, keys: tuple[str, ...], edit: Callable[[str], str]) -> bool:
    """Edit the text that one or more keys hold. Vendors in transition send the same text under two."""
    raws = {key: bytes(message[key]) for key in keys if key in message}
    if any(raw.startswith(b"[") for raw in raws.values()):
        return sum(_edit_parts(message, key, edit) for key in raws) > 0  # all of them, not the first that changes
    texts = {key: msgspec.json.decode(raw, type=str) for key, raw in raws.items() if raw.startswith(b'"') and raw != b'""'}
    if not texts:
        return False
    same = len(set(texts.values())) == 1
    before = next(iter(texts.values())) if same else "".join(texts.values())
    after = edit(before)
    if after == before:
        return False
    for i, key in enumerate(texts):
        message[key] = after if same or i == 0 else ""
    return True


def _edit_parts(message: Fields, key: str, edit: Callable[[str], str]) -> bool:
    """Content as a list of parts (Mistral): their text is one text; an edit puts it into the first."""
    parts: list[Fields] = [dict(part) for part in _FIELDS_LIST.decode(message[key])]
    holders = [part for part in parts if bytes(part.get("text", b"")).startswith(b'"')]
    before = "".join(msgspec.json.decode(part["text"], type=str) for part in holders)
    if not before or (after := edit(before)) == before:
        return False
    for i, part in enumerate(holders):
        part["text"] = after if i == 0 else ""
    message[key] = parts
    return True


def _edit_thinking_parts(message: Fields, edit: Callable[[str], str]) -> bool:
    """Reasoning inside the content: parts of type `thinking` that hold parts of text (Mistral)."""
    content = message.get("content")
    if isinstance(content, list):  # edited a moment ago
        parts: list[Fields] = content
    elif isinstance(content, msgspec.Raw) and bytes(content).startswith(b"[") and b'"thinking"' in bytes(content):
        parts = [dict(part) for part in _FIELDS_LIST.decode(content)]
    else:
        return False
    thoughts = [part for part in parts if bytes(part.get("thinking", b"")).startswith(b"[")]
    if sum(_edit_parts(part, "thinking", edit) for part in thoughts) == 0:
        return False
    message["content"] = parts
    return True


def _edit_tool_calls(message: Fields, edit: Callable[[Channel, str], str]) -> set[Channel]:
    raw = bytes(message["tool_calls"])
    if not raw.startswith(b"["):
        return set()
    calls: list[Fields] = [dict(call) for call in _FIELDS_LIST.decode(raw)]
    changed: set[Channel] = set()
    for i, call in enumerate(calls):
        index = integer(call.get("index"), i)
        for key, inner, channel in (("function", "arguments", f"tool.{index}"), ("custom", "input", f"custom.{index}")):
            if key in call and _edit_inside(call, key, inner, lambda text, c=channel: edit(c, text)):  # type: ignore[misc]  # c binds the loop's value
                changed.add(channel)
    if changed:
        message["tool_calls"] = calls
    return changed


def _edit_inside(outer: Fields, key: str, inner: str, edit: Callable[[str], str]) -> bool:
    if not bytes(outer[key]).startswith(b"{"):
        return False
    fields = object_of(outer[key])
    if inner not in fields or not _edit_text(fields, (inner,), edit):
        return False
    outer[key] = fields
    return True


def object_of(raw: Any) -> Fields:
    """A JSON object with verbatim values; an empty one for null."""
    return {} if bytes(raw) == b"null" else dict(FIELDS.decode(raw))


def string(raw: Any) -> str:
    """The string that `raw` is, or an empty one."""
    data = bytes(raw or b"")
    return msgspec.json.decode(data, type=str) if data.startswith(b'"') else ""


def integer(raw: Any, default: int = 0) -> int:
    """The integer that `raw` is, or `default`."""
    data = bytes(raw or b"")
    return int(data) if data.isdigit() else default


def read_text(body: bytes) -> str:
    """The content of the first choice of a whole answer; empty where there is none. Raises ValueError on what is no answer."""
    texts: dict[int, list[str]] = {}

    def take(index: int, channel: Channel, text: str) -> str:
        if channel == "content":
            texts.setdefault(index, []).append(text)
        return text

    edit_answer(body, take)
    return "".join(texts[min(texts)]) if texts else ""


def encode_vector(vector: Iterable[float]) -> str:
    """An embedding as OpenAI's `encoding_format: base64`: float32, little-endian."""
    return base64.b64encode(_little_endian(array("f", vector)).tobytes()).decode("ascii")


def decode_vector(text: str) -> list[float]:
    """The numbers of a base64 embedding. Raises ValueError on what is none."""
    vector = array("f")
    try:
        vector.frombytes(base64.b64decode(text, validate=True))
    except ValueError as e:
        raise ValueError(f"not a base64 embedding: {e}") from None
    return _little_endian(vector).tolist()


def _little_endian(vector: array[float]) -> array[float]:
    if sys.byteorder == "big":
        vector.byteswap()
    return vector


def write_embeddings(vectors: Iterable[Iterable[float]], model: str, input_tokens: int, *, as_base64: bool = False) -> bytes:
    """The body of an embeddings answer."""
    data = [
        {"object": "embedding", "index": i, "embedding": encode_vector(vector) if as_base64 else list(vector)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": input_tokens, "total_tokens": input_tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def write_model(id: str, created: int, owned_by: str = "noria") -> bytes:
    """One model as `GET /v1/models/{id}` gives it; `created` in Unix seconds."""
    return msgspec.json.encode(_model(id, created, owned_by))


def write_models(models: Iterable[tuple[str, int]], owned_by: str = "noria") -> bytes:
    """The list of `GET /v1/models` from (id, created) pairs."""
    return msgspec.json.encode({"object": "list", "data": [_model(*model, owned_by) for model in models]})


def _model(id: str, created: int, owned_by: str) -> dict[str, str | int]:
    return {"id": id, "object": "model", "created": created, "owned_by": owned_by}
