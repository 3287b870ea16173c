"""Chat form that came of another protocol, for an endpoint that knows nothing of that protocol.

The extension fields that ingress left (`noria.dialects.anthropic_request`, `noria.dialects.gemini_request`) are taken
out: what changes the answer is refused, what makes it cheaper or prettier goes with a warning that is recorded.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec

from noria.contracts.error import RequestError

Fields = dict[str, Any]
Raws = dict[str, msgspec.Raw]

_EXTENSIONS = ("anthropic", "gemini")
_MARKED = re.compile(
    rb'"(?:anthropic|gemini|cache_control|thinking_blocks|is_error|extra_content)"|"type":"text"|"role":"tool"'
)
"""What must be somewhere in messages or tools that need a change: most have none of it."""
_LONGEST_USER = 64
"""Characters of `user` that OpenAI takes; Claude Code's are longer."""
_EFFORTS = ((2048, "low"), (8192, "medium"))
"""Thinking budgets up to so many tokens, and the effort that stands for them; above: high."""

_REFUSED = {
    "container": "it names a container of another provider",
    "cachedContent": "what it holds is at another provider",
    "inference_geo": "only its own provider can promise where it computes",
}
"""Left-over fields on which the answer depends."""
_HARMLESS = {
    "cache_control": "prompt caching is left to the endpoint",
    "speed": "the endpoint has one speed",
    "diagnostics": "the endpoint gives no such diagnostics",
    "context_management": "the endpoint edits no context",
    "safetySettings": "the endpoint has its own safety settings",
    "labels": "the endpoint takes no labels",
}
"""Left-over fields whose loss is worth a warning and no more."""


def lower(body: Raws, subject: str, understood: Collection[str] = ()) -> tuple[Raws, tuple[str, ...]]:
    """The body in plain chat form and a sentence for each thing that was lost. `subject` is the caller's keyed hash.

    Fields in `understood` stay. Raises `RequestError` (`unsupported_feature`) for what the answer depends on.
    """
    lost: dict[str, None] = {}
    body = dict(body)
    for extension in _EXTENSIONS:
        raw = body.pop(extension, None)
        for name, value in (msgspec.json.decode(raw, type=Raws) if raw is not None else {}).items():
            if bytes(value) != b"{}":  # a `metadata` of nothing but the user's id, which is `user`
                _lose(name, lost)
    for name in ("cache_control", "inference_geo", "speed"):
        if name in body:
            del body[name]
            _lose(name, lost)
    _effort(body, understood, lost)
    if "top_k" in body and "top_k" not in understood:
        del body["top_k"]
        lost["'top_k' was left out: the endpoint does not know it."] = None
    if bytes(body.get("service_tier", b"")) == b'"standard_only"':
        body["service_tier"] = msgspec.Raw(b'"default"')
    _user(body, subject)
    if "messages" in body and _MARKED.search(bytes(body["messages"])):
        body["messages"] = msgspec.Raw(msgspec.json.encode(_messages(msgspec.json.decode(body["messages"]), lost)))
    if "tools" in body and _MARKED.search(bytes(body["tools"])):
        body["tools"] = msgspec.Raw(msgspec.json.encode(_tools(msgspec.json.decode(body["tools"]), lost)))
    return body, tuple(lost)


def unsupported(what: str, why: str) -> RequestError:
    """A feature of the caller's protocol that the endpoint cannot give."""
    return RequestError(
        f"The endpoint of this app cannot do '{what}': {why}.",
        code="unsupported_feature",
        param=what,
        hint="Leave it out, or use an app whose model speaks this protocol itself.",
    )


def _lose(name: str, lost: dict[str, None]) -> None:
    if name in _REFUSED:
        raise unsupported(name, _REFUSED[name])
    lost[f"'{name}' was left out: {_HARMLESS.get(name, 'it has no counterpart')}."] = None


