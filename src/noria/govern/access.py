"""Keys, the admin token and console sessions: made, hashed and checked here, stored elsewhere.

An app key opens `/v1` only, the admin token opens `/api` and the console only (DESIGN §3a.13). Keys are
256 random bits, so a fast hash of them is safe to store (no dictionary to try: NIST SP 800-63B §5.1.1.2
speaks of secrets that people choose).
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from noria.contracts.error import RequestError, StoreError, boundary
from noria.contracts.release import KEY_PREFIX, Key
from noria.kit.ids import digest, uuid7

MOST_FORMER = 4
"""Replaced texts of one key that may still work."""
SESSION_NS = 12 * 3600 * 1_000_000_000
COOKIE = "noria_session"
COOKIE_RULES: Any = {"max_age": SESSION_NS // 1_000_000_000, "httponly": True, "samesite": "strict", "path": "/"}
"""How a session's cookie is set: unreadable to scripts, never sent with a foreign page's request."""


def fresh_text() -> tuple[str, str, str]:
    """256 random bits as the text of a key, with its hash and its hint (first and last characters)."""
    text = KEY_PREFIX + base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    return text, digest(text.encode()), f"{text[:6]}…{text[-4:]}"


def new_key(*, now_ns: int, tenant: str = "local", **what: Any) -> tuple[str, Key]:
    """A fresh key: its text, to be shown once, and its record. `what` are fields of `Key`."""
    text, hashed, hint = fresh_text()
    return text, Key(id="key_" + uuid7(), hash=hashed, tenant=tenant, created_ns=now_ns, hint=hint, **what)


def rotated(key: Key, *, now_ns: int, overlap_ns: int) -> tuple[str, Key]:
    """A new text for `key`, and its record with it. The old text works for `overlap_ns` more, those before it until their
    own time; with an overlap of 0 all of them end now. Raises `RequestError` where too many would work.
    """
    text, hashed, hint = fresh_text()
    former = [(key.hash, now_ns + overlap_ns), *(f for f in key.former if f[1] > now_ns)] if overlap_ns > 0 else []
    if len(former) > MOST_FORMER:
        raise RequestError(
            f"{MOST_FORMER} replaced texts of this key still work.", code="too_many_rotations", status=409,
            hint="Wait until one has ended, or rotate with an overlap of 0, which ends them all.",
        )  # fmt: skip
    return text, replace(key, hash=hashed, hint=hint, former=tuple(former))


def works(key: Key, now_ns: int) -> bool:
    """Whether the key has not expired; one that is withheld may work again."""
    return key.expires_ns is None or key.expires_ns > now_ns


def admin_token(home: Path) -> str:
    """The token in `NORIA_HOME/admin.token` (mode 0600), made on first use."""
    path = home / "admin.token"
    with boundary(StoreError, f"admin token {path}"):
        if not path.exists():
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "w") as f:
                f.write("na-" + secrets.token_urlsafe(32) + "\n")
                f.flush()
                os.fsync(f.fileno())
            path.with_suffix(".new").rename(path)
        return path.read_text().strip()


class Sessions:
    """Console sessions without a store: `v1.<expiry>.<HMAC of expiry under the admin token>`."""

    def __init__(self, token: str) -> None:
        self._key = sha256(b"noria console session\0" + token.encode()).digest()
        self._token = token

    def is_admin(self, token: str) -> bool:
        """Whether this is the admin token (constant time)."""
        return hmac.compare_digest(token.encode(), self._token.encode())

    def issue(self, now_ns: int) -> str:
        """A session good for 12 hours."""
        expiry = str(now_ns + SESSION_NS)
        return f"v1.{expiry}.{self._sign(expiry)}"

    def valid(self, session: str, now_ns: int) -> bool:
        """Whether the session is ours and not over."""
        parts = session.split(".")
        if len(parts) != 3 or parts[0] != "v1" or not parts[1].isdigit():
            return False
        return hmac.compare_digest(parts[2], self._sign(parts[1])) and int(parts[1]) > now_ns

    def _sign(self, expiry: str) -> str:
        return hmac.new(self._key, expiry.encode(), sha256).hexdigest()


def cookie(header: str, name: str = COOKIE) -> str:
    """The value of a cookie in a `Cookie` header, or empty."""
    for part in header.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""
