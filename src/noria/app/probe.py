"""Whether a model's endpoint can be reached and takes our key, in words: TCP, TLS, then `GET /models`, which costs nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from noria.contracts.error import NoriaError
from noria.contracts.release import Endpoint
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.http_connection import ConnectFailed, ConnectTimeout, FirstByteTimeout
from noria.settings import resolve_secret

WITHIN = 5.0
SKEW = 60.0
"""Seconds by which two clocks may differ unremarked: tokens and signatures of many vendors end within minutes."""
ANTHROPIC = "https://api.anthropic.com"
GOOGLE = "https://generativelanguage.googleapis.com"

Level = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """What was found, and what to do about it."""

    level: Level
    what: str
    do: str = ""


def base_url(endpoint: Endpoint) -> str:
    """Where the endpoint's models are listed; empty for those that run here."""
    if endpoint.provider == "gemini":
        return (endpoint.url or GOOGLE).rstrip("/").removesuffix("/v1beta") + "/v1beta"
    if endpoint.provider == "anthropic":
        return (endpoint.url or ANTHROPIC).rstrip("/").removesuffix("/v1") + "/v1"
    if endpoint.url:
        return endpoint.url.rstrip("/")
    if endpoint.provider == "openai_compatible":
        from noria.providers.openai_compatible import VENDORS

        vendor = VENDORS.get(endpoint.vendor)
        return vendor.url.rstrip("/") if vendor else ""
    return ""


async def probe(endpoint: Endpoint) -> list[Finding]:
    """What a call to the endpoint's list of models says; nothing for models that run here."""
    url = base_url(endpoint)
    if not url:
        return []
    who = f"model {endpoint.name} ({urlsplit(url).netloc})"
    try:
        secret = resolve_secret(endpoint.key) if endpoint.key else ""
    except NoriaError:
        return []  # told with the configuration
    client = HttpClient(url, connect_timeout=WITHIN, first_timeout=WITHIN, idle_timeout=WITHIN, total_timeout=2 * WITHIN)
    try:
        status, headers, body = await client.send("GET", "/models", credentials(endpoint, secret), b"")
    except HttpCallError as e:
        return [_unreachable(who, url, e)]
    finally:
        await client.close()
    return [_judged(who, endpoint, status, body), *_skew(who, headers)]


def credentials(endpoint: Endpoint, secret: str) -> list[tuple[str, str]]:
    """The headers by which an endpoint knows us."""
    if endpoint.provider == "gemini":
        return [("x-goog-api-key", secret)] if secret else []
    if endpoint.provider == "anthropic":
        return [("x-api-key", secret), ("anthropic-version", "2023-06-01")] if secret else []
    if not secret:
        return []
    return [("api-key", secret)] if endpoint.vendor.startswith("azure") else [("authorization", f"Bearer {secret}")]


def _unreachable(who: str, url: str, error: HttpCallError) -> Finding:
    text = str(error)
    if isinstance(error, ConnectTimeout):
        return Finding("fail", f"{who} does not take connections: none within {WITHIN:g} s.", "Look at firewalls and proxies.")
    if isinstance(error, ConnectFailed):
        lower = text.lower()
        if "certificate" in lower or "ssl" in lower or "tls" in lower:
            return Finding(
                "fail", f"{who}: TLS fails: {text}", "Look at the server's certificate, this machine's CAs and its clock."
            )
        if "name" in lower or "nodename" in lower or "resolution" in lower:
            return Finding("fail", f"{who}: the host name is not known: {text}", f"Look at the url {url}, and at DNS.")
        return Finding("fail", f"{who} refuses connections: {text}", f"Is the server running at {url}?")
    if isinstance(error, FirstByteTimeout):
        return Finding("fail", f"{who} takes connections but does not answer within {WITHIN:g} s.", "The server may be stuck.")
    return Finding("fail", f"{who} does not speak HTTP as it should: {text}", f"Is {url} the right address?")


def _judged(who: str, endpoint: Endpoint, status: int, body: bytes) -> Finding:
    if status in (401, 403):
        do = f"Look at {endpoint.key}." if endpoint.key else f"Set models.{endpoint.name}.key."
        return Finding("fail", f"{who} refuses the API key ({status}).", do)
    if status == 404 or status == 405:
        return Finding("ok", f"{who} is reached; it lists no models ({status}), so the key was not checked")
    if status == 429:
        return Finding("warn", f"{who} limits us just now (429).")
    if status >= 400:
        return Finding("fail", f"{who} answers {status}.", "Its own logs or status page will say why.")
    names = _names(body)
    if names and endpoint.model not in names:
        near = ", ".join(sorted(names)[:5])
        return Finding("warn", f"{who} does not list the model {endpoint.model!r}.", f"It lists {len(names)}, such as {near}.")
    return Finding("ok", f"{who} is reached and takes the key" if endpoint.key else f"{who} is reached")


def _names(body: bytes) -> set[str]:
    try:
        data = msgspec.json.decode(body)["data"]
        return {str(m["id"]).removeprefix("models/") for m in data}
    except (msgspec.MsgspecError, KeyError, TypeError):
        return set()


def _skew(who: str, headers: Sequence[tuple[str, str]]) -> list[Finding]:
    date = next((v for k, v in headers if k == "date"), "")
    try:
        there = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return []
    off = time.time() - there
    if abs(off) < SKEW:
        return []
    word = "ahead of" if off > 0 else "behind"
    return [
        Finding(
            "warn",
            f"this machine's clock is {abs(off):.0f} s {word} that of {who}.",
            "Set it (NTP): keys and limits have times.",
        )
    ]
