"""Where an exchange carries text of its caller, and how an edited text gets back to its place.

Places: `input.2.0` is part 0 of message 2, `input.2.tool.0` the arguments of its tool call 0,
`input.2.custom.0` the input of its call 0 where that is of a `custom` tool (free text),
`input.2.call` the arguments of its legacy `function_call`, `input.prompt.0` and `input.input.0` a text of a
completion's prompt or an embedding's input.
"""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.exchange import Exchange
from noria.contracts.message import Message, Part
from noria.dialects.openai import read_messages, read_texts, write_texts

_LISTS = ("prompt", "input")
_CALLS = (("tool", "function", "arguments"), ("custom", "custom", "input"))
"""Place, key and inner key of what a tool call says."""


class Text(msgspec.Struct, frozen=True):
    """One text with its place. `arguments`: what may be the JSON text of a tool call. `ours`: the release's own words."""

    place: str
    text: str
    arguments: bool = False
    ours: bool = False


def decoded(x: Exchange) -> Exchange:
    """The exchange with its messages read, where it has any."""
    raw = x.body.get("messages")
    if x.messages is not None or raw is None:
        return x
    return msgspec.structs.replace(x, messages=read_messages(raw))


def texts_of(x: Exchange) -> list[Text]:
    """Every text of a decoded exchange, in order.

    `ours` is the system prompt that the template stage put first, unless a caller's variables went into it.
    """
    found: list[Text] = []
    prompted = x.release is not None and x.release.prompt is not None and not x.variables
    for i, message in enumerate(x.messages or ()):
        ours = i == 0 and prompted and message.role == "system"
        found += [Text(f"input.{i}.{j}", p.text, ours=ours) for j, p in enumerate(message.parts) if p.text]
        found += _arguments(message, i)
    if x.messages is None:
        for param in _LISTS:
            texts = read_texts(x.body[param], param) if param in x.body else None
            found += [Text(f"input.{param}.{i}", t) for i, t in enumerate(texts or ()) if t]
    return found


def _arguments(message: Message, i: int) -> list[Text]:
    found = []
    for j, call in enumerate(_calls(message)):
        arguments = _inside(call, "function").get("arguments")
        if isinstance(arguments, str) and arguments:
            found.append(Text(f"input.{i}.tool.{j}", arguments, arguments=True))
        given = _inside(call, "custom").get("input")
        if isinstance(given, str) and given:
            found.append(Text(f"input.{i}.custom.{j}", given, arguments=given.lstrip()[:1] in ("{", "[")))
    if "function_call" in message.rest:
        arguments = _inside({"function": _json(message.rest["function_call"])}, "function").get("arguments")
        if isinstance(arguments, str) and arguments:
            found.append(Text(f"input.{i}.call", arguments, arguments=True))
    return found


def _json(raw: msgspec.Raw) -> Any:
    return msgspec.json.decode(raw)


def _calls(message: Message) -> list[Any]:
    calls = _json(message.rest["tool_calls"]) if "tool_calls" in message.rest else None
    return calls if isinstance(calls, list) else []


def _inside(call: Any, key: str) -> dict[str, Any]:
    found = call.get(key) if isinstance(call, dict) else None
    return found if isinstance(found, dict) else {}


def with_texts(x: Exchange, new: dict[str, str]) -> Exchange:
    """The exchange with the texts at these places replaced; everything else stays as it was."""
    if not new:
        return x
    if x.messages is None:
        return msgspec.structs.replace(x, body={**x.body, **_lists(x, new)}, edited=True)
    messages = tuple(_with_texts(m, i, new) for i, m in enumerate(x.messages))
    return msgspec.structs.replace(x, messages=messages, edited=True)


def _lists(x: Exchange, new: dict[str, str]) -> dict[str, msgspec.Raw]:
    edited = {}
    for param in _LISTS:
        texts = read_texts(x.body[param], param) if param in x.body else None
        if texts is not None:
            edited[param] = write_texts(tuple(new.get(f"input.{param}.{i}", t) for i, t in enumerate(texts)), x.body[param])
    return edited


def _with_texts(message: Message, i: int, new: dict[str, str]) -> Message:
    parts = tuple(Part(new[at], part.raw) if (at := f"input.{i}.{j}") in new else part for j, part in enumerate(message.parts))
    rest = message.rest
    calls = _calls(message)
    edited = False
    for j, call in enumerate(calls):
        for place, key, inner in _CALLS:
            if (at := f"input.{i}.{place}.{j}") in new:
                call[key][inner] = new[at]
                edited = True
    if edited:
        rest = {**rest, "tool_calls": msgspec.Raw(msgspec.json.encode(calls))}
    if f"input.{i}.call" in new:
        call = {**_json(rest["function_call"]), "arguments": new[f"input.{i}.call"]}
        rest = {**rest, "function_call": msgspec.Raw(msgspec.json.encode(call))}
    if parts == message.parts and rest is message.rest:
        return message
    return Message(message.role, parts, message.plain, rest)
