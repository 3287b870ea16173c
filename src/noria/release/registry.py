"""Releases made by hand or by a refresh: another release with some parts exchanged, and what two of them differ in, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from noria.contracts.error import RequestError
from noria.contracts.release import Endpoint, GuardRule, Prompt, Release
from noria.contracts.routing import Routing
from noria.release.identity import reproducible


class Added(msgspec.Struct, frozen=True):
    """A release that is no part of noria.yaml (record kind `added`, ADR 23)."""

    release: Release
    made_ns: int
    by: str
    """Who made it: `cli`, `console`, `refresh:<id>`."""
    parent: str = ""
    """Id of the release that it was made from."""
    note: str = ""
    retired_ns: int = 0
    """Since when it is not served any more; 0 = it is. The record stays."""


class Parts(msgspec.Struct, frozen=True):
    """What a new release has otherwise than its parent; None = as there."""

    model: Endpoint | None = None
    """Takes the place of the first endpoint of the route; the fallbacks stay."""
    prompt: Prompt | None = None
    guard: tuple[GuardRule, ...] | None = None
    guard_name: str = ""
    params: dict[str, Any] | None = None
    """Added to the parent's; None as a value takes one away."""


def derive(parent: Release, name: str, parts: Parts, identify: Callable[[Release], str]) -> Release:
    """`parent` with other parts, under a new name. Raises `RequestError` where it would be the same release again."""
    changed = replace(parent, name=name)
    if parts.model is not None:
        changed = _with_model(changed, parts.model)
    if parts.prompt is not None:
        changed = replace(changed, prompt=parts.prompt)
    if parts.guard is not None:
        changed = replace(changed, guard=parts.guard, guard_name=parts.guard_name)
    if parts.params is not None:
        changed = replace(changed, params={k: v for k, v in {**parent.params, **parts.params}.items() if v is not None})
    made = replace(changed, id=identify(changed), reproducible=reproducible(changed))
    if made.id == parent.id:
        raise RequestError(
            f"Nothing differs from {parent.name}: it would be the same release.", code="same_release", param="name",
            hint="Change its model, prompt, guard or parameters.",
        )  # fmt: skip
    return made


def _with_model(release: Release, model: Endpoint) -> Release:
    """Another first endpoint. Its name must not be that of a fallback: routing tells endpoints apart by their names."""
    if not release.routing.plain:
        raise RequestError(
            f"{release.name} routes by rules: which of its models is meant cannot be told.", code="routed_release", param="model",
            hint="Declare the new release in noria.yaml.",
        )  # fmt: skip
    if any(e.name == model.name for e in release.route[1:]):
        raise RequestError(f"{model.name} is a fallback of {release.name} already.", code="already_in_route", param="model")
    weights = {n: w for n, w in release.routing.weights.items() if n != release.route[0].name}
    routing: Routing = replace(release.routing, weights=weights)
    return replace(release, route=(model, *release.route[1:]), routing=routing)


def differences(a: Release, b: Release) -> list[dict[str, str]]:
    """What makes two releases answer differently: part, what `a` has, what `b` has, in words; empty for the same id."""
    return [{"part": part, "first": x, "second": y} for part, x, y in _parts(a, b) if x != y]


def _parts(a: Release, b: Release) -> Iterator[tuple[str, str, str]]:
    yield "model", _route(a), _route(b)
    for n, (x, y) in enumerate(zip(a.route, b.route, strict=False)):
        where = "" if n == 0 else f" of fallback {n}"
        for key in sorted({*x.digests, *y.digests}):
            yield f"{key}{where}", x.digests.get(key, "none")[:23], y.digests.get(key, "none")[:23]
        for key in sorted({*x.options, *y.options}):
            yield f"option {key}{where}", _plain(x.options.get(key)), _plain(y.options.get(key))
        yield f"context{where}", _plain(x.context), _plain(y.context)
    yield "prompt", _prompt(a.prompt), _prompt(b.prompt)
    yield "guard", _guard(a), _guard(b)
    for key in sorted({*a.params, *b.params}):
        yield f"parameter {key}", _plain(a.params.get(key)), _plain(b.params.get(key))
    for field in ("memory", "normalize", "fit", "routing", "caching"):
        yield field, _plain(msgspec.to_builtins(getattr(a, field))), _plain(msgspec.to_builtins(getattr(b, field)))


def _route(r: Release) -> str:
    return " → ".join(f"{e.vendor or e.provider}/{e.model}" for e in r.route)


def _prompt(p: Prompt | None) -> str:
    return f"{p.name} {p.digest[:12]}" if p else "none"


def _guard(r: Release) -> str:
    rules = ", ".join(
        f"{g.check}: {g.action} on {'+'.join(g.on)}" + (f" {_plain(g.options)}" if g.options else "") for g in r.guard
    )
    return rules or "none"


def _plain(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