def _effort(body: Raws, understood: Collection[str], lost: dict[str, None]) -> None:
    """`thinking` in OpenAI's word, `reasoning_effort`."""
    if bytes(body.get("reasoning_effort", b"")) == b'"max"':
        body["reasoning_effort"] = msgspec.Raw(b'"xhigh"')
    raw = body.get("thinking")
    if raw is None or "thinking" in understood:
        return
    del body["thinking"]
    thinking = msgspec.json.decode(raw)
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if kind == "enabled" and "reasoning_effort" not in body:
        budget = thinking.get("budget_tokens")
        effort = next((e for most, e in _EFFORTS if isinstance(budget, int) and budget <= most), "high")
        body["reasoning_effort"] = msgspec.Raw(msgspec.json.encode(effort))
        lost[f"A thinking budget of {budget} tokens became reasoning_effort={effort}."] = None
    elif kind != "adaptive" or "reasoning_effort" not in body:
        lost[f"'thinking' of type {kind!r} was left out: the endpoint decides by itself."] = None


def _user(body: Raws, subject: str) -> None:
    raw = body.get("user")
    if raw is not None and len(raw) > _LONGEST_USER + 2:
        body["user"] = msgspec.Raw(msgspec.json.encode(subject[:_LONGEST_USER]))


def _messages(messages: Any, lost: dict[str, None]) -> list[Fields]:
    made: list[Fields] = []
    pictures: list[Fields] = []
    for message in messages:
        if pictures and message.get("role") != "tool":
            made.append({"role": "user", "content": pictures})
            pictures = []
        made.append(_message(message, pictures, lost))
    if pictures:
        made.append({"role": "user", "content": pictures})
    return made


def _message(message: Fields, pictures: list[Fields], lost: dict[str, None]) -> Fields:
    message = dict(message)
    if message.pop("thinking_blocks", None):
        lost["Earlier thinking was left out: its signatures are good at its own provider only."] = None
    if message.pop("is_error", None):
        lost["'is_error' of a tool result was left out; its text is kept."] = None
    _unmark(message, lost)
    message.pop("anthropic", None)  # the order of its blocks; they themselves are all here
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [_call(call, lost) for call in message["tool_calls"]]
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [made for part in content if (made := _part(part, lost)) is not None]
    if message.get("role") == "tool" and any(p.get("type") != "text" for p in parts):
        lost["Images of a tool result follow it in a message of the user's."] = None
        pictures += [p for p in parts if p.get("type") != "text"]
        parts = [p for p in parts if p.get("type") == "text"]
    if all(p.get("type") == "text" for p in parts):
        joint = "" if message.get("role") == "assistant" else "\n\n"
        message["content"] = joint.join(p.get("text") or "" for p in parts) or (None if message.get("tool_calls") else "")
    else:
        message["content"] = parts
    return message


def _call(call: Fields, lost: dict[str, None]) -> Fields:
    call = dict(call)
    _unmark(call, lost)
    if call.pop("extra_content", None):
        lost["Thought signatures were left out: they are good at their own provider only."] = None
    call.pop("anthropic", None)
    return call


def _part(part: Any, lost: dict[str, None]) -> Fields | None:
    if not isinstance(part, dict):
        return {"type": "text", "text": part} if isinstance(part, str) else {}  # the endpoint will say what it thinks of it
    made: Fields = dict(part)
    _unmark(made, lost)
    made.pop("extra_content", None)
    for extension in _EXTENSIONS:
        block = made.pop(extension, None)
        if block is None:
            continue
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            lost["The citations of a text were left out."] = None
        elif made.get("text"):
            lost[f"A block of type {kind!r} was sent as its text."] = None
        elif kind is not None and (kind == "server_tool_use" or kind.endswith("_tool_result")):
            lost[f"A block of type {kind!r} was left out: it belongs to a tool of another provider."] = None
            return None
        else:
            raise unsupported(str(kind), "it has no counterpart")
    return made


def _tools(tools: Any, lost: dict[str, None]) -> list[Fields]:
    made = []
    for tool in tools:
        if not isinstance(tool, dict):
            raise unsupported("tools", "a tool is an object")
        if tool.get("type") in _EXTENSIONS:
            raise unsupported(str((tool.get(tool["type"]) or {}).get("type") or "tools"), "it is a tool of another provider")
        kept = dict(tool)
        _unmark(kept, lost)
        for name in kept.pop("anthropic", None) or ():
            lost[f"'{name}' of a tool was left out: it has no counterpart."] = None
        made.append(kept)
    return made


def _unmark(holder: Fields, lost: dict[str, None]) -> None:
    if holder.pop("cache_control", None) is not None:
        lost[f"'cache_control' was left out: {_HARMLESS['cache_control']}."] = None
