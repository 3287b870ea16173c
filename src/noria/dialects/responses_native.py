"""OpenAI's Responses API passing through: facts of answers that keep their bytes, requests that may keep theirs."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from noria.contracts.error import RequestError
from noria.contracts.exchange import Answer, Usage
from noria.dialects.openai_answer import at_tier, read_usage
from noria.dialects.openai_stream import CONTENT, OTHER
from noria.dialects.sse import FrameSplitter, data_of, frame_end, marked
from noria.dialects.upstream import ReaderTap, message_of

Raws = dict[str, msgspec.Raw]

UNSAID = "noria.responses"
"""Key of a chat request that stands for what it leaves out of a Responses request: `refused` (an error), `lost` (sentences)."""
_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_FINISH = {"max_output_tokens": "length", "content_filter": "content_filter"}
_SAID_LATER = frozenset({"message", "reasoning"})
"""Items that are empty when they begin; any other kind tells something by being there."""

# -- requests -------------------------------------------------------------------------------------------

_STATE = ("previous_response_id", "conversation", "prompt", "background")
_TOOLS = frozenset(
    {
        "function", "custom", "local_shell", "shell", "apply_patch", "web_search", "image_generation", "code_interpreter",
        "computer", "computer_use_preview",
    }
)  # fmt: skip
"""Tools that reach nothing but this request and the open web; dated `web_search_…` too.

