"""Anthropic's Messages API as callers speak it, requests: into chat form, with nothing lost on the way.

What chat has a word for is said in that word, so that guards, memory and every endpoint understand it. What it
has none for stays in extension fields, which an endpoint of the same dialect gets back as they came and
`noria.dialects.lower` takes out for every other: `cache_control`, `thinking_blocks`, `is_error`, and `anthropic`
(on a part: the block it was made of; on a message: its blocks, where their order matters; on a tool and at the
top: the fields left over). Shapes as in anthropic-python 2.12.0 (2026-11).
"""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.error import RequestError

Fields = dict[str, Any]
Raws = dict[str, msgspec.Raw]

EXTENSION = "anthropic"
"""The key under which a part, a message, a tool or a request keeps what chat has no word for."""

DENIED = {
    "mcp_servers": "the endpoint would call hosts that no configuration names",
    "fallbacks": "another model than the release's would answer",
    "workspace_id": "it names a part of the operator's own account",
    "user_profile_id": "it names a part of the operator's own account",
}
"""Fields that are refused, with the reason. Whatever else is unknown is forwarded to endpoints of this dialect."""

_SAME = ("temperature", "top_p", "top_k", "thinking", "cache_control", "service_tier", "inference_geo", "speed", "stream")
"""Fields that chat form keeps under their own name."""
_OWN = ("conversation", "variables")
"""Noria's own, allowed in every protocol."""
_READ = frozenset(
    {"model", "messages", "max_tokens", "system", "stop_sequences", "tools", "tool_choice", "metadata", "output_config"}
)
_ROLES = ("user", "assistant", "system")


def read_messages_request(native: Raws, *, counting: bool = False) -> Raws:
    """The chat request for a Messages request; `counting` asks for no `max_tokens`.

    Raises `RequestError` that names the field: wrong shapes, and what `DENIED` holds.
    """
    for name in DENIED.keys() & native.keys():
        raise RequestError(
            f"'{name}' is not taken here: {DENIED[name]}.", code="unsupported_feature", param=name, hint="Leave it out."
        )
    fields: Fields = {name: _value(native[name], name) for name in _READ if name in native}
    chat: Fields = {"model": native["model"]} if "model" in native else {}
    chat["messages"] = [*_system(fields.get("system")), *_messages(fields.get("messages"))]
    chat |= _limit(fields, counting=counting)
    chat |= {name: native[name] for name in (*_SAME, *_OWN) if name in native and bytes(native[name]) != b"null"}
    if bytes(native.get("stream", b"")) == b"true":
        chat["stream_options"] = {"include_usage": True}  # message_delta must tell the usage
    if fields.get("stop_sequences"):
        chat["stop"] = fields["stop_sequences"]
    chat |= _tools(fields)
    left = {name: raw for name, raw in native.items() if name not in _READ and name not in _SAME and name not in _OWN}
    chat |= _output(fields.get("output_config"), left)
    user = (fields.get("metadata") or {}).get("user_id") if isinstance(fields.get("metadata"), dict) else None
    if user:
        chat["user"] = _text(user, "metadata.user_id")
    if isinstance(fields.get("metadata"), dict):  # the id itself goes as `user`, which is never recorded as it came
        left["metadata"] = msgspec.Raw(msgspec.json.encode({k: v for k, v in fields["metadata"].items() if k != "user_id"}))
    if left:
        chat[EXTENSION] = left
    return {name: v if isinstance(v, msgspec.Raw) else msgspec.Raw(msgspec.json.encode(v)) for name, v in chat.items()}


def text_of(block: Any) -> str:
    """All that a guard should see of a block: its texts, titles, contents; not data, ids or signatures."""
    if isinstance(block, str):
        return block
    if isinstance(block, list):
        return "\n".join(t for t in map(text_of, block) if t)
    if not isinstance(block, dict):
        return ""
    found = [text_of(block.get(key)) for key in ("title", "context", "text", "thinking", "content")]
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") == "text":
        found.append(text_of(source.get("data")))
    elif isinstance(source, dict) and source.get("type") == "content":
        found.append(text_of(source.get("content")))
    elif isinstance(source, str) and block.get("type") == "search_result":
        found.append(source)
    return "\n".join(t for t in found if t)


