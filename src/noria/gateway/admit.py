"""Who may ask, for what: the first stage. Everything it needs is in memory (DESIGN §5.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from noria.contracts.error import NoriaError, NotFound, RequestError, Unauthorized, Unavailable
from noria.contracts.evaluation import EVALUATOR, TAGS, Pass
from noria.contracts.exchange import Exchange
from noria.contracts.port import Clock
from noria.contracts.release import KEY_PREFIX, App, Key, Release, Snapshot
from noria.gateway.ticket import MARK
from noria.kit.ids import digest
from noria.kit.labels import MOST

CONSOLE = Key(id="console", hash="", name="console session")
"""Stands for the operator who asks from the console's playground."""
PINNED = ("noria.release", "pinned")
"""The tag of an exchange that asked for a release by name (`support@staging`): it was not assigned by chance, so that no
rollout counts it."""


def no_pass(text: str) -> Pass | None:  # noqa: ARG001  what reads passes takes it
    """Where there are no evaluations."""
    return None


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
        passed: Callable[[str], Pass | None] = no_pass,
    ) -> None:
        self._snapshot = snapshot
        self._embedders = embedders
        self._clock = clock
        self._is_session = is_session
        self._passed = passed
        self._open = not snapshot.keys and not snapshot.keys_required

    def __call__(self, x: Exchange) -> Exchange:
        """The Exchange with its key and release, the caller's secret removed."""
        if x.authorization.startswith(MARK):
            return self._evaluated(x, self._passed(x.authorization))
        key = self.caller(x)
        release = self._release(x, key)
        if key is not None and key.tags:
            x = attributed(x, key)
        if x.model != release.app or x.pin:  # an alias, or an operator's choice
            x = replace(x, model=release.app, tags={**x.tags, PINNED[0]: PINNED[1]})
        return replace(x, authorization="", key=key, release=release)

    def _evaluated(self, x: Exchange, given: Pass | None) -> Exchange:
        """An evaluation's exchange: what it may ask is in its pass."""
        if given is None:
            raise Unauthorized("This pass is over, or not ours.", code="invalid_pass", hint="Ask the keeper for another.")
        key = Key(EVALUATOR, "", name=f"evaluation {given.evaluation}", tenant=x.tenant, apps=(given.app,), priority="low",
                  tags={**TAGS, PINNED[0]: PINNED[1], "evaluation": given.evaluation})  # fmt: skip
        if x.kind not in ("chat", "completion") or (x.pin and x.pin != given.release):
            wrong = "This pass is for another release, or another kind of request."
            raise Unauthorized(wrong, code="pass_not_valid", status=403)
        x = attributed(replace(x, model=x.model.partition("@")[0], pin=given.release, priority="low"), key)
        return replace(x, authorization="", key=key, release=self._release(x, key))

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
        if self._open and x.peer_is_loopback and not given.startswith(KEY_PREFIX):
            return None  # whoever has a key is not nobody: this worker may just not know of the first one yet
        if not given:
            raise Unauthorized("No API key was sent.", code="missing_api_key", hint="Send it as `Authorization: Bearer <key>`.")
        # the vendor's own words: LiteLLM tells a wrong key from any other mistake of the caller's by them alone
        wrong = "Incorrect API key provided: it is not known here."
        raise Unauthorized(wrong, code="invalid_api_key", hint="Check it for missing characters.")

    def _release(self, x: Exchange, key: Key | None) -> Release:
        name, at, alias = x.model.partition("@")
        if at and (x.kind == "embedding" or x.model in self._snapshot.apps):
            name, at = x.model, ""
        if key is not None and key.apps and name not in key.apps:
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
        app = self._snapshot.apps.get(name)
        if app is None:
            raise NotFound.nearest("model", x.model, sorted(self._snapshot.apps), code="model_not_found")
        if x.pin:
            return pinned(app, x.pin, key)
        if at:
            return named(app, alias, operator=key is None or key.id == CONSOLE.id)
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


def pinned(app: App, wanted: str, key: Key | None) -> Release:
    """The release that an operator or an evaluation names, by name or id, whatever its weight."""
    if key is None or key.id not in (CONSOLE.id, EVALUATOR):
        raise Unauthorized(
            "x-noria-release names a release; that is for operators and evaluations.", code="release_not_allowed", status=403,
            hint="Leave the header out: the app chooses.",
        )  # fmt: skip
    found = app.releases.get(wanted) or next((r for r in app.releases.values() if r.id == wanted), None)
    if found is None:
        raise NotFound.nearest("release", wanted, sorted(app.releases), code="release_not_found")
    return found


def named(app: App, alias: str, *, operator: bool) -> Release:
    """The release behind an environment's name; `production` is the one with the largest share unless it was given another.
    An operator may also name the release itself, as evaluations do: callers see what they were meant to see.

    Raises `NotFound` with the names that there are.
    """
    chosen = app.aliases.get(alias)
    if chosen is None and alias == "production":
        chosen = max(app.weights, key=lambda n: app.weights[n])
    if chosen is None and operator:
        chosen = alias
    if chosen is None or chosen not in app.releases:
        known = [f"{app.name}@{n}" for n in sorted({*app.aliases, "production"})]
        raise NotFound.nearest("model", f"{app.name}@{alias}", known, code="model_not_found")
    return app.releases[chosen]


def choose(app: App, unit: str) -> Release:
    """The release that `unit` (a conversation, a subject, else the exchange) gets: sticky, by weight.

    Weighted rendezvous hashing (Schindelhauer, Schomaker 2005): each release draws a lot for the unit, `-weight / ln(u)`, and
    the largest wins, with probability weight / total. A release whose weight rises takes units from others and loses none;
    nobody is moved between two others. A release of another name draws other lots, so that it is not always the same people
    who try what is new.
    """
    if len(app.weights) == 1:
        return app.releases[next(iter(app.weights))]
    taking = [(name, weight) for name, weight in app.weights.items() if weight > 0]
    if len(taking) == 1:
        return app.releases[taking[0][0]]
    return app.releases[max(taking, key=lambda t: _lot(f"{app.name}\0{t[0]}\0{unit}", t[1]))[0]]


def _lot(text: str, weight: float) -> float:
    return -weight / math.log((int(digest(text.encode())[:13], 16) + 0.5) / 16**13)
