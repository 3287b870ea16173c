"""OpenAI's Responses API, items: what a conversation is made of there, as chat messages and back.

An assistant's turn is several items there (reasoning, message, function calls) and one message in chat; results of
calls are items without a role there and messages of role `tool` in chat. Roles `developer` and `system` mean the same
to OpenAI's models and only the second is known to most others, so both become `system`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from noria.contracts.error import RequestError

Fields = dict[str, Any]

REFERENCE = "item_reference"
"""Role of the message that stands for a referenced item until the session state puts the item there."""
_SEALED = "noria1."
"""Begins `encrypted_content` of ours: signed thinking blocks (Anthropic), which must come back as they were."""
_ITEM_KEYS = {
    "message": frozenset({"type", "role", "content", "id", "status"}),
    "function_call": frozenset({"type", "id", "call_id", "name", "arguments", "status"}),
    "function_call_output": frozenset({"type", "id", "call_id", "output", "status"}),
}
_PART_KEYS = {
    "input_text": ("text",),
    "output_text": ("text", "annotations", "logprobs"),
    "text": ("text",),
    "refusal": ("refusal",),
}
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def read_items(
    items: Sequence[Any], param: str = "input", *, later: list[RequestError] | None = None
) -> tuple[list[Fields], list[str]]:
    """The chat messages that `items` amount to, and a sentence for each thing that chat cannot carry.

    A referenced item becomes a message of role `item_reference` with its `id`. Raises `RequestError` that names the item, or, for one
    that chat has no counterpart of, leaves it out and puts the error into `later`, where that is given.
    """
    reader = _Reader()
    for i, item in enumerate(items):
        try:
            reader.read(item, f"{param}[{i}]")
        except RequestError as e:
            put_off(e, later)
    return reader.messages, list(reader.warnings)


def join_turns(messages: Iterable[Fields]) -> list[Fields]:
    """`messages` with the pieces of one assistant's turn made one message: a call needs its results right behind it."""
    joined: list[Fields] = []
    for message in messages:
        if message.get("role") == "assistant":
            _speak(joined, dict(message))
        else:
            joined.append(message)
    return joined


def write_items(messages: Iterable[Fields], name: Callable[[str], str]) -> list[Fields]:
    """The items of chat messages, oldest first; `name` makes the id of the next item with a prefix (`msg`, `fc`, `fco`)."""
    items: list[Fields] = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role == "tool":
            output = content if isinstance(content, str) else [_input_part(p) for p in content or ()]
            call = message.get("tool_call_id") or ""
            items.append(
                {"id": name("fco"), "type": "function_call_output", "call_id": call, "output": output, "status": "completed"}
            )
            continue
        if content:
            write = _output_part if role == "assistant" else _input_part
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            said = [write(part) for part in parts]
            items.append({"id": name("msg"), "type": "message", "role": role, "status": "completed", "content": said})
        items += [_call_item(call, name("fc")) for call in message.get("tool_calls") or ()]
    return items


def item_id(prefix: str, response: str, number: int = 0) -> str:
    """The id of an item of a response: it names the response, so that a reference can be followed.

    >>> item_id("msg", "0199" * 8, 3)
    'msg_0199019901990199019901990199019903'
    """
    return f"{prefix}_{response}{number:02x}"


def response_of(item: str) -> str:
    """The 32 hex digits of the response that an item (or a response) belongs to by its id; empty where it is none of ours."""
    digits = item.partition("_")[2][:32]
    return digits if len(digits) == 32 and not set(digits) - set("0123456789abcdef") else ""


def seal(blocks: list[Any]) -> str:
    """Thinking blocks as the `encrypted_content` of a reasoning item."""
    return _SEALED + base64.b64encode(msgspec.json.encode(blocks)).decode()


