"""Google's Gemini API (`generateContent`), requests and whole answers, from and to OpenAI's wire form.

What cannot be said in the other dialect is refused (`unsupported_feature`) or told in a warning, never dropped in
silence. The extension field `gemini` of a chat request is merged into the request (`safetySettings`, `cachedContent`, …).
Signatures of thoughts travel as Google's own compatible endpoint has them: `extra_content.google.thought_signature`.
Shapes of `v1beta` as generally known: not compared with the reference, nor with a real endpoint, when this was written.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from noria.contracts.error import RequestError
from noria.dialects.gemini_schema import subset
from noria.dialects.gemini_usage import grounded, usage_of
from noria.dialects.openai_error import error_body

Fields = dict[str, Any]
Raws = dict[str, msgspec.Raw]

EXTENSION = "gemini"
_CONFIG = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "n": "candidateCount",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
"""Chat's word → the word in `generationConfig`."""
_WITHOUT_EFFECT = frozenset(
    {
        "model", "messages", "stream", "stream_options", "user", "safety_identifier", "metadata", "store", "conversation",
        "variables", "prompt_cache_key", "prompt_cache_retention", "service_tier", "max_tokens", "max_completion_tokens", "stop",
        "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", "thinking", "cache_control",
        EXTENSION,
    }
)  # fmt: skip
_LACKING: Fields = {
    "audio": (), "functions": (), "function_call": (), "prediction": (), "web_search_options": (), "verbosity": (),
    "logit_bias": ({},), "modalities": (["text"],),
}  # fmt: skip
"""Fields of OpenAI's that it has no word for, with the values that ask for nothing; others that are unknown are forwarded."""
_BUDGETS = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
"""Tokens of thought for an effort: our choice, near what Google's compatible endpoint is said to do."""
_UNSIGNED = "skip_thought_signature_validator"
"""Said to be taken for calls without a signature, as those of other models are; not tried on a real endpoint."""
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w=.+-]+)*;base64,(.*)", re.DOTALL)
_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

FINISH = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
}
"""`finishReason` → `finish_reason`; any other is a stop."""


def write_generate_request(body: Raws, model: str) -> tuple[bytes, tuple[str, ...]]:
    """The request for a chat request, and a sentence for each thing that it cannot say. Raises `RequestError`."""
    lost: dict[str, None] = {}
    fields: Fields = {name: _value(raw, name) for name, raw in body.items()}
    _refuse(fields)
    system, contents = _contents(fields.get("messages") or [], strict=model.startswith("gemini-3"))
    request: Fields = {"contents": contents}
    if system:
        request["systemInstruction"] = {"parts": system}
    config = {
        there: fields[here]
        for here, there in _CONFIG.items()
        if fields.get(here) is not None and (here, fields[here]) != ("n", 1)
    }
    limit = fields.get("max_completion_tokens")
    limit = fields.get("max_tokens") if limit is None else limit
    if limit is not None:
        config["maxOutputTokens"] = limit
    stop = fields.get("stop")
    if stop:
        config["stopSequences"] = [stop] if isinstance(stop, str) else stop
    config |= _format(fields, lost) | _thinking(fields, model)
    request |= _tools(fields, lost)
    if fields.get("parallel_tool_calls") is False:
        lost["'parallel_tool_calls' was left out: the endpoint decides how many tools it calls at once."] = None
    request |= {n: v for n, v in fields.items() if n not in (*_WITHOUT_EFFECT, *_CONFIG, *_LACKING) and v is not None}
    left = fields.get(EXTENSION)
    if isinstance(left, dict):
        own = dict(left)
        config = merged(config, own.pop("generationConfig", None) or {})
        if isinstance(own.get("tools"), list):
            own["tools"] = [*request.get("tools", ()), *own["tools"]]
        request |= own
    if config:
        request["generationConfig"] = config
    return msgspec.json.encode(request), tuple(lost)


