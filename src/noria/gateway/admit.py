"""Who may ask, for what: the first stage. Everything it needs is in memory (DESIGN §5.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from noria.contracts.error import NoriaError, NotFound, RequestError, Unauthorized, Unavailable
from noria.contracts.exchange import Exchange
from noria.contracts.port import Clock
from noria.contracts.release import App, Key, Release, Snapshot
from noria.kit.ids import digest
from noria.kit.labels import MOST

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
        if key is not None and key.tags:
            x = attributed(x, key)
        return replace(x, authorization="", key=key, release=release)

    def enter(self, x: Exchange) -> Exchange:
        """The Exchange with its key alone: for requests that name no app."""
        key = self.caller(x)
        if key is not None and key.tags:
            x = attributed(x, key)
        return replace(x, authorization="", key=key)

    def holder(self, id: str) -> Key:
        """The key of an id, as it is now: a ticket names it (`gateway.ticket`). Raises `Unauthorized` where it was revoked."""
        if id == CONSOLE.id:
            return CONSOLE
        named = [k for k in self._snapshot.keys.values() if k.id == id]
        if not named:
            raise Unauthorized("The API key of this batch was revoked.", code="invalid_api_key")
        return max(named, key=lambda k: k.expires_ns or 1 << 63)  # a replaced text of a key ends earlier than the key itself

    def caller(self, x: Exchange) -> Key | None:
        """Who asks: a key, or None where none is needed. Raises `Unauthorized`."""
        given = x.authorization
        if given or x.key is not None:
            key = x.key or self._snapshot.keys.get(digest(given.encode()))
            if key is not None:
                if key.expires_ns is not None and key.expires_ns <= self._clock.now_ns():
                    expired = "Incorrect API key provided: it has expired."
                    raise Unauthorized(expired, code="invalid_api_key", hint="Ask for a new one.")
                if key.withheld:
                    raise withheld(key)
                if key.endpoints and not covers(key.endpoints, x.path):
                    raise Unauthorized(
                        f"This API key may not call {x.path or 'this'}.",
                        code="endpoint_not_allowed",
                        hint=f"It may call: {', '.join(key.endpoints)}.",
                        status=403,
                    )
                return key
            if self._is_session(given):
                return CONSOLE
        if self._open and x.peer_is_loopback:
            return None
        if not given:
            raise Unauthorized("No API key was sent.", code="missing_api_key", hint="Send it as `Authorization: Bearer <key>`.")
        # the vendor's own words: LiteLLM tells a wrong key from any other mistake of the caller's by them alone
        wrong = "Incorrect API key provided: it is not known here."
        raise Unauthorized(wrong, code="invalid_api_key", hint="Check it for missing characters.")

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


def covers(endpoints: tuple[str, ...], path: str) -> bool:
    """Whether one of the paths, or what stands before its star, is (the beginning of) `path`.

    >>> covers(("/v1/embeddings", "/v1/files*"), "/v1/files/f1"), covers(("/v1/embeddings",), "/v1/embeddings/x")
    (True, False)
    """
    return any(path.startswith(e[:-1]) if e[-1:] == "*" else path == e for e in endpoints)


def withheld(key: Key) -> NoriaError:
    """Why a known key does not work. A guard that is gone is our configuration's fault, so not 401."""
    if key.withheld == "guard_missing":
        return Unavailable(
            f"The guard {key.guard_name!r} of this API key is not configured.",
            code="guard_missing",
            hint="Put it back into noria.yaml, or give the key another.",
        )
    return Unauthorized("This API key is disabled.", code="key_disabled", hint="Its owner can enable it again.")


def attributed(x: Exchange, key: Key) -> Exchange:
    """`x` with the key's tags: they stand above those that the request gave. Raises `RequestError` where there are too many."""
    tags = {**x.tags, **key.tags}
    if len(tags) > MOST:
        raise RequestError(
            f"This API key has {len(key.tags)} tags of its own: with those of x-noria-tags there are more than {MOST}.",
            code="invalid_tags",
            param="x-noria-tags",
        )
    lost = [name for name, value in x.tags.items() if tags[name] != value]
    if not lost:
        return replace(x, tags=tags)
    said = f"x-noria-tags: {', '.join(lost)} is set by the API key and was not changed."
    return replace(x, tags=tags, warnings=(*x.warnings, said))


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
