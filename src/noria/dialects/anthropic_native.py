"""Anthropic's Messages API passing through: facts of answers that keep their bytes, and requests that keep theirs."""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.exchange import Answer, Usage
from noria.dialects.anthropic import FINISH, searched, usage_of
from noria.dialects.openai_answer import read_usage
from noria.dialects.openai_stream import CONTENT, OTHER
from noria.dialects.sse import FrameSplitter, data_of, marked
from noria.dialects.upstream import ReaderTap

_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_SAME = frozenset({"temperature", "top_p", "top_k", "max_tokens", "thinking", "service_tier"})
"""Parameters of a release that mean the same here."""

BETAS = (
    "interleaved-thinking-", "dev-full-thinking-", "fine-grained-tool-streaming-", "token-efficient-tools-", "output-128k-",
    "output-300k-", "context-1m-", "context-management-", "prompt-caching-", "extended-cache-ttl-", "cache-diagnosis-",
    "computer-use-", "pdfs-", "structured-outputs-", "token-counting-", "model-context-window-exceeded-", "claude-code-",
    "effort-", "advanced-tool-use-", "tool-search-", "tool-examples-", "thinking-", "task-budgets-", "compact-", "inline-tools-",
    "mid-conversation-", "message-threads-",
)  # fmt: skip
"""Beginnings of the beta features that a caller may turn on: those that change nothing but this request and its answer.

Left out, with reasons: those that make the endpoint call addresses of the caller's choice (`mcp-`), answer with another
model (`server-side-fallback-`, `fallback-credit-`, `advisor-tool-`), change the price class (`fast-mode-`), reach files,
memories, skills or settings of the operator's account (`files-api-`, `skills-`, `agent-memory-`, `managed-agents-`,
`user-profiles-`, `webhooks-`, …), or claim another way to sign in (`oauth-`).
"""