def read_generate(body: bytes, created: int) -> bytes:
    """A chat completion for an answer. Raises ValueError on what is none. `created` is Unix time in seconds."""
    try:
        answer = msgspec.json.decode(body, type=dict[str, Any])
    except _GARBAGE as e:
        raise ValueError(f"not an answer of generateContent: {e}") from None
    candidates, blocked = answer.get("candidates"), blocked_because(answer)
    if not isinstance(candidates, list) and not blocked:
        raise ValueError("not an answer of generateContent: it has no candidates")
    choices = [_choice(c, i, answer) for i, c in enumerate(candidates or ()) if isinstance(c, dict)]
    if not choices and blocked:
        message = {"role": "assistant", "content": None, "refusal": blocked}
        choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "content_filter"}]
    elif not choices:
        raise ValueError("not an answer of generateContent: it has no candidates")
    top = {"id": answer.get("responseId") or "", "object": "chat.completion", "created": created}
    top |= {
        "model": answer.get("modelVersion") or "",
        "choices": choices,
        "usage": usage_of(answer.get("usageMetadata"), grounded(answer)),
    }
    return msgspec.json.encode(top)


def blocked_because(answer: Fields) -> str:
    """Why the prompt was not answered at all; empty where it was."""
    reason = (answer.get("promptFeedback") or {}).get("blockReason")
    return f"The endpoint blocked the prompt: {reason}." if reason else ""


def finish_of(candidate: Fields, *, called: bool) -> str | None:
    """The `finish_reason` of a candidate; None while it goes on."""
    reason = candidate.get("finishReason")
    if not reason or reason == "FINISH_REASON_UNSPECIFIED":
        return None
    finish = FINISH.get(reason, "stop")
    return "tool_calls" if called and finish == "stop" else finish


def told_apart(candidate: Fields) -> Fields:
    """The reason in Google's word, where chat's is less exact."""
    reason = candidate.get("finishReason")
    return {"native_finish_reason": reason} if reason and reason not in ("STOP", "MAX_TOKENS") else {}


def said_in(parts: Any, answer: Fields, calls: int = 0) -> Fields:
    """What parts say, as the keys of a message or delta; `calls` is the number of calls before them."""
    said: Fields = {}
    for part in parts if isinstance(parts, list) else ():
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("text"), str):
            key = "reasoning_content" if part.get("thought") else "content"
            if part["text"]:
                said[key] = said.get(key, "") + part["text"]
        elif isinstance(part.get("functionCall"), dict):
            made = said.setdefault("tool_calls", [])
            made.append(_call(part, answer, calls + len(made)))
        elif isinstance(part.get("inlineData"), dict):
            data = part["inlineData"]
            url = f"data:{data.get('mimeType')};base64,{data.get('data')}"
            said.setdefault("images", []).append({"type": "image_url", "image_url": {"url": url}})
        if part.get("thoughtSignature") and not part.get("functionCall"):
            said["extra_content"] = {"google": {"thought_signature": part["thoughtSignature"]}}
    return said


def read_error(body: bytes) -> bytes:
    """An error body in OpenAI's shape; what is no error of Google's comes back as it is."""
    try:
        said: Any = msgspec.json.decode(body)
    except _GARBAGE:
        return body
    error = (
        (said[0] if isinstance(said, list) and said else said).get("error") if isinstance(said, dict | list) and said else None
    )
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return body
    kind = "invalid_request_error" if error.get("code") == 400 else str(error.get("status") or "api_error").lower()
    return error_body(error["message"], kind, None, str(error.get("status") or "").lower() or None)