Left out, with reasons: `file_search` (files of the operator's account), `mcp` (addresses of the caller's choice, the
operator's connectors), and whatever is not known here.
"""
_ACCOUNT = re.compile(
    rb'"(?:file_ids?|vector_store_ids|container_id|connector_id|server_url|skill_id|item_reference)"|"container"\s*:\s*"|\\u00[0-7]'
)
"""What names an object of the operator's account, which other keys may have put there. Inside a text quotes are escaped, so no
prompt looks like one; a name that is spelt with escapes (`\\u0066`) is not looked into, and is translated.
"""
_SAME = frozenset({"temperature", "top_p", "service_tier", "parallel_tool_calls"})
"""Parameters of a release that mean the same here."""


_NONE = msgspec.Raw(b"null")


class _Kind(msgspec.Struct):
    type: Any = None
    role: Any = None
    action: Any = None


_KINDS = msgspec.json.Decoder(list[_Kind])


def own_request(native: Raws, params: Raws) -> Raws | None:
    """The request as an endpoint may get it that speaks the protocol itself, a release's parameters filled in.

    None where it has to be translated: it is to be stored, or goes on from what is (all keys share the operator's account
    there), reaches objects of that account, or has a parameter that needs translating.
    """
    if bytes(native.get("store", b"")) != b"false" or any(
        bytes(native.get(n, b"null")) not in (b"null", b"false") for n in _STATE
    ):
        return None
    given, tools = bytes(native.get("input", b"")), bytes(native.get("tools", b"null"))
    if _ACCOUNT.search(given) or _ACCOUNT.search(tools):
        return None
    try:
        if tools != b"null" and not all(_harmless(tool.type) for tool in _KINDS.decode(tools)):
            return None
        if given.startswith(b"[") and not all(item.type or item.role for item in _KINDS.decode(given)):
            return None  # a bare id is a reference
    except _GARBAGE:
        return None
    own: Raws = {}
    for name, value in params.items():
        if name in ("max_tokens", "max_completion_tokens"):
            own["max_output_tokens"] = value
        elif name in _SAME:
            own[name] = value
        else:
            return None
    return {**own, **native}


def plain(body: Raws) -> tuple[Raws, tuple[str, ...]]:
    """The chat request for an endpoint that speaks chat alone, and what is lost. Raises the `RequestError` that was put off."""
    raw = body.get(UNSAID)
    if raw is None:
        return body, ()
    unsaid = msgspec.json.decode(raw)
    if unsaid["refused"] is not None:
        raise RequestError(**unsaid["refused"])
    return {name: value for name, value in body.items() if name != UNSAID}, tuple(unsaid["lost"])


def unsaid(refused: RequestError | None, lost: list[str]) -> msgspec.Raw:
    """The value of `UNSAID`."""
    error = None
    if refused is not None:
        error = {"message": refused.message, "code": refused.code, "param": refused.param, "hint": refused.hint}
    return msgspec.Raw(msgspec.json.encode({"refused": error, "lost": lost}))


def _harmless(kind: Any) -> bool:
    return isinstance(kind, str) and (kind in _TOOLS or kind.startswith("web_search_"))


# -- answers --------------------------------------------------------------------------------------------


class _Response(msgspec.Struct):
    id: Any = None
    object: Any = None
    model: Any = None
    status: Any = None
    output: list[_Kind] | None = None
    incomplete_details: Any = None
    usage: Any = None
    error: msgspec.Raw = _NONE
    service_tier: Any = None


class _Event(msgspec.Struct):
    type: Any = None
    response: _Response | None = None
    item: _Kind | None = None


_RESPONSE = msgspec.json.Decoder(_Response)
_EVENT = msgspec.json.Decoder(_Event)


def read_native(body: bytes) -> Answer:
    """The facts of a whole Response. Raises ValueError on what is none, and on one that failed."""
    try:
        response = _RESPONSE.decode(body)
    except _GARBAGE as e:
        raise ValueError(f"not a Response: {e}") from None
    if response.object != "response" or response.output is None:
        raise ValueError("not a Response: it has no output")
    if response.status not in ("completed", "incomplete"):
        raise ValueError(f"a Response with the status {response.status!r}: {message_of(body) or 'without words'}")
    return Answer(_str(response.id), _str(response.model), _finish(response), _usage(response))


_MARKS = (b'"response.completed"', b'"response.incomplete"', b'"response.failed"', b'"error"')
"""In the events that tell something new once content has come. Quotes inside a text are escaped, so no answer looks like one."""


class NativeReader:
    """Collects the facts of a native stream, event by event; as `dialects.openai_stream.StreamReader`."""

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self.finish_reason = ""
        self.content_frames = 0
        self.done = False
        self.usage: Usage | None = None
        self.error: bytes | None = None

    @property
    def final(self) -> bool:
        """Whether `usage` is that of the whole answer: it comes with its end, or not at all."""
        return self.usage is not None

    @property
    def started(self) -> bool:
        """Whether content has come."""
        return self.content_frames > 0

    def skim(self, block: bytes, start: int) -> int:
        """Pass over frames of mere content: where the next one begins that must be read."""
        stop = marked(block, start, _MARKS)
        self.content_frames += block.count(b'.delta"', start, stop)
        return stop

    def read(self, frame: bytes) -> int:
        """Take note of one event; `CONTENT` or `OTHER`."""
        data = data_of(frame)
        if data is None:
            return OTHER
        try:
            event = _EVENT.decode(data)
        except _GARBAGE:
            return OTHER
        kind = event.type if isinstance(event.type, str) else ""
        if event.response is not None:
            self._take(event.response)
        if kind == "error":
            self.error = _said(data)
        elif kind in _ENDS:
            self._end(kind, event.response, data)
            return CONTENT if self.error is None else OTHER
        elif kind.endswith(".delta") or (
            kind == "response.output_item.added" and event.item is not None and event.item.type not in _SAID_LATER
        ):
            self.content_frames += 1
            return CONTENT
        return OTHER

    def _take(self, response: _Response) -> None:
        self.id = self.id or _str(response.id)
        self.model = _str(response.model) or self.model
        self.usage = _usage(response) or self.usage

    def _end(self, kind: str, response: _Response | None, data: bytes) -> None:
        self.done = True
        if kind == "response.failed":
            error = bytes(response.error) if response is not None else b""
            self.error = error if error.startswith(b"{") else _said(data)
        elif response is not None:
            self.finish_reason = _finish(response)


class NativeTap(ReaderTap):
    """The tap of this dialect."""

    def __init__(self, who: str) -> None:
        super().__init__(NativeReader(), who)

    def feed(self, data: bytes) -> bytes:
        """As `Tap.feed`."""
        block = self._splitter.block(data)
        at = 0
        while (at := at if not self.started else marked(block, at, _MARKS)) < len(block):
            end = frame_end(block, at)
            if not self._look(block[at:end]):
                return block[:at]
            at = end
        return block


# -- for pages ------------------------------------------------------------------------------------------


def assemble_native(stream: bytes) -> dict[str, Any]:
    """The whole Response that a recorded stream amounts to; of one that was cut, the items that were whole and the text."""
    splitter = FrameSplitter()
    whole: dict[str, Any] = {}
    items: list[Any] = []
    text = ""
    for frame in [*splitter.feed(stream), splitter.rest()]:
        try:
            event = msgspec.json.decode(data_of(frame) or b"", type=dict[str, Any])
        except _GARBAGE:
            continue
        kind = event.get("type")
        if isinstance(event.get("response"), dict):
            whole = event["response"]
            if kind in _ENDS:
                return whole
        elif kind == "response.output_item.done":
            items.append(event.get("item"))
            text = ""
        elif kind == "response.output_text.delta":
            text += _str(event.get("delta"))
    cut = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}] if text else []
    return whole | {"output": [*items, *cut]}


def text_of_native(answer: dict[str, Any]) -> str:
    """What a whole Response says, or the tools that it calls."""
    message = chat_of_native(answer)["choices"][0]["message"]
    calls = ", ".join(f"{call['function']['name']}()" for call in message.get("tool_calls") or ())
    return str(message.get("content") or calls)


def chat_of_native(answer: dict[str, Any]) -> dict[str, Any]:
    """A Response as a chat answer: its text, and each call under its name or else its kind."""
    text, calls = "", []
    for item in answer.get("output") or ():
        kind = _str(item.get("type")) if isinstance(item, dict) else ""
        if kind == "message":
            parts = [part for part in item.get("content") or () if isinstance(part, dict)]
            text += "".join(_str(part.get("text") or part.get("refusal")) for part in parts)
        elif kind.endswith("_call"):
            said = item.get("arguments", item.get("input", item.get("action")))
            arguments = said if isinstance(said, str) else msgspec.json.encode(said).decode()
            named = {"name": _str(item.get("name")) or kind.removesuffix("_call"), "arguments": arguments}
            calls.append({"id": _str(item.get("call_id") or item.get("id")), "type": "function", "function": named})
    message = {"role": "assistant", "content": text or None, **({"tool_calls": calls} if calls else {})}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    return {"object": "chat.completion", "model": answer.get("model"), "choices": [choice]}


def _finish(response: _Response) -> str:
    """In chat's word, as rows have it whatever the protocol was."""
    if response.status == "incomplete":
        details = response.incomplete_details
        return _FINISH.get(_str(details.get("reason")) if isinstance(details, dict) else "", "length")
    kinds = [_str(item.type) for item in response.output or ()]
    return "tool_calls" if kinds and kinds[-1].endswith("_call") else "stop"


_BY_THE_PIECE = frozenset({"file_search_call", "code_interpreter_call", "image_generation_call", "shell_call"})
"""Items of tools that OpenAI runs and bills beside the tokens, at prices that depend on more than their number."""


def _usage(response: _Response) -> Usage | None:
    told, items = response.usage, response.output or ()
    if not isinstance(told, dict):
        return None
    searches = sum(searched(item.type, item.action) for item in items)
    apart = len({item.type for item in items if isinstance(item.type, str)} & _BY_THE_PIECE)
    found = at_tier(_read(told), response.service_tier)
    if found is None or not (searches or apart):
        return found
    return msgspec.structs.replace(found, searches=searches, apart=found.apart + apart)


def searched(kind: Any, action: Any) -> bool:
    """Whether an item is a search: opening a page that was found, and finding a word in it, cost their tokens alone."""
    return kind == "web_search_call" and (not isinstance(action, dict) or action.get("type", "search") == "search")


def _read(told: dict[str, Any]) -> Usage | None:
    names = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
    names |= {f"{old}_details": f"{new}_details" for old, new in names.items()}
    return read_usage(msgspec.json.encode({names.get(name, name): value for name, value in told.items()}))


def _said(data: bytes) -> bytes:
    """The error of an `error` event: beside its `type`, or under `error`."""
    fields = msgspec.json.decode(data, type=Raws)
    own = {name: fields[name] for name in ("code", "message") if name in fields}
    return bytes(fields.get("error") or b"") if b"message" in bytes(fields.get("error") or b"") else msgspec.json.encode(own)


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""
