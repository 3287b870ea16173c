"""When two requests are the same: the key under which an answer is kept, and who shares it.

Everything counts that could change the answer, byte by byte: fields that Noria does not know, the spelling of
numbers, the order of keys below the top level. A spelling that differs costs a miss; one that was merged wrongly would
give a caller another's answer. What is left out is listed in `NOT_COUNTED`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from blake3 import blake3

from noria.contracts.exchange import Exchange
from noria.contracts.release import Caching, Release

NOT_COUNTED = frozenset(
    {"stream", "stream_options", "user", "safety_identifier", "metadata", "prompt_cache_key", "prompt_cache_retention"}
)
"""Request fields that say how an answer travels, whom it is for or how the vendor files it, never what it says."""
SPELT_OUT = frozenset({"conversation", "variables"})
"""Our own fields, which no model gets: by now the messages hold what they stand for."""
_LEFT_OUT = NOT_COUNTED | SPELT_OUT
CACHED_KINDS = frozenset({"chat", "completion"})
_GREEDY = frozenset({b"0", b"0.0"})


class Wishes(NamedTuple):
    """A request's `Cache-Control` (RFC 9111 §5.2.1), as far as it binds a cache without validation."""

    read: bool = True
    store: bool = True
    max_age: float = float("inf")
    min_fresh: float = 0.0
    only: bool = False


_DEFAULT = Wishes()


def wishes(header: str) -> Wishes:
    """What the caller asks of the cache. Unknown directives are passed over; a broken number is the strictest one.

    >>> wishes("max-age=60, only-if-cached").only
    True
    """
    if not header:
        return _DEFAULT
    given: dict[str, str] = {}
    for part in header.lower().split(","):
        name, _, value = part.partition("=")
        given.setdefault(name.strip(), value.strip().strip('"'))
    return Wishes(
        read="no-cache" not in given and "no-store" not in given,
        store="no-store" not in given,
        max_age=_seconds(given["max-age"], 0.0) if "max-age" in given else float("inf"),
        min_fresh=_seconds(given["min-fresh"], float("inf")) if "min-fresh" in given else 0.0,
        only="only-if-cached" in given,
    )


def _seconds(text: str, broken: float) -> float:
    return float(text) if text.isascii() and text.isdigit() else broken


class Sameness:
    """The keys of one release's requests. `secret` (32 bytes) makes them useless to anybody else."""

    def __init__(self, release: Release, caching: Caching, secret: bytes) -> None:
        self._secret = secret
        self._scope = caching.scope
        self._sampled = caching.sampled
        self._params = release.params
        # the id leaves names and URLs out, on purpose: for an answer it matters who gave it
        ends = [part for e in release.route for part in (e.name, e.provider, e.vendor, e.url, e.key, e.region, e.model)]
        self._release = _framed([release.app, release.name, release.id, *ends])

    def partition(self, x: Exchange) -> tuple[str, ...] | None:
        """Who shares the answers to `x`; None where the scope needs a user and none is known."""
        key = x.key
        if self._scope == "app":
            return ("app",)
        if self._scope == "team" and key is not None and key.team:
            return "team", key.org, key.team
        if self._scope == "user":
            if x.subject:
                return "subject", key.id if key else "", x.subject
            return ("user", key.org, key.team, key.user) if key is not None and key.user else None
        return ("key", key.id) if key is not None else ("open",)

    def prefix(self, x: Exchange) -> bytes | None:
        """Everything that the key of `x` stands on besides its fields; None for what is never kept."""
        if x.kind not in CACHED_KINDS or not (self._sampled or self._greedy(x)):
            return None
        who = self.partition(x)
        if who is None or x.native:  # what an endpoint is asked natively is not in `body`; the journey leaves it out here
            return None
        return _framed([x.tenant, self._release, x.kind, x.dialect, _framed(who)])

    def key(self, x: Exchange, prefix: bytes) -> bytes:
        """The key of the whole request: 32 bytes."""
        parts: list[str | bytes | msgspec.Raw] = ["exact", prefix]
        for name in sorted(x.body.keys() - _LEFT_OUT):
            parts += (name, x.body[name])
        return self.hashed(parts)

    def hashed(self, parts: Iterable[str | bytes | msgspec.Raw]) -> bytes:
        """Keyed BLAKE3 of the parts, each framed by its length: no two lists give the same bytes."""
        return blake3(_framed(parts), key=self._secret).digest()

    def _greedy(self, x: Exchange) -> bool:
        """Whether nobody asked for chance: `temperature` is 0 or not stated."""
        given = x.body.get("temperature")
        if given is not None and bytes(given) != b"null":
            return bytes(given) in _GREEDY
        return not self._params.get("temperature")


def fields_but(fields: Mapping[str, msgspec.Raw], name: str) -> list[str | msgspec.Raw]:
    """The counted fields without one of them, sorted, names and values in turn."""
    parts: list[str | msgspec.Raw] = []
    for key in sorted(fields.keys() - _LEFT_OUT - {name}):
        parts += (key, fields[key])
    return parts


def _framed(parts: Iterable[str | bytes | msgspec.Raw]) -> bytes:
    out: list[bytes] = []
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else bytes(part)
        out += (len(data).to_bytes(8, "big"), data)
    return b"".join(out)
