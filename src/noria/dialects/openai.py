"""OpenAI's wire form, requests: read once at the top level, touch only the keys that matter, write verbatim.

Ambiguous JSON is refused rather than guessed at: where two keys are equal, one reader takes the first and
another the last, and a guard that reads one while the model reads the other is no guard.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from noria.contracts.error import RequestError
from noria.contracts.exchange import Kind
from noria.contracts.message import Message, Part

DEPTH_LIMIT = 128
"""Levels of nesting of a request. JSON schemas of real tools stay below 40."""

MOST_CHOICES = 128
"""Answers that one request may ask for (`n`), as OpenAI has it."""

_NULL = b"null"
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_STRING = msgspec.json.Decoder(str)
_KEY = re.compile(rb'[\s,]*"([^"\\]*(?:\\.[^"\\]*)*)"\s*:\s*')
_START = re.compile(rb"\s*\{")
_END = re.compile(rb"\s*\}\s*")
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = bytes.maketrans(b"[]{}", b"()()")
_NO_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")


class Head(msgspec.Struct, frozen=True):
    """What Noria itself must know of a request; everything else stays verbatim in the body."""

    model: str
    stream: bool = False
    include_usage: bool = False
    """`stream_options.include_usage`: whether the caller wants the usage frame."""
    n: int = 1
    user: str = ""
    """`safety_identifier`, else `user`: raw, to be hashed at admit and dropped."""
    conversation: str = ""
    variables: dict[str, str] = {}
    """Values for the prompt template: Noria's extension."""
    max_tokens: int | None = None
    """`max_completion_tokens`, else `max_tokens`."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Conversation(msgspec.Struct):
    id: str


class _Shape(msgspec.Struct):
    """What every message has; whoever needs more of it reads more."""

    role: str


_SHAPES = msgspec.json.Decoder(list[_Shape])


def read_request(body: bytes) -> dict[str, msgspec.Raw]:
    """Top-level keys and their values as they came.

    Raises `RequestError` (`invalid_json`) on what is not one JSON object in UTF-8, on a key that is
    there twice, and on more than `DEPTH_LIMIT` levels.
    """
    try:
        body.decode()
    except UnicodeDecodeError as e:
        raise RequestError(f"The request body is not UTF-8 (byte {e.start}).", code="invalid_json") from None
    if _too_deep(body):
        raise RequestError(f"The request body is nested deeper than {DEPTH_LIMIT} levels.", code="invalid_json")
    return read_object(body, "")


def read_object(raw: bytes | msgspec.Raw, param: str) -> dict[str, msgspec.Raw]:
    """One JSON object, values verbatim; `param` names it in errors. Refuses what `read_request` refuses."""
    where = f" at '{param}'" if param else ""
    try:
        fields = _OBJECT.decode(raw)
    except msgspec.ValidationError:
        raise RequestError(
            f"A JSON object is needed{where or ' as the request body'}.",
            code=None if param else "invalid_json",
            param=param or None,
        ) from None
    except (msgspec.DecodeError, RecursionError) as e:
        raise RequestError(
            f"The request body is not valid JSON{where}: {e}.", code="invalid_json", param=param or None
        ) from None
    _refuse_duplicates(bytes(raw), fields, param)
    return fields


def read_head(kind: Kind, body: dict[str, msgspec.Raw]) -> Head:
    """The fields that Noria needs, with their types checked. Raises `RequestError` that names the parameter."""
    if "model" not in body:
        raise RequestError(
            "You must provide a model parameter.", param="model", hint='Name an app, for example "model": "support".'
        )
    _require_prompt(kind, body)
    read = {name: _field(name, raw) for name, raw in body.items() if name in _FIELDS}
    model = read["model"]
    if not model:
        raise RequestError("The model parameter must be a non-empty string.", param="model")
    options = read.get("stream_options")
    conversation = read.get("conversation")
    limit = read.get("max_completion_tokens")
    return Head(
        model=model,
        stream=read.get("stream") or False,
        include_usage=bool(options and options.include_usage),
        n=_at_most(MOST_CHOICES, "n", _at_least(1, "n", read.get("n"), default=1)),
        user=read.get("safety_identifier") or read.get("user") or "",
        conversation=conversation.id if isinstance(conversation, _Conversation) else conversation or "",
        variables=read.get("variables") or {},
        max_tokens=_at_least(0, "max_tokens", limit if limit is not None else read.get("max_tokens"), default=None),
    )


def read_messages(raw: msgspec.Raw) -> tuple[Message, ...]:
    """The messages of a chat request. Raises `RequestError` that names the message and the part."""
    return _read(raw)[0]


def _read(raw: msgspec.Raw) -> tuple[tuple[Message, ...], list[msgspec.Raw]]:
    """The messages and the JSON of each. What was read last is remembered: the stage that edits and the one that writes
    follow each other, most often without another request between them.
    """
    global _last_read  # noqa: PLW0603  one slot, compared by identity: it can only be right or unused
    if _last_read[0] is raw:
        return _last_read[1]
    items = _read_list(raw, "messages")
    found = tuple([_read_message(item, i) for i, item in enumerate(items)]), items
    _last_read = raw, found
    return found


_last_read: tuple[msgspec.Raw | None, tuple[tuple[Message, ...], list[msgspec.Raw]]] = (None, ((), []))


def write_messages(messages: tuple[Message, ...], original: msgspec.Raw | None = None) -> msgspec.Raw:
    """The JSON of `messages`. Those that equal a message of `original` leave with its very bytes.

    A part whose text differs from that of its `raw` is written with the text replaced and its other
    keys kept (`cache_control`), so a stale `raw` can never bring an edit back.
    """
    verbatim: dict[Any, list[tuple[Message, msgspec.Raw]]] = {}
    if original is not None:
        read, raws = _read(original)
        if len(read) == len(messages):
            pairs = zip(messages, read, raws, strict=True)
            return msgspec.Raw(
                msgspec.json.encode([raw if m is old else _write_message(m, [(old, raw)]) for m, old, raw in pairs])
            )
        for message, raw in zip(read, raws, strict=True):
            verbatim.setdefault(_likeness(message), []).append((message, raw))
    return msgspec.Raw(msgspec.json.encode([_write_message(m, verbatim.get(_likeness(m), [])) for m in messages]))


def asking_for_usage(body: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """A stream's request with `stream_options.include_usage` set: who must bill needs the count, asked for or not."""
    options = body.get("stream_options")
    asked: Any = {"include_usage": True}
    if options is not None and bytes(options).startswith(b"{"):
        asked = _OBJECT.decode(options) | asked
    return {**body, "stream_options": msgspec.Raw(msgspec.json.encode(asked))}