def merged(base: Fields, over: Fields) -> Fields:
    """`over` laid over `base`, objects key by key."""
    made = dict(base)
    for key, value in over.items():
        old = made.get(key)
        made[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return made


def _unsupported(name: str, why: str) -> RequestError:
    return RequestError(
        f"The Gemini API cannot do this: {why}.",
        code="unsupported_feature",
        param=name,
        hint="Leave it out, or use a model of another provider.",
    )


def _value(raw: msgspec.Raw, name: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except _GARBAGE as e:
        raise RequestError(f"'{name}' is not valid JSON: {e}.", code="invalid_json", param=name) from None


def _refuse(fields: Fields) -> None:
    for name, harmless in _LACKING.items():
        if fields.get(name) is not None and fields[name] not in harmless:
            raise _unsupported(name, f"it has no '{name}'")


def _contents(items: Any, *, strict: bool) -> tuple[list[Fields], list[Fields]]:
    """(parts of the system instruction, turns); turns of one role are joined."""
    system: list[Fields] = []
    turns: list[Fields] = []
    names: dict[str, str] = {}
    for i, item in enumerate(items if isinstance(items, list) else []):
        where = f"messages[{i}]"
        role = item.get("role") if isinstance(item, dict) else None
        if role in ("system", "developer"):
            system += _parts(item.get("content"), f"{where}.content")
            continue
        if role == "tool":
            parts = [_result(item, names, where)]
        elif role == "assistant":
            parts = _answered(item, names, where, strict=strict)
        elif role == "user":
            parts = _parts(item.get("content"), f"{where}.content")
        else:
            raise _unsupported(f"{where}.role", f"it has no role {role!r}")
        speaker = "model" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == speaker:
            turns[-1]["parts"] += parts
        elif parts:
            turns.append({"role": speaker, "parts": parts})
    return system, turns


def _answered(item: Fields, names: dict[str, str], where: str, *, strict: bool) -> list[Fields]:
    parts = _parts(item.get("content"), f"{where}.content")
    signature = _signature(item)
    if signature and parts and "thoughtSignature" not in parts[-1]:
        parts[-1]["thoughtSignature"] = signature
    for i, call in enumerate(item.get("tool_calls") or ()):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise _unsupported(f"{where}.tool_calls[{i}]", "it has function tools only")
        try:
            arguments = msgspec.json.decode(function.get("arguments") or "{}", type=dict[str, Any])
        except (*_GARBAGE, TypeError):
            raise RequestError(
                "The arguments of a tool call must be a JSON object in a string.",
                param=f"{where}.tool_calls[{i}].function.arguments",
            ) from None
        names[str(call.get("id"))] = str(function.get("name") or "")
        made: Fields = {"functionCall": {"name": function.get("name") or "", "args": arguments}}
        signed = _signature(call) or (_UNSIGNED if strict and i == 0 else "")
        parts.append(made | ({"thoughtSignature": signed} if signed else {}))
    return parts


def _signature(holder: Any) -> str:
    extra = holder.get("extra_content") if isinstance(holder, dict) else None
    google = extra.get("google") if isinstance(extra, dict) else None
    return str(google.get("thought_signature") or "") if isinstance(google, dict) else ""


def _result(item: Fields, names: dict[str, str], where: str) -> Fields:
    name = names.get(str(item.get("tool_call_id"))) or item.get("name")
    if not name:
        raise RequestError("This tool result answers no call of the conversation.", param=f"{where}.tool_call_id")
    content = item.get("content")
    if isinstance(content, list):
        if any(not isinstance(p, dict) or p.get("type") != "text" for p in content):
            raise _unsupported(f"{where}.content", "a tool result is text")
        content = "".join(str(p.get("text") or "") for p in content)
    try:
        value: Any = msgspec.json.decode(content or "")
    except (*_GARBAGE, TypeError):
        value = content or ""
    if not isinstance(value, dict):
        value = {"error" if item.get("is_error") else "result": value}
    return {"functionResponse": {"name": name, "response": value}}


def _parts(content: Any, where: str) -> list[Fields]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, list):
        raise RequestError("A message's content must be a string or a list of parts.", code="invalid_type", param=where)
    return [_part(part, f"{where}[{i}]") for i, part in enumerate(content)]


def _part(part: Any, where: str) -> Fields:
    kind = part.get("type") if isinstance(part, dict) else None
    whole = part.get(EXTENSION) if isinstance(part, dict) else None
    if isinstance(whole, dict) and (whole.get("text") or "") == (part.get("text") or ""):
        return whole  # the part as it came, unless a guard has edited its text
    if kind in ("text", "refusal"):
        return {"text": part.get(kind) or ""}
    if kind == "image_url":
        image = part.get("image_url")
        return _data(image.get("url") if isinstance(image, dict) else image, where)
    if kind == "file" and isinstance(part.get("file"), dict):
        return _data(part["file"].get("file_data") or part["file"].get("file_uri"), where)
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        audio = part["input_audio"]
        return {"inlineData": {"mimeType": f"audio/{audio.get('format') or 'wav'}", "data": audio.get("data") or ""}}
    raise _unsupported(where, f"it has no counterpart of a part of type {kind!r}")


def _data(url: Any, where: str) -> Fields:
    if not isinstance(url, str):
        raise _unsupported(where, "it needs the data itself, or its address")
    found = _DATA_URL.fullmatch(url)
    if found is not None:
        return {"inlineData": {"mimeType": found[1], "data": found[2]}}
    if url.startswith(("https://", "http://", "gs://")):
        return {"fileData": {"fileUri": url}}
    raise RequestError("An address must be http(s) or gs, or a base64 data URL.", param=where)


def _format(fields: Fields, lost: dict[str, None]) -> Fields:
    response = fields.get("response_format") or {}
    kind = response.get("type", "text") if isinstance(response, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"responseMimeType": "application/json"}
    if kind != "json_schema":
        raise _unsupported("response_format", f"it has no {kind!r}")
    schema = (response.get("json_schema") or {}).get("schema")
    if not isinstance(schema, dict):
        raise RequestError("A json_schema response_format needs a schema.", param="response_format.json_schema.schema")
    made = subset(schema, "response_format", lost)
    return {"responseMimeType": "application/json", "responseSchema": made}


def _thinking(fields: Fields, model: str) -> Fields:
    thinking, effort = fields.get("thinking"), fields.get("reasoning_effort")
    if isinstance(thinking, dict) and thinking.get("type") in ("enabled", "disabled"):
        on = thinking["type"] == "enabled"
        budget = (
            {"thinkingBudget": thinking.get("budget_tokens") or -1, "includeThoughts": True} if on else {"thinkingBudget": 0}
        )
        return {"thinkingConfig": budget}
    if effort is None:
        return {}
    if model.startswith("gemini-3"):
        level = {"none": "minimal", "xhigh": "high", "max": "high"}.get(effort, effort)
        return {"thinkingConfig": {"thinkingLevel": level, "includeThoughts": True}}
    if effort not in _BUDGETS:
        raise _unsupported("reasoning_effort", f"it has no effort {effort!r}")
    return {"thinkingConfig": {"thinkingBudget": _BUDGETS[effort]} | ({"includeThoughts": True} if effort != "none" else {})}


def _tools(fields: Fields, lost: dict[str, None]) -> Fields:
    made: Fields = {}
    declared, own = [], []
    for i, tool in enumerate(fields.get("tools") or ()):
        if isinstance(tool, dict) and tool.get("type") == EXTENSION:
            own.append(tool[EXTENSION])
            continue
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict):
            raise _unsupported(f"tools[{i}]", "it has function tools only")
        declaration: Fields = {"name": function.get("name") or ""}
        if function.get("description"):
            declaration["description"] = function["description"]
        if (function.get("parameters") or {}).get("properties"):
            declaration["parameters"] = subset(function["parameters"], f"tools[{i}]", lost)
        declared.append(declaration)
    if declared or own:
        made["tools"] = [*([{"functionDeclarations": declared}] if declared else []), *own]
    choice = fields.get("tool_choice")
    if choice is None:
        return made
    config: Fields
    if isinstance(choice, str) and choice in ("auto", "none", "required"):
        config = {"mode": {"auto": "AUTO", "none": "NONE", "required": "ANY"}[choice]}
    elif isinstance(choice, dict) and (choice.get("function") or {}).get("name"):
        config = {"mode": "ANY", "allowedFunctionNames": [choice["function"]["name"]]}
    else:
        raise _unsupported("tool_choice", f"it has no counterpart of {choice!r}"[:200])
    return made | {"toolConfig": {"functionCallingConfig": config}}


def _choice(candidate: Fields, i: int, answer: Fields) -> Fields:
    said = said_in((candidate.get("content") or {}).get("parts"), answer)
    message = {"role": "assistant", "content": said.pop("content", None), "refusal": None} | said
    finish = finish_of(candidate, called="tool_calls" in said)
    choice = {"index": candidate.get("index", i), "message": message, "logprobs": None, "finish_reason": finish}
    return choice | told_apart(candidate)


def _call(part: Fields, answer: Fields, number: int) -> Fields:
    call = part["functionCall"]
    arguments = msgspec.json.encode(call.get("args") or {}).decode()
    made: Fields = {
        "id": call.get("id") or f"call_{answer.get('responseId') or 'g'}_{number}",
        "type": "function",
        "function": {"name": call.get("name") or "", "arguments": arguments},
    }
    signature = part.get("thoughtSignature")
    return made | ({"extra_content": {"google": {"thought_signature": signature}}} if signature else {})
