"""Token counts of one exchange, as every provider's answer is normalised to."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts in OpenAI's sense: `input` includes `cached`, `cache_write`, `audio_input` and `image_input`;
    `output` includes `reasoning` and `audio_output`. Pricing splits them into disjoint classes. Fields are added at the end.
    """

    input: int | None = None
    output: int | None = None
    cached: int = 0
    reasoning: int = 0
    cache_write: int = 0
    """Written to the provider's prompt cache for the ordinary (5 minutes) time."""
    cache_write_long: int = 0
    """Written for the long (1 hour) time, where the provider prices that apart."""
    audio_input: int = 0
    audio_output: int = 0
    image_input: int = 0
