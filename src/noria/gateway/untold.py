"""Tokens of an exchange whose endpoint did not tell them, or not to the end: what its cost is estimated by.

An estimate may be too high and should not be too low: three ASCII bytes or one other character of the request and of the
answer's text are a token, an answer has at least as many tokens as frames, and an image is `IMAGE`. What the model thought
without showing it is not in the bytes: where it may have, the whole output limit counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from noria.contracts.exchange import Dialect, Exchange, Usage
from noria.contracts.release import Endpoint
from noria.dialects.responses_native import searched
from noria.dialects.sse import FrameSplitter, data_of
from noria.gateway.bound import DEFAULT_OUTPUT, answers, others, output_limit

IMAGE = 1000
"""Tokens of an image: between 85 and some 5,000 with today's vendors, mostly below this."""
AUDIO_BYTES = 2400
"""Bytes of PCM16 at 24 kHz that OpenAI counts as a token of audio in an answer: 20 tokens a second."""
PICTURE = 1300
"""Tokens of an image in an answer: Gemini counts 1,290."""
CALL = 48
"""Tokens of a tool call besides its name and arguments: Anthropic's smallest calls are counted at some 50 tokens."""
BYTES = 3
"""ASCII bytes of a token: tokenizers of 2023 and later average 3.5 to 4.5 on prose, near 3 on code and JSON."""
_DATA_URL = re.compile(rb'"data:[^"]*"')
_THINKERS = re.compile(r"(?:^|/)(?:o\d|gpt-[5-9]|gemini-(?:2\.5|[3-9])|grok-(?:3-mini|[4-9])|deepseek-(?:reasoner|r\d))")
"""Models that think unless told not to, and show nothing of it or a summary."""
_SUMMARIES = {
    "anthropic": (b'"thinking', b'"reasoning_content"'),
    "gemini": (b'"reasoning_content"',),
    "responses": (b'"reasoning"',),
}
"""Provider, or dialect → what stands in a stream that shows thoughts in short."""
_NOT_SAID = frozenset(
    {
        "id", "type", "role", "index", "signature", "thoughtSignature", "thought_signature", "thinking_blocks", "reasoning_details",
        "extra_content", "mimeType", "data", "call_id", "item_id", "reasoning", "image_url",
    }
)  # fmt: skip
"""Keys whose strings are no words of the model's, or its words a second time."""
_BEGUN, _ENDED = "response.output_item.added", "response.output_item.done"
_HOSTED = ("web_search_options", "plugins", "search_parameters")
_OFFERS = frozenset({*_HOSTED, "tools"})
_NOTHING = (b"null", b"[]")
_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Told(Protocol):
    """What a reader of the stream knows (`dialects.native.Reader`)."""

    @property
    def content_frames(self) -> int:
        """Frames with content so far."""
        ...


def counted(x: Exchange, dialect: Dialect, raw: Sequence[bytes], told: Told | None, hidden: bool = False) -> Usage:
    """Tokens by our own count. `raw` is what came of the answer, `told` the reader of a stream (None = a whole answer), `hidden`
    whether it may have been preceded by thoughts that are not shown.
    """
    taken = _tokens(b"".join(_DATA_URL.sub(b'""', bytes(value)) for value in x.body.values())) + IMAGE * others(x)[0]
    if x.kind == "embedding":
        return Usage(taken, 0)
    if not raw:
        return Usage(taken, _limit(x))
    if told is None:
        return Usage(taken, _tokens(b"".join(raw)))
    spoken, sound, pictures = _spoken(b"".join(raw), dialect)
    output = max(told.content_frames, spoken)
    if hidden:
        output = max(output, _limit(x))
    ran = _searches(raw) if dialect == "responses" else 0
    return Usage(taken, output + sound + pictures, audio_output=sound, image_output=pictures, searches=ran)


def completed(told: Usage, own: Usage) -> Usage:
    """What an endpoint told before the end of its answer, with our own count of what it may have said since."""
    return replace(
        told,
        input=told.input or own.input,
        output=max(told.output or 0, (own.output or 0) + told.reasoning),
        audio_output=max(told.audio_output, own.audio_output),
        image_output=max(told.image_output, own.image_output),
        searches=max(told.searches, own.searches),
    )


def thinks(x: Exchange, dialect: Dialect, raw: Sequence[bytes], endpoint: Endpoint) -> bool:
    """Whether the model may have thought more than it shows: it shows a summary, it was asked to, or it is known to."""
    signs = _SUMMARIES.get(endpoint.provider if dialect == "openai" else dialect, ())
    if any(sign in block for block in raw for sign in signs):
        return True
    params = x.release.params if x.release is not None else {}
    for name in ("reasoning_effort", "reasoning", "thinking"):
        given = x.body.get(name)
        value = params.get(name) if given is None else _decoded(bytes(given))
        if isinstance(value, dict):
            value = value.get("type") or value.get("effort")
        if value in ("none", "disabled"):
            return False
        if value is not None:
            return True
    return _THINKERS.search(endpoint.model) is not None