def wrong(param: str, what: str) -> RequestError:
    """A value of the wrong shape, in the words of the API: `messages.0.role: …`."""
    return RequestError(f"{param}: {what}", code="invalid_type", param=param)


def _value(raw: msgspec.Raw, name: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise RequestError(f"'{name}' is not valid JSON: {e}.", code="invalid_json", param=name) from None


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise wrong(param, "Input should be a valid string")
    return value


def _limit(fields: Fields, *, counting: bool) -> Fields:
    limit = fields.get("max_tokens")
    if limit is None:
        if counting:
            return {}
        raise RequestError("max_tokens: Field required", code="missing_required_parameter", param="max_tokens")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise wrong("max_tokens", "Input should be an integer of at least 0")
    return {"max_completion_tokens": limit}


def _system(system: Any) -> list[Fields]:
    if not system:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    if not isinstance(system, list):
        raise wrong("system", "Input should be a string or a list of text blocks")
    return [{"role": "system", "content": _parts(system, "system")}]


def _messages(items: Any) -> list[Fields]:
    if not isinstance(items, list):
        raise wrong("messages", "Field required" if items is None else "Input should be a list")
    made: list[Fields] = []
    for i, item in enumerate(items):
        where = f"messages.{i}"
        role = item.get("role") if isinstance(item, dict) else None
        if role not in _ROLES:
            raise wrong(f"{where}.role", "Input should be 'user', 'assistant' or 'system'")
        content = item.get("content")
        if isinstance(content, str):
            made.append({"role": role, "content": content})
        elif not isinstance(content, list):
            raise wrong(f"{where}.content", "Input should be a string or a list of blocks")
        elif role == "assistant":
            made.append(assistant_turn(content, f"{where}.content"))
        elif role == "system":
            made.append({"role": "system", "content": _parts(content, f"{where}.content")})
        else:
            made += _asked(content, f"{where}.content")
    return made


def _asked(blocks: list[Any], where: str) -> list[Fields]:
    """A user turn: its tool results first, as messages of their own, then the rest."""
    results = [_result(b, f"{where}.{i}") for i, b in enumerate(blocks) if _kind(b, f"{where}.{i}") == "tool_result"]
    others = [b for b in blocks if b.get("type") != "tool_result"]
    return [*results, {"role": "user", "content": _parts(others, where)}] if others or not results else results


def _result(block: Fields, where: str) -> Fields:
    message: Fields = {"role": "tool", "tool_call_id": _text(block.get("tool_use_id"), f"{where}.tool_use_id")}
    content = block.get("content")
    if content is None or isinstance(content, str):
        message["content"] = content or ""
    elif isinstance(content, list):
        message["content"] = _parts(content, f"{where}.content")
    else:
        raise wrong(f"{where}.content", "Input should be a string or a list of blocks")
    more = {k: v for k, v in block.items() if k not in ("type", "tool_use_id", "content", "is_error", "cache_control")}
    return message | _marks(block, "is_error", "cache_control") | ({EXTENSION: more} if more else {})


def assistant_turn(blocks: list[Any], where: str) -> Fields:
    """An assistant turn. Where thinking or calls stand between texts, the blocks themselves are kept beside."""
    kinds = [_kind(block, f"{where}.{i}") for i, block in enumerate(blocks)]
    thinking = [b for b in blocks if b["type"] in ("thinking", "redacted_thinking")]
    calls = [_call(b, f"{where}.{i}") for i, b in enumerate(blocks) if b["type"] == "tool_use"]
    rest = [b for b in blocks if b["type"] not in ("thinking", "redacted_thinking", "tool_use")]
    message: Fields = {"role": "assistant", "content": _parts(rest, where) if rest else None}
    if thinking:
        message["thinking_blocks"] = thinking
    if calls:
        message["tool_calls"] = calls
    ranks = [0 if k.endswith("thinking") else 2 if k == "tool_use" else 1 for k in kinds]
    if ranks != sorted(ranks):
        message[EXTENSION] = blocks
    return message


def _call(block: Fields, where: str) -> Fields:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise wrong(f"{where}.input", "Input should be an object")
    function = {"name": _text(block.get("name"), f"{where}.name"), "arguments": msgspec.json.encode(arguments).decode()}
    call: Fields = {"id": _text(block.get("id"), f"{where}.id"), "type": "function", "function": function}
    more = {k: v for k, v in block.items() if k not in ("type", "id", "name", "input", "cache_control")}
    return call | _marks(block, "cache_control") | ({EXTENSION: more} if more else {})


def _parts(blocks: list[Any], where: str) -> list[Fields]:
    return [_part(block, f"{where}.{i}") for i, block in enumerate(blocks)]


def _part(block: Any, where: str) -> Fields:
    kind = _kind(block, where)
    if kind == "text":
        part: Fields = {"type": "text", "text": _text(block.get("text"), f"{where}.text")}
        more = {k: v for k, v in block.items() if k not in ("type", "text", "cache_control") and v is not None}
        return part | _marks(block, "cache_control") | ({EXTENSION: block} if more else {})
    source = block.get("source") if isinstance(block.get("source"), dict) else {}
    plain = not block.keys() - {"type", "source", "cache_control", "title"}
    if kind == "image" and plain and source.get("type") in ("base64", "url"):
        url = source.get("url") if source["type"] == "url" else _data_url(source, where)
        return {"type": "image_url", "image_url": {"url": _text(url, f"{where}.source.url")}} | _marks(block, "cache_control")
    if kind == "document" and plain and source.get("type") == "base64" and source.get("media_type") == "application/pdf":
        file = {"filename": block["title"]} if block.get("title") else {}
        return {"type": "file", "file": file | {"file_data": _data_url(source, where)}} | _marks(block, "cache_control")
    return {"type": "text", "text": text_of(block), EXTENSION: block}


def _data_url(source: Fields, where: str) -> str:
    kind, data = (
        _text(source.get("media_type"), f"{where}.source.media_type"),
        _text(source.get("data"), f"{where}.source.data"),
    )
    return f"data:{kind};base64,{data}"


def _kind(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise wrong(where, "Input should be a block with a 'type'")
    return kind


def _marks(block: Fields, *names: str) -> Fields:
    return {name: block[name] for name in names if block.get(name) is not None}


def _tools(fields: Fields) -> Fields:
    made: Fields = {}
    tools = fields.get("tools")
    if tools:
        if not isinstance(tools, list):
            raise wrong("tools", "Input should be a list")
        made["tools"] = [_tool(tool, f"tools.{i}") for i, tool in enumerate(tools)]
    choice = fields.get("tool_choice")
    if choice is None:
        return made
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind not in ("auto", "any", "tool", "none"):
        raise wrong("tool_choice.type", "Input should be 'auto', 'any', 'tool' or 'none'")
    if kind == "tool":
        made["tool_choice"] = {"type": "function", "function": {"name": _text(choice.get("name"), "tool_choice.name")}}
    else:
        made["tool_choice"] = "required" if kind == "any" else kind
    if choice.get("disable_parallel_tool_use"):
        made["parallel_tool_calls"] = False
    return made


def _tool(tool: Any, where: str) -> Fields:
    if not isinstance(tool, dict):
        raise wrong(where, "Input should be an object")
    if tool.get("type") not in (None, "custom"):
        return {"type": EXTENSION, EXTENSION: tool}
    function: Fields = {"name": _text(tool.get("name"), f"{where}.name")}
    if tool.get("description"):
        function["description"] = tool["description"]
    function["parameters"] = tool.get("input_schema") or {"type": "object", "properties": {}}
    if tool.get("strict"):
        function["strict"] = True
    known = ("type", "name", "description", "input_schema", "strict", "cache_control")
    more = {k: v for k, v in tool.items() if k not in known and v is not None}
    return {"type": "function", "function": function} | _marks(tool, "cache_control") | ({EXTENSION: more} if more else {})


def _output(config: Any, left: Raws) -> Fields:
    """`output_config` in chat's words; what it holds besides effort and format is added to `left`."""
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise wrong("output_config", "Input should be an object")
    made: Fields = {}
    if config.get("effort") is not None:
        made["reasoning_effort"] = _text(config["effort"], "output_config.effort")
    form = config.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema" and isinstance(form.get("schema"), dict):
        made["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form["schema"]}}
    elif form is not None:
        raise wrong("output_config.format", "Input should be an object with the type 'json_schema' and a schema")
    more = {k: v for k, v in config.items() if k not in ("effort", "format")}
    if more:
        left["output_config"] = msgspec.Raw(msgspec.json.encode(more))
    return made
