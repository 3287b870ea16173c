"""A release that was made while the service ran, written as noria.yaml has releases: `noria release export` (DESIGN §3a.2).

What is written is read again and resolved; it is given out only where that is the same release, by its id.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from noria.app.added import Registered
from noria.app.definition import Definition
from noria.contracts.error import RequestError
from noria.contracts.release import Endpoint, Release, Timeouts
from noria.settings import Loaded, Settings, loads
from noria.settings.routing import flat
from noria.settings.tree import ReleaseSettings


class Exported(msgspec.Struct, frozen=True):
    """A release as text."""

    app: str
    name: str
    id: str
    added: str
    """YAML of what the file lacks."""
    path: str
    """The file that the service was started with."""
    text: str
    """All of it, with the release in it; comments stay."""


class Source(msgspec.Struct, frozen=True):
    """What an export is made from."""

    path: Path
    loaded: Loaded
    known: Registered
    stored: Definition
    define: Callable[[Loaded], Definition]
    shares: Mapping[str, float]
    """Of the app's traffic, now."""


def exported(source: Source, app: str, release: Release) -> Exported:
    """`release` of `app` as part of the file. Raises `RequestError` where the file has it, or cannot say it."""
    filed = source.stored.apps[app].releases
    if release.name in filed and filed[release.name].id == release.id:
        raise RequestError(f"{release.name} of {app} is in {source.path} already.", code="in_file", status=409, param="name")
    models, prompts, made = _parts(source.loaded.settings, app, release, _ancestor(source, app, release))
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    text = source.path.read_text(encoding="utf-8")
    whole = yaml.load(text)
    for section, parts in (("models", models), ("prompts", prompts)):
        for name, part in parts.items():
            whole.setdefault(section, CommentedMap())[name] = part
    _into(whole["apps"][app], release.name, made, source)
    found = Exported(
        app, release.name, release.id, _dumped(yaml, _fragment(app, release.name, models, prompts, made)), str(source.path.absolute()),
        _dumped(yaml, whole),
    )  # fmt: skip
    again = source.define(loads(found.text.encode(), name=str(source.path), folder=source.path.absolute().parent))
    if again.apps[app].releases[release.name].id != release.id:
        raise RequestError(
            f"{release.name} of {app} cannot be said by noria.yaml as it is.", code="not_expressible", param="name"
        )
    return found


def _ancestor(source: Source, app: str, release: Release) -> str:
    """The release of the file that it was made from, over however many others."""
    by_id = {r.id: name for name, r in source.stored.apps[app].releases.items()}
    added = {a.release.id: a.parent for a in source.known.added.get(app, {}).values()}
    at = release.id
    while at in added and at not in by_id:
        at = added[at]
    if at not in by_id:
        raise RequestError(
            f"What {release.name} of {app} was made from is not in {source.path} any more.", code="parent_gone", param="name",
            hint="Write it by hand: noria release show tells its parts.",
        )  # fmt: skip
    return by_id[at]


def _parts(
    settings: Settings, app: str, release: Release, ancestor: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(models, prompts, the release) as the file would have them."""
    base = settings.apps[app].all_releases()[ancestor]
    made: dict[str, Any] = base.model_dump(mode="json", exclude_unset=True)
    models: dict[str, Any] = {}
    first, rest = release.route[0], flat(base.model)[1:]
    name = first.name
    if name not in settings.models:
        name = name.replace("+", "-")
        models[name] = _model(first)
    made["model"] = [name, *rest] if rest else name
    prompts: dict[str, Any] = {}
    made.pop("prompt", None)
    if release.prompt is not None:
        made["prompt"] = release.prompt.name
        known = settings.prompts.get(release.prompt.name)
        if known is None or known.text != release.prompt.text:
            made["prompt"] = release.prompt.name if known is None else f"{release.prompt.name}-{release.prompt.digest[:6]}"
            prompts[made["prompt"]] = {"text": release.prompt.text}
    for key, value in (("guard", release.guard_name), ("params", release.params)):
        made.pop(key, None)
        if value:
            made[key] = value
    return models, prompts, made


def _model(e: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = {"provider": e.vendor or e.provider, "model": e.model}
    plain = {"url": e.url, "key": e.key, "region": e.region, "lacks": list(e.lacks), "options": e.options}
    found |= {key: value for key, value in plain.items() if value}
    if e.context is not None:
        found["context"] = e.context
    if e.timeouts != Timeouts():
        found["timeouts"] = msgspec.to_builtins(e.timeouts)
    return found


def _into(app: Any, name: str, made: dict[str, Any], source: Source) -> None:
    """Put the release into the app's mapping; a short form is spelt out first."""
    if "releases" not in app:
        keys = [k for k in ReleaseSettings.model_fields if k in app]
        app["releases"] = CommentedMap({"main": CommentedMap({k: app.pop(k) for k in keys})})
    app["releases"][name] = made
    served = {n: share for n, share in source.shares.items() if share}
    if "rollout" not in app and set(served) <= set(app["releases"]):
        app["weights"] = {n: served.get(n, 0) for n in app["releases"]}


def _fragment(app: str, name: str, models: Any, prompts: Any, made: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"models": models, "prompts": prompts, "apps": {app: {"releases": {name: made}}}}
    return {key: value for key, value in found.items() if value}


def _dumped(yaml: YAML, value: Any) -> str:
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()
