"""Gemini's API as callers speak it, requests: into chat form, with nothing lost on the way.

What chat has no word for stays in the extension field `gemini` (on a part: the part itself; on a tool: the tool; at the
top: the fields left over), which an endpoint of this dialect gets back and `noria.dialects.lower` takes out for others.
Keys are read in both spellings of proto3 JSON (`systemInstruction`, `system_instruction`).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from noria.contracts.error import RequestError
from noria.dialects.gemini import EXTENSION, Fields, Raws
from noria.dialects.gemini_schema import widened

_CONFIG = {
    "temperature": "temperature", "topP": "top_p", "topK": "top_k", "maxOutputTokens": "max_completion_tokens", "seed": "seed",
    "stopSequences": "stop", "presencePenalty": "presence_penalty", "frequencyPenalty": "frequency_penalty",
    "responseLogprobs": "logprobs", "logprobs": "top_logprobs",
}  # fmt: skip
"""The word in `generationConfig` → chat's."""
_READ = ("contents", "systemInstruction", "tools", "toolConfig", "generationConfig")
_OWN = ("conversation", "variables", "user")
_SNAKE = re.compile(r"_([a-z])")
_FORMATS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mp3": "mp3", "audio/mpeg": "mp3"}


def read_generate_request(native: Raws, model: str, *, stream: bool) -> Raws:
    """The chat request for a request to `model`. Raises `RequestError` that names the field."""
    camel = {_camel(name): raw for name, raw in native.items()}
    fields: Fields = {name: _value(camel[name], name) for name in _READ if name in camel}
    config: Fields = dict(_object(fields.get("generationConfig"), "generationConfig"))
    chat: Fields = {"model": model, "messages": [*_system(fields.get("systemInstruction")), *_messages(fields.get("contents"))]}
    if stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    for there, here in _CONFIG.items():
        if config.get(there) is not None:
            chat[here] = config.pop(there)
    count = config.pop("candidateCount", None)
    if count not in (None, 1):
        chat["n"] = count
    chat |= _format(config) | _thinking(config)
    left: Fields = {name: raw for name, raw in camel.items() if name not in _READ and name not in _OWN}
    chat |= _tools(fields) | {name: camel[name] for name in _OWN if name in camel}
    if config:
        left["generationConfig"] = config
    if left:
        chat[EXTENSION] = left
    return {name: v if isinstance(v, msgspec.Raw) else msgspec.Raw(msgspec.json.encode(v)) for name, v in chat.items()}


def _camel(name: str) -> str:
    return _SNAKE.sub(lambda m: m[1].upper(), name) if name not in _OWN else name


def _camels(value: Any) -> Any:
    """An object with its own keys in one spelling; what they hold is data and stays."""
    return {_camel(key): inner for key, inner in value.items()} if isinstance(value, dict) else value


def _wrong(param: str, what: str) -> RequestError:
    return RequestError(f"Invalid value at '{param}': {what}.", code="invalid_type", param=param)