def read_texts(raw: msgspec.Raw, param: str) -> tuple[str, ...] | None:
    """The texts of `prompt` or `input`: one string or a list of strings; None where it is token ids."""
    value = _decode(raw, param)
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return tuple(value)
    if isinstance(value, list) and value and all(isinstance(item, int | list) for item in value):
        return None
    raise RequestError(f"'{param}' must be a string, a list of strings, or a list of token ids, and not empty.", param=param)


def write_texts(texts: tuple[str, ...], original: msgspec.Raw) -> msgspec.Raw:
    """`texts` in the shape of `original`: a bare string stays one."""
    plain = bytes(original).startswith(b'"')
    return msgspec.Raw(msgspec.json.encode(texts[0] if plain and len(texts) == 1 else texts))


def write_request(body: dict[str, msgspec.Raw]) -> bytes:
    """The request with its values verbatim, in the order of the keys."""
    return msgspec.json.encode(body)


def _refuse_duplicates(raw: bytes, fields: dict[str, msgspec.Raw], param: str) -> None:
    """Walk the top level beside what was decoded: with a key twice, the two part company."""
    if msgspec.json.encode(fields) == raw or _spaced(fields) == raw:
        return  # written as most clients write: all of it is there, so nothing was there twice
    at = _START.match(raw).end()  # type: ignore[union-attr]  # it decoded as an object, so it starts as one
    seen: set[str] = set()
    key = ""
    while (found := _KEY.match(raw, at)) is not None:
        spelled = found[1]
        key = _STRING.decode(b'"' + spelled + b'"') if b"\\" in spelled else spelled.decode()
        value = bytes(fields[key])
        if key in seen or not raw.startswith(value, found.end()):
            break
        seen.add(key)
        at = found.end() + len(value)
    if _END.fullmatch(raw, at) is None:
        where = f"{param}.{key}" if param else key
        raise RequestError(f"The key '{where}' is there twice.", code="invalid_json", param=where, hint="Send it once.")


