"""Gemini's API, what an answer used: `usageMetadata` in OpenAI's sense, and the searches that grounded it.

After https://ai.google.dev/api/generate-content#UsageMetadata and its pricing page, as generally known: not compared with a bill.
"""

from __future__ import annotations

import re
from typing import Any

Fields = dict[str, Any]
Grounded = tuple[int, int]
"""Web searches that are billed, and kinds of things that are billed at a price that nobody here knows."""

_BY_PROMPT = re.compile(r"gemini-[12](?:\D|$)")
"""Models that bill a grounded prompt once; later ones bill each query."""


def usage_of(usage: Any, ran: Grounded = (0, 0)) -> Fields | None:
    """Usage in OpenAI's sense: `completion_tokens` includes thoughts; None where it is not told.

    `promptTokenCount` includes `cachedContentTokenCount`; prompts of tool use are counted apart, and billed as input. What of
    a modality came from the cache is in `promptTokensDetails` as well: it is no part of `audio_tokens` and `image_tokens` here.
    """
    if not isinstance(usage, dict) or usage.get("promptTokenCount") is None:
        return None
    prompt = usage["promptTokenCount"] + (usage.get("toolUsePromptTokenCount") or 0)
    thoughts, said = usage.get("thoughtsTokenCount") or 0, usage.get("candidatesTokenCount")
    total = usage.get("totalTokenCount")
    if said is None:
        said = max(0, total - prompt - thoughts) if isinstance(total, int) else None
    completion = None if said is None else said + thoughts
    sent, got = _modalities(usage.get("promptTokensDetails")), _modalities(usage.get("candidatesTokensDetails"))
    for kind, many in _modalities(usage.get("toolUsePromptTokensDetails")).items():
        sent[kind] = sent.get(kind, 0) + many
    kept = _modalities(usage.get("cacheTokensDetails"))
    made: Fields = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": None if completion is None else prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": usage.get("cachedContentTokenCount") or 0,
            "audio_tokens": max(0, sent.get("AUDIO", 0) - kept.get("AUDIO", 0)),
            "image_tokens": max(0, sent.get("IMAGE", 0) - kept.get("IMAGE", 0)),
        },
        "completion_tokens_details": {"reasoning_tokens": thoughts, "audio_tokens": got.get("AUDIO", 0)},
    }
    if kept.get("AUDIO"):
        made["prompt_tokens_details"]["cached_audio_tokens"] = kept["AUDIO"]
    if got.get("IMAGE"):
        made["completion_tokens_details"]["image_tokens"] = got["IMAGE"]
    searches, apart = ran
    return made | _beside(searches, apart)


def grounded(answer: Fields) -> Grounded:
    """What grounding an answer, or a piece of a stream, ran. Some of it is free each day, so it never makes a cost exact."""
    searches = apart = 0
    for candidate in answer.get("candidates") or ():
        told = candidate.get("groundingMetadata") if isinstance(candidate, dict) else None
        if not isinstance(told, dict):
            continue
        queries = len(told.get("webSearchQueries") or ())
        searches += min(queries, 1) if _BY_PROMPT.search(str(answer.get("modelVersion") or "")) else queries
        apart += 1
    return searches, apart


def more(before: Grounded, now: Grounded) -> Grounded:
    """Of a stream whose pieces each tell all that was run so far."""
    return max(before[0], now[0]), max(before[1], now[1])


def _beside(searches: int, apart: int) -> Fields:
    made: Fields = {"server_tool_use": {"web_search_requests": searches}} if searches else {}
    return made | ({"billed_apart": apart} if apart else {})


def _modalities(details: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in details if isinstance(details, list) else ():
        if isinstance(item, dict) and isinstance(item.get("tokenCount"), int):
            found[str(item.get("modality"))] = found.get(str(item.get("modality")), 0) + item["tokenCount"]
    return found
