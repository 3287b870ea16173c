"""Who may ask, for what: the first stage. Everything it needs is in memory (DESIGN §5.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from noria.contracts.error import NotFound, Unauthorized
from noria.contracts.exchange import Exchange
from noria.contracts.port import Clock
from noria.contracts.release import App, Key, Release, Snapshot
from noria.kit.ids import digest

CONSOLE = Key(id="console", hash="", name="console session")
"""Stands for the operator who asks from the console's playground."""


class Admit:
    """Checks the key, finds the app and pins the release. Raises `Unauthorized` or `NotFound`."""

    name = "admit"
    behaviour = 1

    def __init__(
        self,
        snapshot: Snapshot,
        embedders: Mapping[str, Release],
        *,
        clock: Clock,
        is_session: Callable[[str], bool],
    ) -> None:
        self._snapshot = snapshot
        self._embedders = embedders
        self._clock = clock
        self._is_session = is_session
        self._open = not snapshot.keys and not snapshot.keys_required

    def __call__(self, x: Exchange) -> Exchange:
        """The Exchange with its key and release, the caller's secret removed."""
        key = self.caller(x)
        release = self._release(x, key)
        return replace(x, authorization="", key=key, release=release)

    def caller(self, x: Exchange) -> Key | None:
        """Who asks: a key, or None where none is needed. Raises `Unauthorized`."""
        given = x.authorization
        if given:
            key = self._snapshot.keys.get(digest(given.encode()))
            if key is not None:
                if key.expires_ns is not None and key.expires_ns <= self._clock.now_ns():
                    raise Unauthorized("This API key has expired.", code="invalid_api_key", hint="Ask for a new one.")
                return key
            if self._is_session(given):
                return CONSOLE
        if self._open and x.peer_is_loopback:
            return None
        if not given:
            raise Unauthorized("No API key was sent.", code="missing_api_key", hint="Send it as `Authorization: Bearer <key>`.")
        raise Unauthorized("The API key is not known here.", code="invalid_api_key", hint="Check it for missing characters.")

    def _release(self, x: Exchange, key: Key | None) -> Release:
        if key is not None and key.apps and x.model not in key.apps:
            raise Unauthorized(
                f"This API key may not use {x.model!r}.",
                code="model_not_allowed",
                param="model",
                hint=f"It may use: {', '.join(sorted(key.apps))}.",
                status=403,
            )
        if x.kind == "embedding":
            release = self._embedders.get(x.model)
            if release is None:
                raise NotFound.nearest("model", x.model, sorted(self._embedders), code="model_not_found")
            return release
        app = self._snapshot.apps.get(x.model)
        if app is None:
            raise NotFound.nearest("model", x.model, sorted(self._snapshot.apps), code="model_not_found")
        return choose(app, x.conversation or x.subject or x.id)


def choose(app: App, unit: str) -> Release:
    """The release that `unit` (a conversation, a subject, else the exchange) gets: sticky, by weight."""
    if len(app.weights) == 1:
        return app.releases[next(iter(app.weights))]
    total = sum(app.weights.values())
    point = int(digest(f"{app.name}\0{unit}".encode())[:13], 16) / 16**13 * total
    chosen = ""
    for name, weight in app.weights.items():
        if weight > 0:
            chosen = name
            point -= weight
            if point < 0:
                break
    return app.releases[chosen]