def ran_unseen(x: Exchange, dialect: Dialect, endpoint: Endpoint | None) -> bool:
    """Whether the endpoint was offered tools that it runs itself and bills by the piece, in a protocol that does not count them."""
    if dialect != "openai" or endpoint is None or endpoint.provider != "openai_compatible":
        return False
    if endpoint.model.endswith(":online"):
        return True
    if _OFFERS.isdisjoint(x.body):
        return False
    if any(bytes(x.body.get(name, b"null")) not in _NOTHING for name in _HOSTED):
        return True
    listed = _decoded(bytes(x.body.get("tools", b"null")))
    return any(isinstance(t, dict) and t.get("type", "function") not in ("function", "custom") for t in listed or ())


def _limit(x: Exchange) -> int:
    """The most that may have been said: the limit, else the one that stands in under a budget."""
    return answers(x) * (output_limit(x) or DEFAULT_OUTPUT)


def _tokens(text: bytes) -> int:
    escaped = text.count(b"\\u")
    letters = text.decode("utf-8", "ignore")
    plain = len(letters.encode("ascii", "ignore"))
    return -(-(plain - 6 * escaped) // BYTES) + len(letters) - plain + escaped


def _spoken(raw: bytes, dialect: Dialect) -> tuple[int, int, int]:
    """Tokens of the text, of the sound and of the images of a stream's frames."""
    splitter = FrameSplitter()
    text, sound, pictures, calls = list[str](), 0, 0, 0
    for frame in [*splitter.feed(raw), splitter.rest()]:
        event = _decoded(data_of(frame) or b"")
        if not isinstance(event, dict):
            continue
        for said in _deltas(event, dialect):
            text += _strings(said)
            calls += _calls(said)
            pictures += _pictures(said)
            audio = said.get("audio") if isinstance(said, dict) else None
            if isinstance(audio, dict) and isinstance(audio.get("data"), str):
                sound += len(audio["data"]) * 3 // 4
    return _tokens("".join(text).encode()) + CALL * calls, -(-sound // AUDIO_BYTES), PICTURE * pictures


def _deltas(event: dict[str, Any], dialect: Dialect) -> Iterator[Any]:
    """What one frame adds to the answer."""
    if dialect == "responses":
        yield event.get("delta") if "delta" in event else event.get("item") if event.get("type") == _BEGUN else None
    elif dialect == "anthropic":
        yield event.get("delta") if event.get("type") == "content_block_delta" else event.get("content_block")
    else:
        for choice in event.get("candidates" if dialect == "gemini" else "choices") or ():
            if isinstance(choice, dict):
                yield choice.get("content" if dialect == "gemini" else "delta") or choice.get("text")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, int | float):
        yield str(value)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        if "reasoning" in value and "reasoning_content" not in value:
            yield from _strings(value["reasoning"])
        for key, item in value.items():
            if key not in _NOT_SAID:
                yield from _strings(item)


def _searches(raw: Sequence[bytes]) -> int:
    """Web searches that a Responses stream tells of: all other protocols tell them with their usage, or not at all."""
    if not any(b'"web_search_call"' in block for block in raw):
        return 0
    events = [_decoded(data_of(frame) or b"") for frame in FrameSplitter().feed(b"".join(raw))]
    items = [e["item"] for e in events if isinstance(e, dict) and e.get("type") == _ENDED and isinstance(e.get("item"), dict)]
    return sum(searched(item.get("type"), item.get("action")) for item in items)


def _calls(said: Any) -> int:
    """Tool calls that begin in what a frame adds."""
    if not isinstance(said, dict):
        return 0
    if isinstance(said.get("tool_calls"), list):
        return sum(isinstance(call, dict) and bool(call.get("id")) for call in said["tool_calls"])
    parts = said.get("parts")
    called = sum(isinstance(part, dict) and "functionCall" in part for part in parts) if isinstance(parts, list) else 0
    return called + str(said.get("type")).endswith(("tool_use", "_call"))


def _pictures(said: Any) -> int:
    if not isinstance(said, dict):
        return 0
    made = len(said.get("images") or ())
    return made + sum(isinstance(part, dict) and "inlineData" in part for part in said.get("parts") or ())


def _decoded(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except _GARBAGE:
        return None
