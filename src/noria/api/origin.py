"""Requests from foreign pages and names are refused: DNS rebinding and cross-site calls (DESIGN §3a.13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def admitted(headers: Mapping[str, str], extra: Sequence[str]) -> bool:
    """Whether `Host`, and `Origin` where there is one, are names that this server answers to.

    An `Origin` must also be the very origin that is asked (same host and port): a page on another port of
    this machine is foreign.
    """
    host = headers.get("host", "")
    if not _known(_name(host), extra):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:  # a bracket that is not closed
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _known(name: str, extra: Sequence[str]) -> bool:
    return name in LOOPBACK or (bool(name) and name in extra)
