"""OpenAI's wire form, moderations: which texts are to be judged, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from noria.contracts.error import RequestError
from noria.dialects.openai import read_request

MOST_INPUTS = 1024
MOST_CHARACTERS = 1_000_000
"""Of all inputs together."""
DEFAULTS = ("", "omni-moderation-latest", "text-moderation-latest", "text-moderation-stable")
"""Names under which clients ask for whatever there is."""


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Asked(msgspec.Struct):
    input: str | list[str | _Part]
    model: str = ""


class Found(msgspec.Struct, frozen=True):
    """What was found in one text: every category that was looked for, with its score in [0, 1]."""

    scores: Mapping[str, float]
    flagged: frozenset[str]


def read_moderation(body: bytes) -> tuple[str, list[str]]:
    """(model, texts). A list of parts (`{"type": "text", …}`) is one input, as at OpenAI. Raises `RequestError`."""
    fields = read_request(body)
    if "input" not in fields:
        raise RequestError("You must provide an input.", code="missing_required_parameter", param="input")
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except msgspec.ValidationError as e:
        words, _, where = str(e).partition(" - at ")
        raise RequestError(f"{words}.", code="invalid_value", param=where.strip("`$.") or None) from None
    if isinstance(asked.input, str):
        texts = [asked.input]
    else:
        parts = [p for p in asked.input if isinstance(p, _Part)]
        if any(p.type != "text" or p.text is None for p in parts):
            raise RequestError("Only text can be moderated here.", code="unsupported_feature", param="input")
        plain = [p for p in asked.input if isinstance(p, str)]
        if parts and plain:
            raise RequestError("input is a list of strings, or a list of parts.", code="invalid_value", param="input")
        texts = ["\n".join(p.text or "" for p in parts)] if parts else plain
    if not texts or len(texts) > MOST_INPUTS or sum(map(len, texts)) > MOST_CHARACTERS:
        raise RequestError(
            f"input needs 1 to {MOST_INPUTS} texts with {MOST_CHARACTERS:,} characters in all at most.",
            code="invalid_value",
            param="input",
        )
    return asked.model, texts


def write_moderation(id: str, model: str, results: Sequence[Found]) -> bytes:
    """The answer, one result a text."""
    told = [
        {
            "flagged": bool(r.flagged),
            "categories": {name: name in r.flagged for name in r.scores},
            "category_scores": dict(r.scores),
            "category_applied_input_types": {name: ["text"] for name in r.scores},
        }
        for r in results
    ]
    return msgspec.json.encode({"id": "modr-" + id, "model": model, "results": told})