def _value(raw: msgspec.Raw, name: str) -> Any:
    try:
        return _camels(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise RequestError(f"'{name}' is not valid JSON: {e}.", code="invalid_json", param=name) from None


def _object(value: Any, where: str) -> Fields:
    if value is not None and not isinstance(value, dict):
        raise _wrong(where, "an object is needed")
    return value or {}


def _list(value: Any, where: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise _wrong(where, "a list is needed")
    return value or []


def _system(instruction: Any) -> list[Fields]:
    if isinstance(instruction, str):
        return [{"role": "system", "content": instruction}]
    parts = _list(_object(instruction, "systemInstruction").get("parts"), "systemInstruction.parts")
    content = [_part(_camels(p), f"systemInstruction.parts[{i}]") for i, p in enumerate(parts)]
    return [{"role": "system", "content": _plain(content)}] if content else []


def _messages(contents: Any) -> list[Fields]:
    if isinstance(contents, str):
        return [{"role": "user", "content": contents}]
    items = [contents] if isinstance(contents, dict) else _list(contents, "contents")
    if not items:
        raise RequestError("contents: at least one is needed.", code="missing_required_parameter", param="contents")
    made: list[Fields] = []
    names: dict[str, list[str]] = {}
    for i, item in enumerate(items):
        where = f"contents[{i}]"
        role = _object(item, where).get("role") or "user"
        if role not in ("user", "model", "function"):
            raise _wrong(f"{where}.role", "it must be 'user' or 'model'")
        parts = [_camels(_object(p, where)) for p in _list(item.get("parts"), f"{where}.parts")]
        if role == "model":
            made.append(_answered(parts, where, f"{i}", names))
        else:
            made += _asked(parts, where, names)
    return made


def _answered(parts: list[Fields], where: str, turn: str, names: dict[str, list[str]]) -> Fields:
    message: Fields = {"role": "assistant"}
    calls, rest = [], []
    for j, part in enumerate(parts):
        call = part.get("functionCall")
        if not isinstance(call, dict):
            rest.append(_part(part, f"{where}.parts[{j}]"))
            continue
        name = str(call.get("name") or "")
        own = str(call.get("id") or f"call_{turn}_{j}")
        names.setdefault(name, []).append(own)
        made: Fields = {"id": own, "type": "function"}
        made["function"] = {"name": name, "arguments": msgspec.json.encode(call.get("args") or {}).decode()}
        if part.get("thoughtSignature"):
            made["extra_content"] = {"google": {"thought_signature": part["thoughtSignature"]}}
        calls.append(made)
    message["content"] = _plain(rest) if rest else None
    return message | ({"tool_calls": calls} if calls else {})


def _asked(parts: list[Fields], where: str, names: dict[str, list[str]]) -> list[Fields]:
    """A user turn: the results of functions first, as messages of their own. They name the call they answer by its name."""
    results, rest = [], []
    for j, part in enumerate(parts):
        answer = part.get("functionResponse")
        if not isinstance(answer, dict):
            rest.append(_part(part, f"{where}.parts[{j}]"))
            continue
        waiting = names.get(str(answer.get("name") or ""), [])
        own = answer.get("id") or (waiting.pop(0) if waiting else f"call_{answer.get('name')}")
        content = msgspec.json.encode(answer.get("response") or {}).decode()
        results.append({"role": "tool", "tool_call_id": own, "name": answer.get("name") or "", "content": content})
    return [*results, {"role": "user", "content": _plain(rest)}] if rest or not results else results


def _plain(parts: list[Fields]) -> Any:
    """One text as a string, anything else as a list."""
    return parts[0]["text"] if len(parts) == 1 and parts[0].keys() == {"type", "text"} else parts


def _part(part: Any, where: str) -> Fields:
    part = _object(part, where)
    data, file = _camels(part.get("inlineData")), _camels(part.get("fileData"))
    if isinstance(part.get("text"), str):
        made: Fields = {"type": "text", "text": part["text"]}
        return made if part.keys() == {"text"} else made | {EXTENSION: part}
    if isinstance(data, dict) and part.keys() == {"inlineData"}:
        kind = str(data.get("mimeType") or "")
        url = f"data:{kind};base64,{data.get('data') or ''}"
        if kind.startswith("image/"):
            return {"type": "image_url", "image_url": {"url": url}}
        if kind in _FORMATS:
            return {"type": "input_audio", "input_audio": {"data": data.get("data") or "", "format": _FORMATS[kind]}}
        return {"type": "file", "file": {"filename": str(data.get("displayName") or "file"), "file_data": url}}
    if (
        isinstance(file, dict)
        and str(file.get("mimeType") or "").startswith("image/")
        and str(file.get("fileUri")).startswith("http")
    ):
        return {"type": "image_url", "image_url": {"url": file["fileUri"]}}
    return {"type": "text", "text": "", EXTENSION: part}


def _format(config: Fields) -> Fields:
    kind = config.pop("responseMimeType", None)
    schema = config.pop("responseJsonSchema", None)
    own = config.pop("responseSchema", None)
    if kind not in (None, "text/plain", "application/json"):
        config["responseMimeType"] = kind
        return {}
    if schema is None and own is not None:
        schema = widened(own)
    if isinstance(schema, dict):
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}
    return {"response_format": {"type": "json_object"}} if kind == "application/json" else {}


def _thinking(config: Fields) -> Fields:
    """`thinkingConfig` in the words that chat callers use; what they lack stays in `config`."""
    own = _camels(config.pop("thinkingConfig", None))
    if not isinstance(own, dict):
        return {}
    made: Fields = {}
    budget, level = own.pop("thinkingBudget", None), own.pop("thinkingLevel", None)
    if isinstance(level, str):
        made["reasoning_effort"] = level.lower()
    elif budget == 0:
        made["thinking"] = {"type": "disabled"}
    elif isinstance(budget, int):
        made["thinking"] = {"type": "enabled", "budget_tokens": budget} if budget > 0 else {"type": "adaptive"}
    if own:
        config["thinkingConfig"] = own
    return made


def _tools(fields: Fields) -> Fields:
    made: Fields = {}
    tools: list[Fields] = []
    for i, given in enumerate(_list(fields.get("tools"), "tools")):
        tool = _camels(_object(given, f"tools[{i}]"))
        declared = tool.pop("functionDeclarations", None)
        tools += [
            {"type": "function", "function": _declared(_camels(_object(declaration, f"tools[{i}]")))}
            for declaration in _list(declared, f"tools[{i}].functionDeclarations")
        ]
        if tool:
            tools.append({"type": EXTENSION, EXTENSION: tool})
    if tools:
        made["tools"] = tools
    config = _camels(_object(fields.get("toolConfig"), "toolConfig").get("functionCallingConfig"))
    if isinstance(config, dict):
        names = config.get("allowedFunctionNames") or []
        mode = str(config.get("mode") or "AUTO").upper()
        if mode in ("ANY", "VALIDATED") and len(names) == 1:
            made["tool_choice"] = {"type": "function", "function": {"name": names[0]}}
        else:
            made["tool_choice"] = {"ANY": "required", "NONE": "none"}.get(mode, "auto")
            if names:
                made["tools"] = [t for t in tools if t.get("function", {}).get("name") in names]
    return made


def _declared(declaration: Fields) -> Fields:
    function: Fields = {"name": declaration.get("name") or ""}
    if declaration.get("description"):
        function["description"] = declaration["description"]
    schema = declaration.get("parametersJsonSchema") or widened(declaration.get("parameters"))
    return function | {"parameters": schema or {"type": "object", "properties": {}}}
