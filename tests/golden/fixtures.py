"""The cost fixtures: what each kind of provider bills an answer, in the shape of its own wire.

Written by us after the vendors' references (OpenAI chat and Responses, Anthropic Messages, Gemini `generateContent`, and the
look-alikes' own words for cached and reasoning tokens), with prices in the form of their price pages; no answer was recorded.
A case states how many tokens of which class were billed; its wire says so as the vendor does, inclusive or apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SHAPES = ("whole", "stream", "left before", "left after")
"""A whole answer; a stream; a caller that leaves a stream before its usage comes; one that leaves after it, before the end."""
DOORS = ("chat", "responses", "messages", "gemini")
CLASSES = (
    "input", "cached", "cached_audio", "cache_write", "cache_write_long", "audio_input", "image_input", "output", "reasoning",
    "audio_output", "image_output",
)  # fmt: skip
"""Disjoint classes of tokens; a case has some of them."""
PRICES: dict[str, dict[str, Any]] = {
    "gpt-5-mini": {"input": 0.25, "output": 2.0, "cached": 0.025, "cache_write": 0.3125, "search": 10.0},
    "gpt-5-mini-unsearched": {"input": 0.25, "output": 2.0, "cached": 0.025},
    "gpt-audio": {"input": 2.5, "output": 10.0, "audio_input": 32.0, "audio_output": 64.0},
    "claude-sonnet-4-5": {
        "input": 3.0, "output": 15.0, "cached": 0.3, "cache_write": 3.75, "cache_write_long": 6.0, "search": 10.0,
        "tiers": [{"above": 200_000, "input": 6.0, "output": 22.5, "cached": 0.6, "cache_write": 7.5, "cache_write_long": 12.0}],
    },
    "gemini-2.5-flash": {
        "input": 0.3, "output": 2.5, "cached": 0.03, "audio_input": 1.0, "cached_audio": 0.1, "image_output": 30.0, "search": 35.0,
    },
    "deepseek-reasoner": {"input": 0.28, "output": 0.42, "cached": 0.028},
    "kimi-k2": {"input": 0.6, "output": 2.5, "cached": 0.15},
    "grok-4-fast": {"input": 0.2, "output": 0.5, "cached": 0.05},
    "mistral-large": {"input": 2.0, "output": 6.0},
    "anthropic/claude-via-router": {"input": 3.0, "output": 15.0, "cached": 0.3, "cache_write": 3.75, "image_output": 30.0},
    "sonar": {"input": 1.0, "output": 1.0, "request": 0.005},
    "qwen3-served": {"input": 0.1, "output": 0.3},
    "gemini-2.5-pro": {"input": 1.25, "output": 10.0, "cached": 0.125},
}  # fmt: skip
"""US dollars a million tokens by model, as `price` in noria.yaml; a search is US dollars a thousand."""


@dataclass(frozen=True)
class Case:
    """One answer. `tokens` are those billed, by class; `so_far` the share of the output that was made when a caller left."""

    kind: str
    name: str
    model: str
    tokens: dict[str, int]
    doors: tuple[str, ...] = DOORS
    searches: int = 0
    status: str = "exact"
    """Of the cost, where its usage has come."""
    shapes: tuple[str, ...] = SHAPES
    tools: bool = False
    ask: dict[str, Any] = field(default_factory=dict)
    """What its caller asks besides, in chat's words."""
    usage: dict[str, int] = field(default_factory=dict)
    """What the row says besides what follows from `tokens`."""

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.name}"

    @property
    def sent(self) -> int:
        """All tokens of the prompt."""
        return sum(self.tokens.get(c, 0) for c in CLASSES[:7])

    @property
    def said(self) -> int:
        """All tokens of the answer."""
        return sum(self.tokens.get(c, 0) for c in CLASSES[7:])

    def of(self, name: str) -> int:
        """Tokens of a class."""
        return self.tokens.get(name, 0)

    def so_far(self) -> dict[str, int]:
        """What the endpoint had billed when its caller left: the prompt, the thoughts, and half of the words."""
        return self.tokens | {"output": self.of("output") // 2, "image_output": 0}


# -- what an answer says -------------------------------------------------------------------------------------


def words(tokens: int) -> list[str]:
    """Text of so many tokens, several in a piece, as endpoints send them that flush by time and not by token."""
    return [" lantern" * min(5, tokens - at) for at in range(0, tokens, 5)]


def half(pieces: list[Any], case: Case) -> list[Any]:
    """The pieces that had come when the caller left."""
    return pieces[: -(-(case.of("output") // 2) // 5)]


ARGUMENTS = '{"city": "Chengdu", "days": 3}'


# -- OpenAI chat and its look-alikes -------------------------------------------------------------------------


def openai_usage(c: Case) -> dict[str, Any]:
    cached = c.of("cached") + c.of("cached_audio")
    return {
        "prompt_tokens": c.sent,
        "completion_tokens": c.said,
        "total_tokens": c.sent + c.said,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": c.of("audio_input")}
        | ({"cache_write_tokens": c.of("cache_write")} if c.of("cache_write") else {}),
        "completion_tokens_details": {
            "reasoning_tokens": c.of("reasoning"), "audio_tokens": c.of("audio_output"), "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }  # fmt: skip


def _plain(c: Case) -> dict[str, Any]:
    return {"prompt_tokens": c.sent, "completion_tokens": c.said, "total_tokens": c.sent + c.said}


def deepseek_usage(c: Case) -> dict[str, Any]:
    missed = {"prompt_cache_hit_tokens": c.of("cached"), "prompt_cache_miss_tokens": c.of("input")}
    return _plain(c) | missed | {"completion_tokens_details": {"reasoning_tokens": c.of("reasoning")}}


def moonshot_usage(c: Case) -> dict[str, Any]:
    return _plain(c) | {"cached_tokens": c.of("cached")}


def xai_usage(c: Case) -> dict[str, Any]:
    """Its `completion_tokens` leave out the reasoning, its total has it."""
    return _plain(c) | {
        "completion_tokens": c.of("output"),
        "prompt_tokens_details": {"text_tokens": c.sent, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": c.of("cached")},
        "completion_tokens_details": {"reasoning_tokens": c.of("reasoning"), "audio_tokens": 0},
        "num_sources_used": 0,
    }


def gemini_openai_usage(c: Case) -> dict[str, Any]:
    """As xAI's, without any details."""
    return _plain(c) | {"completion_tokens": c.of("output")}


def openrouter_usage(c: Case) -> dict[str, Any]:
    return openai_usage(c) | {
        "cost": 0.0123,
        "is_byok": False,
        "completion_tokens_details": {"reasoning_tokens": c.of("reasoning"), "image_tokens": c.of("image_output")},
    }


def perplexity_usage(c: Case) -> dict[str, Any]:
    return _plain(c) | {"search_context_size": "low", "num_search_queries": c.searches}


def vllm_usage(c: Case) -> dict[str, Any]:
    return _plain(c) | {"prompt_tokens_details": None}


@dataclass(frozen=True)
class Chat:
    """A vendor of OpenAI's form: how it tells its usage, and in which frames of a stream."""

    usage: Callable[[Case], dict[str, Any]]
    where: str = "last"
    """`last`: a frame without choices; `finish`: with the finish reason; `all`: also in every frame, as far as it is."""
    shows: bool = False
    """Whether reasoning is shown (`reasoning_content`)."""

    def whole(self, c: Case) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(words(c.of("output"))), "refusal": None}
        if c.tools:
            message |= {"content": None, "tool_calls": [_call()]}
        if self.shows and c.of("reasoning"):
            message["reasoning_content"] = "".join(words(c.of("reasoning")))
        if c.of("audio_output"):
            message |= {"content": None, "audio": {"id": "a1", "data": "UklGRg==", "expires_at": 1, "transcript": "hello"}}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls" if c.tools else "stop"}
        return _top(c, "chat.completion") | {"choices": [choice], "usage": self.usage(c), "service_tier": "default"}

    def frames(self, c: Case) -> tuple[list[bytes], int, int]:
        """All frames, how many come before the caller leaves early, and before it leaves late."""
        told = self.usage(c)
        growing = {"usage": _plain(c) | {"completion_tokens": 1, "total_tokens": c.sent + 1}} if self.where == "all" else {}

        def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return sse(_top(c, "chat.completion.chunk") | {"choices": [choice]} | growing | more)

        made = [chunk({"role": "assistant", "content": ""})]
        if self.shows:
            made += [chunk({"reasoning_content": piece}) for piece in words(c.of("reasoning"))]
        if c.of("audio_output"):
            # PCM16 at 24 kHz: 50 ms, 2,400 bytes, a token
            made += [chunk({"audio": {"id": "a1", "data": "AAAA" * 800 * 5}}) for _ in range(c.of("audio_output") // 5)]
        spoken = [chunk({"content": piece}) for piece in words(c.of("output"))]
        if c.tools:
            spoken = [chunk({"tool_calls": [{"index": 0, **_call(""), "function": {"name": "weather", "arguments": ""}}]})]
            spoken += [
                chunk({"tool_calls": [{"index": 0, "function": {"arguments": ARGUMENTS[i : i + 10]}}]})
                for i in range(0, len(ARGUMENTS), 10)
            ]
        early = len(made) + max(1, len(half(spoken, c)))
        made += spoken
        end = {"usage": told} if self.where in ("finish", "all") else {}
        made.append(chunk({}, "tool_calls" if c.tools else "stop", **end))
        if self.where == "last":
            made.append(sse(_top(c, "chat.completion.chunk") | {"choices": [], "usage": told}))
        late = len(made)
        return [*made, b"data: [DONE]\n\n"], early, late


def _top(c: Case, kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": kind,
        "created": 1_790_000_000,
        "model": c.model + "-2026-08-07",
        "service_tier": "default",
    }


def _call(arguments: str = ARGUMENTS) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def sse(value: Any, event: str = "") -> bytes:
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + json.dumps(value).encode() + b"\n\n"


# -- OpenAI Responses ----------------------------------------------------------------------------------------


class Responses:
    """OpenAI's Responses API."""

    def _whole(self, c: Case) -> dict[str, Any]:
        output: list[dict[str, Any]] = []
        if c.of("reasoning"):
            output.append({"id": "rs_1", "type": "reasoning", "summary": []})
        for i in range(c.searches):
            output.append(
                {"id": f"ws_{i}", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}}
            )
        if c.searches:
            opened = {"type": "open_page", "url": "https://example.org"}
            output.append({"id": "ws_p", "type": "web_search_call", "status": "completed", "action": opened})
        if "file" in c.name:
            output.append({"id": "fs_1", "type": "file_search_call", "status": "completed", "queries": ["x"], "results": None})
        if c.tools:
            output.append(
                {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "weather", "arguments": ARGUMENTS}
            )
        else:
            part = {"type": "output_text", "text": "".join(words(c.of("output"))), "annotations": []}
            output.append({"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]})
        usage = {
            "input_tokens": c.sent, "input_tokens_details": {"cached_tokens": c.of("cached")},
            "output_tokens": c.said, "output_tokens_details": {"reasoning_tokens": c.of("reasoning")},
            "total_tokens": c.sent + c.said,
        }  # fmt: skip
        return {
            "id": "resp_1", "object": "response", "created_at": 1_790_000_000, "status": "completed", "model": c.model,
            "output": output, "usage": usage, "error": None, "incomplete_details": None, "service_tier": c.ask.get("service_tier", "default"),
        }  # fmt: skip

    def whole(self, c: Case) -> dict[str, Any]:
        return self._whole(c)

    def frames(self, c: Case) -> tuple[list[bytes], int, int]:
        whole = self._whole(c)
        begun = whole | {"status": "in_progress", "output": [], "usage": None}
        events = [("response.created", {"response": begun}), ("response.in_progress", {"response": begun})]
        for i, item in enumerate(whole["output"][:-1]):
            events += [("response.output_item.added", {"output_index": i, "item": item})]
            events += [("response.output_item.done", {"output_index": i, "item": item})]
        last = whole["output"][-1]
        kind = "function_call_arguments" if c.tools else "output_text"
        pieces = [ARGUMENTS[i : i + 10] for i in range(0, len(ARGUMENTS), 10)] if c.tools else words(c.of("output"))
        empty = {"arguments": ""} if c.tools else {"content": []}
        events.append(("response.output_item.added", {"output_index": 0, "item": last | empty}))
        spoken = [(f"response.{kind}.delta", {"item_id": last["id"], "output_index": 0, "delta": p}) for p in pieces]
        early = len(events) + max(1, len(half(spoken, c)))
        events += spoken
        events.append((f"response.{kind}.done", {"item_id": last["id"], "text": "".join(pieces)}))
        events.append(("response.output_item.done", {"output_index": 0, "item": last}))
        events.append(("response.completed", {"response": whole}))
        frames = [sse({"type": name, "sequence_number": i, **what}, name) for i, (name, what) in enumerate(events)]
        return frames, early, len(frames)


# -- Anthropic -----------------------------------------------------------------------------------------------


class Messages:
    """Anthropic's Messages API: what was read from and written to the cache is no part of `input_tokens`."""

    def usage(self, c: Case, output: int) -> dict[str, Any]:
        short, long = c.of("cache_write"), c.of("cache_write_long")
        made: dict[str, Any] = {
            "input_tokens": c.of("input"), "cache_creation_input_tokens": short + long, "cache_read_input_tokens": c.of("cached"),
            "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long},
            "output_tokens": output, "service_tier": "standard",
        }  # fmt: skip
        if c.of("reasoning") and output > 1:
            made["output_tokens_details"] = {"thinking_tokens": c.of("reasoning")}
        return made | ({"server_tool_use": {"web_search_requests": c.searches, "web_fetch_requests": 1}} if c.searches else {})

    def _blocks(self, c: Case) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        if c.of("reasoning"):  # summarised: what is shown is less than what is billed
            said = [{"type": "thinking_delta", "thinking": "hm"}, {"type": "signature_delta", "signature": "c2ln"}]
            blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, said))
        for i in range(c.searches):
            query = [{"type": "input_json_delta", "partial_json": '{"query": "x"}'}]
            blocks.append(({"type": "server_tool_use", "id": f"srvtoolu_{i}", "name": "web_search", "input": {}}, query))
            blocks.append(({"type": "web_search_tool_result", "tool_use_id": f"srvtoolu_{i}", "content": []}, []))
        if c.tools:
            use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
            pieces = [ARGUMENTS[i : i + 10] for i in range(0, len(ARGUMENTS), 10)]
            blocks.append((use, [{"type": "input_json_delta", "partial_json": p} for p in pieces]))
        else:
            said = [{"type": "text_delta", "text": piece} for piece in words(c.of("output"))]
            blocks.append(({"type": "text", "text": ""}, said))
        return blocks

    def whole(self, c: Case) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        for block, deltas in self._blocks(c):
            made = dict(block)
            for delta in deltas:
                for key in ("text", "thinking", "signature"):
                    if key in delta:
                        made[key] = made.get(key, "") + delta[key]
            content.append(made | ({"input": json.loads(ARGUMENTS)} if c.tools and block["type"] == "tool_use" else {}))
        return self._message(c) | {
            "content": content, "stop_reason": "tool_use" if c.tools else "end_turn", "usage": self.usage(c, c.said),
        }  # fmt: skip

    def _message(self, c: Case) -> dict[str, Any]:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": c.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def frames(self, c: Case) -> tuple[list[bytes], int, int]:
        events = [
            {"type": "message_start", "message": self._message(c) | {"usage": self.usage(c, 1) | {"server_tool_use": None}}}
        ]
        events.append({"type": "ping"})
        early = 0
        for i, (block, deltas) in enumerate(self._blocks(c)):
            events.append({"type": "content_block_start", "index": i, "content_block": block})
            made = [{"type": "content_block_delta", "index": i, "delta": d} for d in deltas]
            early = len(events) + max(1, len(half(made, c)))  # of the last one
            events += [*made, {"type": "content_block_stop", "index": i}]
        end = {"stop_reason": "tool_use" if c.tools else "end_turn", "stop_sequence": None}
        told = {k: v for k, v in self.usage(c, c.said).items() if k not in ("cache_creation", "service_tier")}
        events.append({"type": "message_delta", "delta": end, "usage": told})
        late = len(events)
        events.append({"type": "message_stop"})
        return [sse(e, str(e["type"])) for e in events], early, late


# -- Gemini --------------------------------------------------------------------------------------------------


class Generate:
    """Gemini's `generateContent`: every event of a stream tells what was used so far; cached tokens are part of the prompt's."""

    def usage(self, c: Case, said: int) -> dict[str, Any]:
        audio, kept = c.of("audio_input") + c.of("cached_audio"), c.of("cached_audio")
        text = c.sent - audio - c.of("image_input")
        sent = {"TEXT": text, "AUDIO": audio, "IMAGE": c.of("image_input")}
        made: dict[str, Any] = {
            "promptTokenCount": c.sent, "candidatesTokenCount": said, "totalTokenCount": c.sent + said + c.of("reasoning"),
            "promptTokensDetails": [{"modality": k, "tokenCount": v} for k, v in sent.items() if v],
        }  # fmt: skip
        if c.of("reasoning"):
            made["thoughtsTokenCount"] = c.of("reasoning")
        if c.of("cached") or kept:
            cached = {"TEXT": c.of("cached"), "AUDIO": kept}
            made["cachedContentTokenCount"] = c.of("cached") + kept
            made["cacheTokensDetails"] = [{"modality": k, "tokenCount": v} for k, v in cached.items() if v]
        if c.of("image_output") and said > c.of("image_output"):
            got = {"IMAGE": c.of("image_output"), "TEXT": said - c.of("image_output")}
            made["candidatesTokensDetails"] = [{"modality": k, "tokenCount": v} for k, v in got.items()]
        return made

    def _parts(self, c: Case) -> list[dict[str, Any]]:
        if c.tools:
            return [{"functionCall": {"name": "weather", "args": json.loads(ARGUMENTS)}}]
        parts: list[dict[str, Any]] = [{"text": piece} for piece in words(c.of("output"))]
        if c.of("image_output"):
            parts.append({"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}})
        return parts

    def _end(self, c: Case) -> dict[str, Any]:
        made: dict[str, Any] = {"finishReason": "STOP"}
        if c.searches:
            made["groundingMetadata"] = {"webSearchQueries": ["a", "b"], "groundingChunks": [{"web": {"uri": "https://e.org"}}]}
        return made

    def whole(self, c: Case) -> dict[str, Any]:
        candidate = {"content": {"role": "model", "parts": self._parts(c)}, "index": 0} | self._end(c)
        return {
            "candidates": [candidate], "usageMetadata": self.usage(c, c.said - c.of("reasoning")), "modelVersion": c.model,
            "responseId": "r1",
        }  # fmt: skip

    def frames(self, c: Case) -> tuple[list[bytes], int, int]:
        parts, made = self._parts(c), []
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            said = (
                c.said - c.of("reasoning") if last else min(3, c.of("output"))
            )  # behind what it has sent: it may be late to count
            candidate = {"content": {"role": "model", "parts": [part]}, "index": 0} | (self._end(c) if last else {})
            made.append(
                sse(
                    {
                        "candidates": [candidate],
                        "usageMetadata": self.usage(c, said),
                        "modelVersion": c.model,
                        "responseId": "r1",
                    }
                )
            )
        return made, max(1, min(len(half(parts, c)), len(parts) - 1)), len(made)


WIRES: dict[str, Any] = {
    "openai": Chat(openai_usage),
    "responses": Responses(),
    "anthropic": Messages(),
    "gemini": Generate(),
    "deepseek": Chat(deepseek_usage, shows=True),
    "moonshot": Chat(moonshot_usage, where="finish"),
    "xai": Chat(xai_usage, where="all"),
    "mistral": Chat(_plain, where="finish"),
    "gemini_openai": Chat(gemini_openai_usage),
    "openrouter": Chat(openrouter_usage),
    "perplexity": Chat(perplexity_usage, where="all"),
    "vllm": Chat(vllm_usage, where="all"),
}


def _cases() -> list[Case]:
    mini, claude, flash = "gpt-5-mini", "claude-sonnet-4-5", "gemini-2.5-flash"
    plain = {"input": 1200, "output": 60}
    cached = {"input": 400, "cached": 2048, "output": 60}
    thought = {"input": 1200, "output": 60, "reasoning": 640}
    called = {"input": 1200, "output": 25}
    chat, google = ("chat",), ("chat", "gemini")
    heard = {"input": 200, "audio_input": 100, "output": 20, "audio_output": 50}
    found: list[Case] = [
        Case("openai", "plain", mini, plain),
        Case("openai", "cached", mini, cached),
        Case("openai", "cache write", mini, {"input": 300, "cached": 1024, "cache_write": 1024, "output": 60}),
        Case("openai", "reasoning", mini, thought),
        Case("openai", "tools", mini, called, tools=True),
        Case("openai", "audio", "gpt-audio", heard, doors=chat, ask={"modalities": ["text", "audio"]}),
        Case("openai", "web search, uncounted", mini, plain, doors=chat, status="estimated", ask={"web_search_options": {}}),
        Case("anthropic", "plain", claude, plain),
        Case("anthropic", "cached", claude, cached),
        Case("anthropic", "cache write 5 min", claude, {"input": 300, "cache_write": 1500, "output": 60}),
        Case("anthropic", "cache write 1 h", claude, {"input": 300, "cached": 500, "cache_write": 400, "cache_write_long": 900, "output": 60}),
        Case("anthropic", "reasoning", claude, thought, ask={"reasoning_effort": "low"}),
        Case("anthropic", "tools", claude, called, tools=True),
        Case("anthropic", "web search", claude, plain, searches=2),
        Case("anthropic", "at 200,000 tokens", claude, {"input": 400, "cached": 199_600, "output": 60}, doors=("messages",), shapes=("whole", "stream")),
        Case("anthropic", "above 200,000 tokens", claude, {"input": 400, "cached": 199_601, "output": 60}, shapes=("whole", "stream", "left after")),
        Case("gemini", "plain", flash, plain),
        Case("gemini", "cached", flash, cached),
        Case("gemini", "reasoning", flash, thought),
        Case("gemini", "tools", flash, called, tools=True, shapes=("whole", "stream")),  # a call is one event, and the last
        Case("gemini", "audio, cached audio", flash, {"input": 300, "cached": 400, "cached_audio": 600, "audio_input": 250, "output": 60}, doors=google),
        Case("gemini", "image", flash, {"input": 300, "image_input": 258, "output": 60, "image_output": 1290}, doors=google),
        Case("gemini", "web search", flash, plain, searches=1, status="estimated"),
        Case("deepseek", "cached", "deepseek-reasoner", cached),
        Case("deepseek", "reasoning", "deepseek-reasoner", thought),
        Case("deepseek", "tools", "deepseek-reasoner", called, tools=True),
        Case("moonshot", "cached", "kimi-k2", cached),
        Case("xai", "cached, reasoning", "grok-4-fast", {"input": 400, "cached": 800, "output": 60, "reasoning": 320}),
        Case("mistral", "plain", "mistral-large", plain),
        Case("mistral", "tools", "mistral-large", called, tools=True),
        Case("gemini_openai", "reasoning", "gemini-2.5-pro", thought),
        Case("openrouter", "cached, cache write, reasoning", "anthropic/claude-via-router",
             {"input": 300, "cached": 700, "cache_write": 200, "output": 60, "reasoning": 128}, ask={"reasoning_effort": "low"}),
        Case("openrouter", "image", "anthropic/claude-via-router", {"input": 300, "output": 60, "image_output": 1290}, doors=chat,
             shapes=("whole", "stream", "left after")),
        Case("perplexity", "searches", "sonar", plain, searches=2, status="estimated"),
        Case("vllm", "plain", "qwen3-served", plain),
    ]  # fmt: skip
    own = ("responses",)
    found += [
        Case("responses", "plain", mini, plain, doors=own),
        Case("responses", "cached", mini, cached, doors=own),
        Case("responses", "reasoning", mini, thought, doors=own),
        Case("responses", "tools", mini, called, doors=own, tools=True),
        Case("responses", "web search", mini, plain, doors=own, searches=2),
        Case(
            "responses", "web search without a price", "gpt-5-mini-unsearched", plain, doors=own, searches=2, status="estimated"
        ),
        Case("responses", "file search", mini, plain, doors=own, status="estimated"),
        Case("responses", "flex tier", mini, plain, doors=own, status="estimated", ask={"service_tier": "flex"}),
    ]
    return found


CASES = {case.id: case for case in _cases()}