def _spaced(fields: dict[str, msgspec.Raw]) -> bytes:
    """The object as Python's `json.dumps` writes it; keys that need an escape come out otherwise, which is no harm here."""
    return b"{%b}" % b", ".join([b'"%b": %b' % (key.encode(), value) for key, value in fields.items()])


def _too_deep(body: bytes) -> bool:
    """Whether brackets nest deeper than `DEPTH_LIMIT`. Costs two counts unless there are many brackets."""
    if body.count(b"[") + body.count(b"{") <= DEPTH_LIMIT:
        return False
    marks = _STRINGS.sub(b"", body).translate(_BRACKETS, _NO_BRACKETS)
    depth = 0
    for start in range(0, len(marks), 64):
        block = marks[start : start + 64]
        opened = block.count(b"(")
        if depth + opened > DEPTH_LIMIT and depth + _peak(block) > DEPTH_LIMIT:
            return True
        depth += 2 * opened - len(block)
    return False


def _peak(block: bytes) -> int:
    depth = peak = 0
    for mark in block:
        depth += 1 if mark == 0x28 else -1
        peak = max(peak, depth)
    return peak


_FIELDS: dict[str, tuple[msgspec.json.Decoder[Any], str]] = {
    "model": (msgspec.json.Decoder(str), "a string"),
    "stream": (msgspec.json.Decoder(bool | None), "true or false"),
    "stream_options": (msgspec.json.Decoder(_StreamOptions | None), "an object with a boolean 'include_usage'"),
    "n": (msgspec.json.Decoder(int | None), "an integer"),
    "stop": (msgspec.json.Decoder(str | list[str] | None), "a string or a list of strings"),
    "user": (msgspec.json.Decoder(str | None), "a string"),
    "safety_identifier": (msgspec.json.Decoder(str | None), "a string"),
    "conversation": (msgspec.json.Decoder(str | _Conversation | None), "a string, or an object with a string 'id'"),
    "variables": (msgspec.json.Decoder(dict[str, str] | None), "an object whose values are strings"),
    "max_tokens": (msgspec.json.Decoder(int | None), "an integer"),
    "max_completion_tokens": (msgspec.json.Decoder(int | None), "an integer"),
}

_PROMPT_OF: dict[Kind, str] = {"chat": "messages", "completion": "prompt", "embedding": "input"}


def _field(name: str, raw: msgspec.Raw) -> Any:
    decoder, shape = _FIELDS[name]
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RequestError(f"Invalid type for '{name}': it must be {shape}.", code="invalid_type", param=name) from None


def _at_least(least: int, name: str, value: int | None, *, default: Any) -> Any:
    if value is None:
        return default
    if value < least:
        raise RequestError(f"Invalid '{name}': {value} is less than {least}.", code="integer_below_min_value", param=name)
    return value


def _at_most(most: int, name: str, value: int) -> int:
    if value > most:
        raise RequestError(f"Invalid '{name}': {value} is more than {most}.", code="integer_above_max_value", param=name)
    return value


