"""Token counts of one exchange, as every provider's answer is normalised to."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts in OpenAI's sense: `input` includes `cached`, `cache_write`, `audio_input` and `image_input`;
    `output` includes `reasoning`, `audio_output` and `image_output`. Pricing splits them into disjoint classes. What is billed
    besides tokens comes after them. Fields are added at the end.
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
    cached_audio: int = 0
    """The part of `cached` that is audio; it is no part of `audio_input`."""
    image_output: int = 0
    searches: int = 0
    """Web searches that the provider ran and bills by the piece."""
    apart: int = 0
    """Kinds of things that the endpoint is known to bill besides, at a price that no table here has: other tools that it ran,
    another service tier. A cost beside them is an estimate.
    """