def allowed_betas(wanted: str, allowed: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """The features of an `anthropic-beta` header that may be forwarded, and those that may not."""
    names = [name for piece in wanted.split(",") if (name := piece.strip())]
    return [n for n in names if n.startswith((*BETAS, *allowed))], [n for n in names if not n.startswith((*BETAS, *allowed))]


def native_params(params: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw] | None:
    """Parameters of a release as fields of a Messages request; None where one of them needs translating."""
    made = {}
    for name, value in params.items():
        if name == "max_completion_tokens":
            made["max_tokens"] = value
        elif name == "stop" and bytes(value).startswith(b"["):
            made["stop_sequences"] = value
        elif name in _SAME:
            made[name] = value
        else:
            return None
    return made


def read_native(body: bytes) -> Answer:
    """The facts of a whole Messages answer. Raises ValueError on what is none."""
    try:
        message = msgspec.json.decode(body, type=_Message)
    except _GARBAGE as e:
        raise ValueError(f"not a Messages answer: {e}") from None
    if message.type != "message" or not isinstance(message.content, list):
        raise ValueError("not a Messages answer: it has no content")
    return Answer(_str(message.id), _str(message.model), _finish(message.stop_reason), _usage(message.usage))


_MARKS = (b"event: m", b"event: content_block_sta", b"event: e")
"""In the events that tell something new once content has come; a line of its own never stands inside a text."""


class NativeReader:
    """Collects the facts of a native stream, frame by frame; as `dialects.openai_stream.StreamReader`.

    Only the few events that tell something are decoded: a delta costs a scan for its kind.
    """

    def __init__(self) -> None:
        self.id = ""
        self.model = ""
        self.finish_reason = ""
        self.content_frames = 0
        self.done = False
        self.final = False
        self.error: bytes | None = None
        self._told: dict[str, Any] = {}

    @property
    def usage(self) -> Usage | None:
        """As far as it was told: the last word on each count stands."""
        return _usage(self._told) if self._told else None

    @property
    def started(self) -> bool:
        """Whether content has come."""
        return self.content_frames > 0

    def skim(self, block: bytes, start: int) -> int:
        """Pass over frames of mere content: where the next one begins that must be read."""
        stop = marked(block, start, _MARKS)
        self.content_frames += block.count(b"event: content_block_d", start, stop)
        return stop

    def read(self, frame: bytes) -> int:
        """Take note of one frame; `CONTENT` or `OTHER`."""
        if frame.startswith(b"event: content_block_delta"):
            self.content_frames += 1
            return CONTENT
        if frame.startswith((b"event: content_block_stop", b"event: ping")):
            return OTHER
        event = _event(frame)
        kind = event.get("type")
        if kind == "content_block_delta":
            self.content_frames += 1
            return CONTENT
        if kind == "message_start":
            message = event.get("message") or {}
            self.id, self.model = _str(message.get("id")), _str(message.get("model"))
            self._take(message.get("usage"))
        elif kind == "content_block_start":
            self._take(searched(event.get("content_block") or {}, self._told))
            if (event.get("content_block") or {}).get("type") != "text" or event["content_block"].get("text"):
                self.content_frames += 1
                return CONTENT
        elif kind == "message_delta":
            self.finish_reason = _finish((event.get("delta") or {}).get("stop_reason")) or self.finish_reason
            self._take(event.get("usage"))
            self.final = self.final or bool(self.finish_reason and event.get("usage"))
            return CONTENT
        elif kind == "message_stop":
            self.done = True
        elif kind == "error":
            self.error = msgspec.json.encode(event.get("error") or {})
        return OTHER

    def _take(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._told |= {key: value for key, value in usage.items() if value is not None}


class NativeTap(ReaderTap):
    """The tap of this dialect."""

    def __init__(self, who: str) -> None:
        super().__init__(NativeReader(), who)


def assemble_native(stream: bytes) -> dict[str, Any]:
    """The whole message that a recorded native stream amounts to. For display: garbage is skipped, an error is kept."""
    splitter = FrameSplitter()
    whole: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    for frame in [*splitter.feed(stream), splitter.rest()]:
        event = _event(frame)
        kind, index = event.get("type"), event.get("index")
        if kind == "message_start" and isinstance(event.get("message"), dict):
            whole = dict(event["message"])
        elif kind == "content_block_start" and isinstance(index, int) and isinstance(event.get("content_block"), dict):
            blocks[index] = dict(event["content_block"])
        elif kind == "content_block_delta" and isinstance(event.get("delta"), dict):
            _join(blocks.setdefault(index or 0, {}), event["delta"])
        elif kind == "message_delta":
            whole |= event.get("delta") or {}
            whole["usage"] = (whole.get("usage") or {}) | {k: v for k, v in (event.get("usage") or {}).items() if v is not None}
        elif kind == "error":
            whole["error"] = event.get("error")
    for block in blocks.values():
        if isinstance(arguments := block.pop("partial_json", None), str):
            try:
                block["input"] = msgspec.json.decode(arguments or "{}")
            except _GARBAGE:
                block["input"] = arguments
    return whole | {"content": [blocks[index] for index in sorted(blocks)]}


def text_of_native(answer: dict[str, Any]) -> str:
    """What a whole message says, or the tools that it calls: for a line of a list."""
    blocks = [b for b in answer.get("content") or () if isinstance(b, dict)]
    text = "".join(str(b.get("text") or "") for b in blocks)
    return text or ", ".join(f"{b.get('name', '')}()" for b in blocks if b.get("type") == "tool_use")


class _Message(msgspec.Struct):
    id: Any = None
    type: Any = None
    model: Any = None
    content: Any = None
    stop_reason: Any = None
    usage: Any = None


_DELTAS = ("text", "thinking", "signature", "partial_json")


def _join(block: dict[str, Any], delta: dict[str, Any]) -> None:
    for key in _DELTAS:
        if isinstance(delta.get(key), str):
            block[key] = str(block.get(key) or "") + delta[key]
    if "citation" in delta:
        block["citations"] = [*(block.get("citations") or ()), delta["citation"]]


def _event(frame: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data_of(frame) or b"", type=dict[str, Any])
    except _GARBAGE:
        return {}


def _usage(told: Any) -> Usage | None:
    made = usage_of(told) if isinstance(told, dict) else None
    return read_usage(msgspec.json.encode(made)) if made else None


def _finish(reason: Any) -> str:
    """In chat's word, as rows have it whatever the protocol was."""
    return FINISH.get(reason, "stop") if isinstance(reason, str) else ""


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""