def _require_prompt(kind: Kind, body: dict[str, msgspec.Raw]) -> None:
    name = _PROMPT_OF[kind]
    raw = bytes(body.get(name, b""))
    if not raw or raw == _NULL:
        raise RequestError(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
    if kind == "chat":
        if not raw.startswith(b"["):
            raise RequestError("Invalid type for 'messages': it must be a list of messages.", code="invalid_type", param=name)
        if raw[1:-1].isspace() or raw == b"[]":
            raise RequestError("'messages' must hold at least one message.", code="empty_array", param=name)
        try:
            _SHAPES.decode(raw)
        except msgspec.DecodeError:
            read_messages(body[name])  # says what is wrong, and where
            raise RequestError("'messages' cannot be read.", code="invalid_type", param=name) from None


def _decode(raw: msgspec.Raw, param: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as e:
        raise RequestError(f"'{param}' is not valid JSON: {e}.", code="invalid_json", param=param) from None


def _read_list(raw: msgspec.Raw, param: str) -> list[msgspec.Raw]:
    try:
        return _LIST.decode(raw)
    except msgspec.DecodeError:
        raise RequestError(f"Invalid type for '{param}': it must be a list.", code="invalid_type", param=param) from None


def _read_message(raw: msgspec.Raw, index: int) -> Message:
    param = f"messages[{index}]"
    rest = read_object(raw, param)
    role = _decode(rest.pop("role", msgspec.Raw(_NULL)), f"{param}.role")
    if not isinstance(role, str) or not role:
        raise RequestError("Each message needs a role.", param=f"{param}.role", hint='For example "user".')
    content = rest.get("content")
    first = bytes(content)[:1] if content is not None else b"n"
    if content is None or first == b"n":
        return Message(role, rest=rest)  # an absent and a null content both survive in `rest`
    del rest["content"]
    if first == b'"':
        return Message(role, (Part(_decode(content, f"{param}.content")),), rest=rest)
    if first == b"[":
        parts = (_read_part(item, f"{param}.content[{i}]") for i, item in enumerate(_read_list(content, param)))
        return Message(role, tuple(parts), plain=False, rest=rest)
    raise RequestError(
        "A message's content must be a string or a list of parts.", code="invalid_type", param=f"{param}.content"
    )


def _read_part(raw: msgspec.Raw, param: str) -> Part:
    fields = read_object(raw, param)
    key = _text_key(fields)
    return Part(None if key is None else _decode(fields[key], f"{param}.{key}"), raw)


def _text_key(fields: dict[str, msgspec.Raw]) -> str | None:
    """Where a part keeps its text: `text`, or `refusal` in what an assistant said before."""
    return next((key for key in ("text", "refusal") if key in fields and bytes(fields[key]).startswith(b'"')), None)


def _likeness(message: Message) -> Any:
    return message.role, tuple(part.text for part in message.parts)


def _write_message(message: Message, verbatim: list[tuple[Message, msgspec.Raw]]) -> Any:
    for i, (same, raw) in enumerate(verbatim):
        if same == message:
            del verbatim[i]  # equal messages may be spelled differently: each spelling leaves once, in order
            return raw
    fields: dict[str, Any] = {"role": message.role}
    if not message.plain:
        fields["content"] = [_write_part(part) for part in message.parts]
    elif message.parts:
        fields["content"] = "".join(part.text or "" for part in message.parts)
    return fields | {key: raw for key, raw in message.rest.items() if key not in fields}


def _write_part(part: Part) -> Any:
    if part.raw is None:
        return {"type": "text", "text": part.text or ""}
    if part.text is None:
        return part.raw
    fields: dict[str, Any] = dict(_OBJECT.decode(part.raw))
    key = _text_key(fields) or "text"
    if key in fields and _STRING.decode(fields[key]) == part.text:
        return part.raw
    return fields | {key: part.text}
