"""What of a snapshot serves requests beside the journey of a prompt: whom to pass verbatim ones to, who moderates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from noria.contracts.error import ConfigError, NotFound
from noria.contracts.exchange import Exchange
from noria.contracts.release import Endpoint, GuardRule, Snapshot
from noria.contracts.stage import Check, Provider
from noria.dialects.openai_moderation import DEFAULTS
from noria.gateway import constraint
from noria.gateway.admit import Admit
from noria.kit import extension

HINT = "A request names an app in `model`; for those that name none, write `serve.passthrough: <model>` in noria.yaml."


def passing(x: Exchange, snapshot: Snapshot, provider: Callable[[Endpoint], Provider]) -> tuple[Endpoint, Provider]:
    """The first endpoint that may be asked and passes anything through. Raises `NotFound`, `RequestError`."""
    if x.release is not None:
        route: tuple[Endpoint, ...] = x.release.route
        own = x.release.routing.regions
    else:
        route = (snapshot.passthrough,) if snapshot.passthrough is not None else ()
        own = ()
    able = [e for e in route if type(provider(e)).raw is not Provider.raw]
    if not able:
        raise NotFound(f"Unknown request URL: {x.path[:200]}.", code="unknown_url", hint=HINT)
    waiting = None
    for endpoint in constraint.allowed(x, able, own):
        found = provider(endpoint)
        waiting = found.ready
        if waiting is None:
            return endpoint, found
    assert waiting is not None
    raise waiting


class Moderators:
    """Checks by the name of an app or of a guard policy; made on first use."""

    def __init__(self, snapshot: Snapshot, admit: Admit) -> None:
        self._snapshot = snapshot
        self._admit = admit
        self._made: dict[str, tuple[Check, ...]] = {}

    def of(self, x: Exchange) -> tuple[Exchange, Sequence[Check]]:
        """`x` admitted, with the checks that its `model` names. Raises `NotFound`, `Unauthorized`."""
        if x.model in self._snapshot.apps:
            x = self._admit(x)
            assert x.release is not None
            return x, self._checks(f"release {x.release.id}", x.release.guard)
        x = self._admit.enter(x)
        if x.model in self._snapshot.guards:
            return x, self._checks(f"guard {x.model}", self._snapshot.guards[x.model])
        if x.model in DEFAULTS:
            if "" not in self._made:
                self._made[""] = tuple(_usual())
            return replace(x, model=""), self._made[""]
        known = [*self._snapshot.guards, *self._snapshot.apps]
        raise NotFound.nearest("model", x.model, known, code="model_not_found")

    def _checks(self, name: str, rules: Sequence[GuardRule]) -> tuple[Check, ...]:
        """The checks of a policy that can judge one text by itself."""
        if name not in self._made:
            made = [_make(r.check, r.options) for r in rules]
            self._made[name] = tuple(c for c in made if c.either or c.needs == {"input"})
        return self._made[name]


def _usual() -> list[Check]:
    """Every installed check that has a category and can be made without options."""
    found = []
    for id in extension.ids("checks"):  # noqa: A001  the field's word
        try:
            cls = extension.load("checks", id, Check)
            if cls.category:
                found.append(_make(id, {}))
        except ConfigError:  # an optional library is not there: what is there moderates
            continue
    return found


def _make(id: str, options: dict[str, object]) -> Check:
    cls = extension.load("checks", id, Check)
    return cls(msgspec.convert(options, cls.Config))
