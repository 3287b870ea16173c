"""OpenAI's Responses API, requests: the fields of `POST /v1/responses` as those of a chat request.

Whatever is not named here goes on to the endpoint as it came (vendors know more than OpenAI). What only makes sense
where the Responses API itself is spoken is refused by name; what changes no answer but is lost is said in a warning.
"""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.error import RequestError
from noria.dialects.responses_items import Fields, not_in_chat, put_off, read_items
from noria.dialects.responses_native import UNSAID, unsaid

Raws = dict[str, msgspec.Raw]

_NULL = b"null"
_MINE = frozenset(
    {
        "input", "instructions", "previous_response_id", "store", "metadata", "include", "tools", "tool_choice", "text",
        "reasoning", "max_output_tokens", "max_tool_calls", "top_logprobs", "truncation", "stream_options", "background",
        "conversation", "client_metadata",
    }
)  # fmt: skip
"""Handled below, or of no meaning without OpenAI's own tools (`max_tool_calls`, `client_metadata`)."""
_MOVED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "functions": "tools",
    "function_call": "tool_choice",
    "logprobs": 'include: ["message.output_text.logprobs"]',
}
"""Chat's words for what has another one here: two of them could contradict each other."""
_NOT_IN_CHAT = {
    "prompt": "stored prompts; put the prompt into the app",
    "context_management": "compaction of the context on the server",
    "background_options": "answers in the background",
    "moderation": "moderation beside the answer; put a guard on the app",
    "multi_agent": "agents on the server",
}
_INCLUDES = {
    "reasoning.encrypted_content", "message.output_text.logprobs", "message.input_image.image_url",
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "computer_call_output.output.image_url", "code_interpreter_call.outputs",
}  # fmt: skip
"""What may be included. Those about OpenAI's own tools ask for nothing where there is no such tool."""
_TRUNCATION = "'truncation' was left out: whether a prompt is cut to fit is a matter of the app ('fit')."
_SUMMARY = "Summaries of the reasoning were asked for: the model's own reasoning comes instead, where it shows any."


def read_response_request(fields: Raws) -> tuple[Raws, tuple[str, ...]]:
    """The chat request, and a sentence for each thing that it cannot carry. Raises `RequestError` that names the field.

    `stream_options.include_usage` is set, for the last event of a stream holds the usage. `metadata`, `store` and
    `previous_response_id` are Noria's to serve and stay out.

    With `store: false` an endpoint may get the request as it is (`responses_native.own_request`). What chat has no
    counterpart of is then neither refused nor said yet: both are under `responses_native.UNSAID`.
    """
    _refuse(fields)
    warnings: list[str] = []
    later: list[RequestError] | None = [] if bytes(fields.get("store", b"")) == b"false" else None
    messages, lost = _messages(fields, later)
    warnings += lost
    chat: Raws = {k: v for k, v in fields.items() if k not in _MINE and k != UNSAID}
    made: Fields = {"messages": messages}
    made |= _tools(_value(fields, "tools"), later)
    for read, name in ((_tool_choice, "tool_choice"), (_text, "text")):
        try:
            made |= read(_value(fields, name))
        except RequestError as e:
            put_off(e, later)
    made |= _reasoning(_value(fields, "reasoning"), warnings)
    made |= _logprobs(_value(fields, "include"), _value(fields, "top_logprobs"))
    if _given(fields, "max_output_tokens"):
        made["max_completion_tokens"] = fields["max_output_tokens"]
    if _given(fields, "truncation"):
        warnings.append(_TRUNCATION)
    if _given(fields, "conversation"):
        made["conversation"] = fields["conversation"]
    if _value(fields, "stream") is True:
        made["stream_options"] = _stream_options(_value(fields, "stream_options"), warnings)
    chat |= {k: v if isinstance(v, msgspec.Raw) else msgspec.Raw(msgspec.json.encode(v)) for k, v in made.items()}
    if later is not None and (later or warnings):
        chat[UNSAID] = unsaid(later[0] if later else None, list(dict.fromkeys(warnings)))
        return chat, ()
    return chat, tuple(dict.fromkeys(warnings))


def _given(fields: Raws, name: str) -> bool:
    return name in fields and bytes(fields[name]) != _NULL


def _value(fields: Raws, name: str) -> Any:
    if name not in fields:
        return None
    try:
        return msgspec.json.decode(fields[name])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise RequestError(f"'{name}' is not valid JSON: {e}.", code="invalid_json", param=name) from None


def _wrong_type(param: str, shape: str) -> RequestError:
    return RequestError(f"Invalid type for '{param}': it must be {shape}.", code="invalid_type", param=param)


def _refuse(fields: Raws) -> None:
    """What cannot be: chat's own names, what chat has no counterpart of, contradictions."""
    for name in fields:
        if name in _MOVED and _given(fields, name):
            raise RequestError(
                f"Unsupported parameter: '{name}'. In the Responses API it is '{_MOVED[name]}'.",
                code="unsupported_parameter",
                param=name,
            )
        if name in _NOT_IN_CHAT and _given(fields, name):
            raise not_in_chat(name, _NOT_IN_CHAT[name])
    if _value(fields, "background") is True:
        raise RequestError(
            "Answers in the background are not given here.",
            code="unsupported_feature",
            param="background",
            hint="Leave 'background' out and wait, or stream.",
        )
    if _value(fields, "n") not in (None, 1):
        raise RequestError("The Responses API gives one answer: there is no 'n'.", code="unsupported_parameter", param="n")
    if _value(fields, "modalities") not in (None, ["text"]) or _given(fields, "audio"):
        raise not_in_chat("modalities", "answers here but text")
    if _given(fields, "previous_response_id") and _given(fields, "conversation"):
        raise RequestError(
            "'previous_response_id' and 'conversation' exclude each other.",
            code="mutually_exclusive_parameters",
            param="previous_response_id",
        )
    for name, kind, shape in (("previous_response_id", str, "a string"), ("store", bool, "true or false")):
        if _given(fields, name) and not isinstance(_value(fields, name), kind):
            raise _wrong_type(name, shape)


