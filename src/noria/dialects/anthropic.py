"""Anthropic's Messages API, requests and whole answers, from and to OpenAI's wire form.

What cannot be said in the other dialect is refused (`unsupported_feature`), never dropped in silence;
only fields that do not change the answer are left out, and fields that nobody knows are forwarded. Requests that
came in this dialect get back what `noria.dialects.anthropic_request` kept of it. Shapes as in anthropic-python 2.12.0.
`temperature`, `top_p` and `top_k` exist up to API version 2023-06-01 only, and not for models from 4.7 on.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from noria.contracts.error import RequestError
from noria.dialects.anthropic_request import EXTENSION, assistant_turn, text_of
from noria.dialects.openai_error import error_body

Fields = dict[str, Any]

_WITHOUT_EFFECT = frozenset(
    {
        "model", "messages", "stream", "stream_options", "user", "safety_identifier", "metadata", "store", "conversation",
        "variables", "prompt_cache_key", "prompt_cache_retention", "max_tokens", "max_completion_tokens", "stop", "tools",
        "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", EXTENSION,
    }
)  # fmt: skip
"""Handled below, or of no influence on the answer."""
_HARMLESS = {
    "n": (1,),
    "logprobs": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "logit_bias": ({},),
}
"""Fields that Anthropic lacks, with the values that ask for nothing."""
_LACKING = _HARMLESS.keys() | {
    "seed", "top_logprobs", "audio", "functions", "function_call", "prediction", "web_search_options", "verbosity",
}  # fmt: skip
"""Fields of OpenAI's that change the answer and have no counterpart: refused. Others that are unknown are forwarded."""

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.*)", re.DOTALL)
_ODD = re.compile(r"[^a-zA-Z0-9_-]")
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""`stop_reason` → `finish_reason`."""
_BLURRED = ("stop_sequence", "pause_turn", "model_context_window_exceeded")
"""Reasons that share their `finish_reason` with a more usual one."""


def write_messages_request(
    body: dict[str, msgspec.Raw], model: str, *, stream: bool, max_tokens: int, system_turns: bool = False
) -> bytes:
    """The Messages request for a chat request. `max_tokens` is the limit where the caller set none: it is required.

    `system_turns` keeps system messages in the middle of a conversation where they are, which models before
    Opus 4.8 refuse; without it they join the system prompt, in order.
    Raises `RequestError`: `unsupported_feature` with the field's name for what the API has no word for.
    """
    fields: Fields = {name: _value(raw, name) for name, raw in body.items()}
    _refuse_unsupported(fields)
    system, messages = _messages(fields.get("messages") or [], system_turns=system_turns)
    limit = fields.get("max_completion_tokens")
    request: Fields = {"model": model, "max_tokens": (limit if limit is not None else fields.get("max_tokens")) or max_tokens}
    if system:
        request["system"] = system
    request["messages"] = messages
    if stream:
        request["stream"] = True
    request |= {
        name: value for name, value in fields.items() if value is not None and name not in (*_WITHOUT_EFFECT, *_HARMLESS)
    }
    stop = fields.get("stop")
    if stop:
        request["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    request |= _tools(fields)
    request |= _output_config(fields)
    return msgspec.json.encode(request | _left_over(fields, request))


def read_message(body: bytes, created: int) -> bytes:
    """A chat completion for a Messages answer. Raises ValueError on what is none. `created` is Unix time in seconds."""
    try:
        message = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"not a Messages answer: {e}") from None
    blocks = message.get("content")
    if message.get("type") != "message" or not isinstance(blocks, list):
        raise ValueError("not a Messages answer: it has no content")
    choice = {"index": 0, "message": _said(message, blocks), "logprobs": None, "finish_reason": finish_of(message)}
    choice |= told_apart(message)
    answer = {
        "id": message.get("id", ""),
        "object": "chat.completion",
        "created": created,
        "model": message.get("model", ""),
        "choices": [choice],
        "usage": usage_of(message.get("usage") or {}),
    }
    return msgspec.json.encode(answer)


def finish_of(message: Fields) -> str | None:
    """The `finish_reason` for a `stop_reason`; an unknown reason is a stop."""
    reason = message.get("stop_reason")
    return None if reason is None else FINISH.get(reason, "stop")


def told_apart(message: Fields) -> Fields:
    """What `finish_reason` does not tell: the reason in Anthropic's word, and which stop sequence it was.

    `native_finish_reason` is OpenRouter's name for the first, `stop_reason` vLLM's for the second.
    """
    reason = message.get("stop_reason")
    made = {"native_finish_reason": reason} if reason in _BLURRED else {}
    return made | ({"stop_reason": message["stop_sequence"]} if message.get("stop_sequence") else {})


def searched(block: Fields, usage: Fields) -> Fields:
    """The usage so far, where a block of a stream begins in which the provider searches the web: it is told in full at the end."""
    if block.get("type") != "server_tool_use" or block.get("name") != "web_search":
        return {}
    ran = usage.get("server_tool_use") or {}
    return {"server_tool_use": ran | {"web_search_requests": (ran.get("web_search_requests") or 0) + 1}}


_FREE = frozenset({"web_fetch_requests"})
"""Tools that Anthropic runs and bills by their tokens alone."""
_ORDINARY: dict[str, tuple[Any, ...]] = {
    "service_tier": (None, "standard"),
    "inference_geo": (None, "", "global", "not_available"),
    "speed": (None, "standard"),
}
"""What an answer says of its price class → the values at which prices are as stated."""


def usage_of(usage: Fields) -> Fields | None:
    """Usage in OpenAI's sense: `prompt_tokens` includes what was read from and written to the cache; None where unknown.

    `cache_write_1h_tokens` is our word for the part of `cache_write_tokens` that is kept, and priced, for an hour,
    `billed_apart` for how many things there are that change the price and have none here (`Usage.apart`).
    """
    if usage.get("input_tokens") is None:
        return None  # not told is not 0
    read, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    long = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
    prompt, completion = usage["input_tokens"] + read + written, usage.get("output_tokens")
    thinking = (usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0
    ran = {name: many for name, many in (usage.get("server_tool_use") or {}).items() if many}
    searches, apart = ran.pop("web_search_requests", 0), len(ran.keys() - _FREE)
    apart += sum(usage.get(name) not in ordinary for name, ordinary in _ORDINARY.items())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": None if completion is None else prompt + completion,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written}
        | ({"cache_write_1h_tokens": long} if long else {}),
        "completion_tokens_details": {"reasoning_tokens": thinking},
        **({"server_tool_use": {"web_search_requests": searches}} if searches else {}),
        **({"billed_apart": apart} if apart else {}),
    }


def read_error(body: bytes) -> bytes:
    """An error body in OpenAI's shape; what is no Messages error comes back as it is."""
    try:
        error = msgspec.json.decode(body, type=dict[str, Any]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return body
    kind = str(error.get("type") or "api_error")
    return error_body(error["message"], kind, None, kind)


def _left_over(fields: Fields, request: Fields) -> Fields:
    """What the request had in this dialect and chat has no word for."""
    left = fields.get(EXTENSION)
    if not isinstance(left, dict):
        return {}
    made = dict(left)
    if "output_config" in left:
        made["output_config"] = request.get("output_config", {}) | left["output_config"]
    if "metadata" in left:
        made["metadata"] = left["metadata"] | ({"user_id": fields["user"]} if fields.get("user") else {})
    return made


def _unsupported(name: str, why: str) -> RequestError:
    return RequestError(
        f"Anthropic's Messages API cannot do this: {why}.",
        code="unsupported_feature",
        param=name,
        hint="Leave it out, or use a model of another provider.",
    )


def _value(raw: msgspec.Raw, name: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise RequestError(f"'{name}' is not valid JSON: {e}.", code="invalid_json", param=name) from None


def _refuse_unsupported(fields: Fields) -> None:
    for name, value in fields.items():
        if name in _LACKING and value is not None and value not in _HARMLESS.get(name, ()):
            raise _unsupported(name, f"it has no '{name}'" if name not in _HARMLESS else f"'{name}' = {value!r}"[:200])
    temperature = fields.get("temperature")
    if isinstance(temperature, int | float) and temperature > 1:
        raise _unsupported("temperature", "its temperature ends at 1")
    if fields.get("service_tier") in ("default", "flex", "priority"):
        del fields["service_tier"]  # OpenAI's price classes; they change when an answer comes, not what it says


def _messages(items: Any, *, system_turns: bool) -> tuple[list[Fields], list[Fields]]:
    """(system blocks, turns). Turns of one role are joined, so that tool results come first in their turn."""
    system: list[Fields] = []
    turns: list[Fields] = []
    for i, item in enumerate(items if isinstance(items, list) else []):
        where = f"messages[{i}]"
        role = item.get("role") if isinstance(item, dict) else None
        if role in ("system", "developer"):
            blocks = _blocks(item.get("content"), f"{where}.content")
            if turns and system_turns:
                turns.append({"role": "system", "content": blocks})
            else:
                system += blocks
            continue
        if role not in ("user", "assistant", "tool"):
            raise _unsupported(f"{where}.role", f"it has no role {role!r}")
        blocks = _turn(role, item, where)
        speaker = "assistant" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == speaker:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": speaker, "content": blocks})
    return system, turns


def _turn(role: str, item: Fields, where: str) -> list[Fields]:
    content = _blocks(item.get("content"), f"{where}.content")
    if role == "tool":
        result: Fields = {"type": "tool_result", "tool_use_id": _id(item.get("tool_call_id")), "content": content}
        result |= {key: item[key] for key in ("is_error", "cache_control") if item.get(key)}
        return [result | (item.get(EXTENSION) or {})]
    if role == "user":
        return content
    if item.get("function_call"):
        raise _unsupported(f"{where}.function_call", "the old function_call has no counterpart; use tool_calls")
    blocks: list[Fields] = item.get(EXTENSION) or []
    if blocks and assistant_turn(blocks, where) == item:
        return blocks  # no stage has touched them: they keep their order, which signatures may depend on
    thinking = [block for block in item.get("thinking_blocks") or () if isinstance(block, dict)]
    calls = enumerate(item.get("tool_calls") or ())
    return [*thinking, *content, *(_tool_use(call, f"{where}.tool_calls[{i}]") for i, call in calls)]


def _blocks(content: Any, where: str) -> list[Fields]:
    if content is None or content == "":
        return []  # an empty text block is an error there
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise RequestError("A message's content must be a string or a list of parts.", code="invalid_type", param=where)
    return [_block(part, f"{where}[{i}]") for i, part in enumerate(content)]


def _block(part: Any, where: str) -> Fields:
    kind = part.get("type") if isinstance(part, dict) else None
    whole = part.get(EXTENSION) if isinstance(part, dict) else None
    if whole and text_of(whole) == (part.get("text") or ""):
        return whole  # type: ignore[no-any-return]  # the block as it came, unless a guard has edited its text
    if kind == "text":
        block: Fields = {"type": "text", "text": part.get("text") or ""}
    elif kind == "refusal":
        block = {"type": "text", "text": part.get("refusal") or ""}
    elif kind == "image_url":
        block = {"type": "image", "source": _image(part.get("image_url"), where)}
    elif kind == "file":
        block = _document(part.get("file"), where)
    else:
        raise _unsupported(where, f"it has no counterpart of a part of type {kind!r}")
    if part.get("cache_control"):
        block["cache_control"] = part["cache_control"]
    return block


def _image(image: Any, where: str) -> Fields:
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise RequestError("An image_url part needs a url.", code="invalid_type", param=where)
    found = _DATA_URL.fullmatch(url)
    if found is None:
        if url.startswith(("https://", "http://")):
            return {"type": "url", "url": url}
        raise RequestError("An image's url must be http(s), or a base64 data URL.", param=where)
    if found[1] not in _IMAGES:
        raise _unsupported(where, f"it reads no images of type {found[1]}")
    return {"type": "base64", "media_type": found[1], "data": found[2]}


def _document(file: Any, where: str) -> Fields:
    found = _DATA_URL.fullmatch(str(file.get("file_data"))) if isinstance(file, dict) else None
    if found is None or found[1] != "application/pdf":
        raise _unsupported(where, "files go in as base64 PDF in file_data only")
    block: Fields = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": found[2]}}
    return block | ({"title": file["filename"]} if file.get("filename") else {})


def _tool_use(call: Any, where: str) -> Fields:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise _unsupported(where, "it has function tools only")
    arguments = function.get("arguments") or "{}"
    try:
        value = msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.DecodeError, TypeError, RecursionError):
        raise RequestError(
            "The arguments of a tool call must be a JSON object in a string.", param=f"{where}.function.arguments"
        ) from None
    made: Fields = {"type": "tool_use", "id": _id(call.get("id")), "name": function.get("name") or "", "input": value}
    if call.get("cache_control"):
        made["cache_control"] = call["cache_control"]
    return made | (call.get(EXTENSION) or {})


def _id(given: Any) -> str:
    """The id of a call, in the letters that Anthropic takes; other vendors use dots and colons too."""
    return _ODD.sub("_", given) if isinstance(given, str) else ""


def _tools(fields: Fields) -> Fields:
    wanted: Fields = {}
    tools = fields.get("tools")
    if tools:
        wanted["tools"] = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    choice = _tool_choice(fields.get("tool_choice"))
    if tools and fields.get("parallel_tool_calls") is False:
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    return wanted | ({"tool_choice": choice} if choice else {})


def _tool(tool: Any, where: str) -> Fields:
    if isinstance(tool, dict) and tool.get("type") == EXTENSION:
        return tool[EXTENSION]  # type: ignore[no-any-return]  # a tool of Anthropic's own, as it came
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        raise _unsupported(where, "it has function tools only")
    made: Fields = {"name": function.get("name") or ""}
    if function.get("description"):
        made["description"] = function["description"]
    made["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
    if function.get("strict"):
        made["strict"] = True
    if tool.get("cache_control"):
        made["cache_control"] = tool["cache_control"]
    return made | (tool.get(EXTENSION) or {})


def _tool_choice(choice: Any) -> Fields | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in ("auto", "none", "required"):
        return {"type": "any" if choice == "required" else choice}
    function = choice.get("function") if isinstance(choice, dict) else None
    if isinstance(function, dict) and function.get("name"):
        return {"type": "tool", "name": function["name"]}
    raise _unsupported("tool_choice", f"it has no counterpart of {choice!r}"[:200])


def _output_config(fields: Fields) -> Fields:
    config: Fields = {}
    wanted: Fields = {}
    effort = fields.get("reasoning_effort")
    if effort == "none":
        wanted["thinking"] = {"type": "disabled"}
    elif effort:
        config["effort"] = "low" if effort == "minimal" else effort
    response = fields.get("response_format") or {}
    kind = response.get("type", "text") if isinstance(response, dict) else None
    if kind == "json_schema":
        schema = (response.get("json_schema") or {}).get("schema")
        if not isinstance(schema, dict):
            raise RequestError("A json_schema response_format needs a schema.", param="response_format.json_schema.schema")
        config["format"] = {"type": "json_schema", "schema": schema}
    elif kind != "text":
        raise _unsupported("response_format", f"it has no {kind!r} without a schema; give a json_schema")
    return wanted | ({"output_config": config} if config else {})


def _said(message: Fields, blocks: list[Fields]) -> Fields:
    texts = [block.get("text") or "" for block in blocks if block.get("type") == "text"]
    thinking = [block for block in blocks if block.get("type") in ("thinking", "redacted_thinking")]
    calls = [tool_call(block) for block in blocks if block.get("type") == "tool_use"]
    said: Fields = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": refusal_of(message)}
    if thinking:
        said["reasoning_content"] = "".join(block.get("thinking") or "" for block in thinking)
        said["thinking_blocks"] = thinking  # to be sent back with their signatures in the next turn
    if calls:
        said["tool_calls"] = calls
    return said


def refusal_of(message: Fields) -> str | None:
    """Why the model refused, where it did and says so."""
    if message.get("stop_reason") != "refusal":
        return None
    return (message.get("stop_details") or {}).get("explanation")


def tool_call(block: Fields) -> Fields:
    """A tool call for a `tool_use` block; `arguments` is a string, `{}` where there are none."""
    arguments = msgspec.json.encode(block.get("input") or {}).decode()
    return {"id": block.get("id", ""), "type": "function", "function": {"name": block.get("name", ""), "arguments": arguments}}