def unseal(content: Any) -> list[Any]:
    """The thinking blocks that `seal` wrote; none where it was another's."""
    if not isinstance(content, str) or not content.startswith(_SEALED):
        return []
    try:
        return msgspec.json.decode(base64.b64decode(content[len(_SEALED) :], validate=True), type=list[Any])
    except (binascii.Error, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return []


class _Reader:
    """Collects messages."""

    def __init__(self) -> None:
        self.messages: list[Fields] = []
        self.warnings: dict[str, None] = {}
        self._thoughts: list[Any] = []

    def read(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise RequestError(f"'{where}' must be an object.", code="invalid_type", param=where)
        kind = item.get("type") or ("message" if "role" in item else REFERENCE if "id" in item else None)
        known = _ITEM_KEYS.get(str(kind))
        if known is not None:
            self._left_out(item.keys() - known, item, f"items of type '{kind}'")
        if kind == "message":
            self._message(item, where)
        elif kind == "function_call":
            self._say({"role": "assistant", "content": None, "tool_calls": [_call(item, where)]})
        elif kind == "function_call_output":
            content = self._output(item.get("output"), f"{where}.output")
            self.messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", where), "content": content})
        elif kind == "reasoning":
            self._reasoning(item)
        elif kind == REFERENCE:
            self.messages.append({"role": REFERENCE, "id": _text(item, "id", where)})
        else:
            raise not_in_chat(where, f"items of type {kind!r}")

    def _message(self, item: Fields, where: str) -> None:
        role = _ROLES.get(str(item.get("role")))
        if role is None:
            raise RequestError(
                f"'{where}.role' must be user, assistant, system or developer.", code="invalid_value", param=f"{where}.role"
            )
        message = {"role": role, "content": self._content(item.get("content"), f"{where}.content")}
        if role == "assistant":
            self._say(message)
        else:
            self.messages.append(message)

    def _say(self, message: Fields) -> None:
        if self._thoughts:
            message["thinking_blocks"], self._thoughts = self._thoughts, []
        _speak(self.messages, message)

    def _reasoning(self, item: Fields) -> None:
        blocks = unseal(item.get("encrypted_content"))
        self._thoughts += blocks
        if not blocks and (item.get("summary") or item.get("content") or item.get("encrypted_content")):
            self._warn("Reasoning of earlier turns was left out: the chat protocol has no place for it.")

    def _output(self, output: Any, where: str) -> Any:
        """What a call gave back: a text, or parts."""
        if isinstance(output, str | list):
            return self._content(output, where)
        raise RequestError(f"'{where}' must be a string or a list of parts.", code="invalid_type", param=where)

    def _content(self, content: Any, where: str) -> Any:
        """A bare text where there is no more to say, for many endpoints know nothing else."""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise RequestError(f"'{where}' must be a string or a list of parts.", code="invalid_type", param=where)
        parts = [self._part(part, f"{where}[{i}]") for i, part in enumerate(content)]
        if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
            return parts[0]["text"]
        return parts

    def _part(self, part: Any, where: str) -> Fields:
        if not isinstance(part, dict):
            raise RequestError(f"'{where}' must be an object.", code="invalid_type", param=where)
        kind = str(part.get("type"))
        if kind in ("input_text", "output_text", "text"):
            if part.get("annotations"):
                self._warn("Annotations of earlier answers were left out: the chat protocol has no place for them.")
            return {"type": "text", "text": _text(part, "text", where), **_rest(part, kind)}
        if kind == "refusal":
            return {"type": "refusal", "refusal": _text(part, "refusal", where)}
        if kind == "input_image":
            return _image(part, where)
        if kind == "input_file":
            return _file(part, where)
        if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
            return part
        raise not_in_chat(where, f"content of type {kind!r}")

    def _left_out(self, keys: Iterable[str], item: Fields, of: str) -> None:
        for key in sorted(keys):
            if item[key] is not None:
                self._warn(f"'{key}' of {of} was left out: the chat protocol has no place for it.")

    def _warn(self, text: str) -> None:
        self.warnings[text] = None


def _speak(messages: list[Fields], message: Fields) -> None:
    """Add what the assistant said; a call joins the turn that it belongs to, as does text beside a call."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or not (message.get("tool_calls") or last.get("tool_calls")):
        messages.append(message)
        return
    last = messages[-1] = dict(last)
    for key in ("tool_calls", "thinking_blocks"):
        if message.get(key):
            last[key] = [*(last.get(key) or ()), *message[key]]
    if message.get("content"):
        last["content"] = (
            _parts(last.get("content")) + _parts(message["content"]) if last.get("content") else message["content"]
        )


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _rest(part: Fields, kind: str) -> Fields:
    """Keys that a vendor may know (`cache_control`)."""
    return {k: v for k, v in part.items() if k != "type" and k not in _PART_KEYS[kind]}


def _text(item: Fields, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise RequestError(f"'{where}.{key}' must be a string.", code="invalid_type", param=f"{where}.{key}")
    return value


def _call(item: Fields, where: str) -> Fields:
    function = {"name": _text(item, "name", where), "arguments": _text(item, "arguments", where)}
    return {"id": _text(item, "call_id", where), "type": "function", "function": function}


def _image(part: Fields, where: str) -> Fields:
    url = part.get("image_url")
    if not isinstance(url, str):
        raise not_in_chat(where, "images by file id; send a URL or a data URL in image_url")
    return {"type": "image_url", "image_url": {"url": url, **({"detail": part["detail"]} if part.get("detail") else {})}}


def _file(part: Fields, where: str) -> Fields:
    if part.get("file_url"):
        raise not_in_chat(where, "files by URL; send file_data")
    given = {k: part[k] for k in ("file_id", "file_data", "filename") if part.get(k) is not None}
    if not given.keys() & {"file_id", "file_data"}:
        raise RequestError(f"'{where}' needs file_data or file_id.", code="missing_required_parameter", param=where)
    return {"type": "file", "file": given}


def put_off(error: RequestError, later: list[RequestError] | None) -> None:
    """Into `later`, where there is one, what `not_in_chat` refuses; any other error is raised."""
    if later is None or error.code != "unsupported_feature":
        raise error
    later.append(error)


def not_in_chat(param: str, what: str) -> RequestError:
    """The error for what only an endpoint can do that speaks the Responses API itself."""
    return RequestError(
        f"The chat protocol, by which this model is reached, has no {what}.",
        code="unsupported_feature",
        param=param,
        hint="Only an endpoint that speaks /v1/responses itself can do it.",
    )


def _call_item(call: Any, id: str) -> Fields:
    function = call.get("function") or {}
    made = {"id": id, "type": "function_call", "call_id": call.get("id") or "", "name": function.get("name") or ""}
    return made | {"arguments": function.get("arguments") or "", "status": "completed"}


def _input_part(part: Any) -> Fields:
    kind = part.get("type")
    if kind == "image_url":
        image = part.get("image_url") or {}
        return {"type": "input_image", "image_url": image.get("url"), "detail": image.get("detail") or "auto"}
    if kind == "file":
        return {"type": "input_file", **(part.get("file") or {})}
    return {**part, "type": "input_text"} if kind == "text" else part


def _output_part(part: Any) -> Fields:
    if part.get("type") == "refusal":
        return {"type": "refusal", "refusal": part.get("refusal") or ""}
    return {"type": "output_text", "text": part.get("text") or "", "annotations": [], "logprobs": []}