def _messages(fields: Raws, later: list[RequestError] | None) -> tuple[list[Fields], list[str]]:
    given = _value(fields, "input")
    if given is None or given == []:
        raise RequestError("Missing required parameter: 'input'.", code="missing_required_parameter", param="input")
    if isinstance(given, str):
        messages, warnings = [{"role": "user", "content": given}], list[str]()
    elif isinstance(given, list):
        messages, warnings = read_items(given, later=later)
        if not messages and later:
            messages = [{"role": "user", "content": ""}]
        if not messages:
            raise RequestError("'input' holds nothing to answer.", code="invalid_value", param="input")
    else:
        raise _wrong_type("input", "a string or a list of items")
    instructions = _value(fields, "instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise _wrong_type("instructions", "a string")
    return ([{"role": "system", "content": instructions}] if instructions else []) + messages, warnings


def _tools(tools: Any, later: list[RequestError] | None) -> Fields:
    if not tools:
        return {}
    if not isinstance(tools, list):
        raise _wrong_type("tools", "a list of tools")
    made = []
    for i, tool in enumerate(tools):
        try:
            made.append(_tool(tool, f"tools[{i}]"))
        except RequestError as e:
            put_off(e, later)
            made.append(tool)
    return {"tools": made}


def _tool(tool: Any, where: str) -> Fields:
    if not isinstance(tool, dict):
        raise _wrong_type(where, "an object")
    if tool.get("type") != "function":
        name = f" ({tool['name']!r})" if isinstance(tool.get("name"), str) else ""
        raise not_in_chat(where, f"tool of type {tool.get('type')!r}{name}; function tools can be used")
    if not isinstance(tool.get("name"), str):
        raise _wrong_type(f"{where}.name", "a string")
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type" and v is not None}}


def _tool_choice(choice: Any) -> Fields:
    if choice is None:
        return {}
    if isinstance(choice, str):
        return {"tool_choice": choice}
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return {"tool_choice": {"type": "function", "function": {"name": choice.get("name")}}}
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list):
        allowed = [_named(tool, f"tool_choice.tools[{i}]") for i, tool in enumerate(choice["tools"])]
        return {"tool_choice": {"type": kind, kind: {"mode": choice.get("mode") or "auto", "tools": allowed}}}
    raise not_in_chat("tool_choice", f"tool_choice of type {kind!r}")


def _named(tool: Any, where: str) -> Fields:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise not_in_chat(where, "tools but functions")
    return {"type": "function", "function": {"name": tool.get("name")}}


def _text(text: Any) -> Fields:
    if text is None:
        return {}
    if not isinstance(text, dict):
        raise _wrong_type("text", "an object")
    made: Fields = {}
    if text.get("verbosity") is not None:
        made["verbosity"] = text["verbosity"]
    form = text.get("format")
    if form is None:
        return made
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "json_schema":
        schema = {k: v for k, v in form.items() if k != "type" and v is not None}
        return made | {"response_format": {"type": kind, kind: schema}}
    if kind == "json_object":
        return made | {"response_format": {"type": kind}}
    if kind != "text":
        raise not_in_chat("text.format", f"text.format of type {kind!r}")
    return made


def _reasoning(reasoning: Any, warnings: list[str]) -> Fields:
    if reasoning is None:
        return {}
    if not isinstance(reasoning, dict):
        raise _wrong_type("reasoning", "an object")
    if reasoning.get("summary") or reasoning.get("generate_summary"):
        warnings.append(_SUMMARY)
    lost = sorted(k for k, v in reasoning.items() if v is not None and k not in ("effort", "summary", "generate_summary"))
    warnings += [f"'reasoning.{key}' was left out: the chat protocol has no place for it." for key in lost]
    return {"reasoning_effort": reasoning["effort"]} if reasoning.get("effort") is not None else {}


def _logprobs(include: Any, top: Any) -> Fields:
    if include is not None and not (isinstance(include, list) and all(isinstance(i, str) for i in include)):
        raise _wrong_type("include", "a list of strings")
    for name in include or ():
        if name not in _INCLUDES:
            raise RequestError(
                f"Invalid value for 'include': {name!r}.",
                code="invalid_value",
                param="include",
                hint=f"Known: {', '.join(sorted(_INCLUDES))}.",
            )
    if top:
        return {"logprobs": True, "top_logprobs": top}
    return {"logprobs": True} if "message.output_text.logprobs" in (include or ()) else {}


def _stream_options(options: Any, warnings: list[str]) -> Fields:
    if isinstance(options, dict) and options.get("include_obfuscation"):
        warnings.append("'stream_options.include_obfuscation' was left out: events are not padded here.")
    return {"include_usage": True}
