"""What the names in a configuration refer to: models, prompts, guards, checks, providers, engines, options.

Works on the raw document rather than on the typed tree, so that a wrong reference is reported even where
another key has the wrong shape. What has the wrong shape is skipped here: `file` reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from noria.contracts.error import ConfigError, NoriaError, boundary
from noria.contracts.stage import Check, Options, Provider
from noria.evaluate.suite import REFUSED_PARAMS
from noria.kit import extension
from noria.settings import health, refresh, rollout, routing
from noria.settings.document import Document
from noria.settings.problem import Path, Problem, unknown
from noria.settings.tree import ReleaseSettings, RuleSettings, StoreSettings, default_action

_IN_PROCESS = frozenset({"local", "scripted"})
"""Providers that call no server: an address or a key would never be used."""


@dataclass(frozen=True)
class Catalog:
    """What a configuration may refer to besides itself. Extensions are loaded only when one is configured."""

    providers: Collection[str]
    vendors: Mapping[str, str]
    """Look-alikes of OpenAI, served by the provider `openai_compatible`: id → URL; empty where the user must give one."""
    checks: Collection[str]
    engines: Collection[str]
    check: Callable[[str], type[Check]]
    provider: Callable[[str], type[Provider]]


def installed() -> Catalog:
    """What is installed here: shipped, entry points, and `./extensions`."""
    return Catalog(
        providers=extension.ids("providers"),
        vendors=vendors(),
        checks=extension.ids("checks"),
        engines=extension.ids("engines"),
        check=lambda name: extension.load("checks", name, Check),
        provider=lambda name: extension.load("providers", name, Provider),
    )


def vendors() -> dict[str, str]:
    """The shipped look-alikes of OpenAI: id → URL. The row `openai_compatible` is the provider itself."""
    from noria.providers.openai_compatible import VENDORS

    return {name: row.url for name, row in VENDORS.items() if name != "openai_compatible"}


def problems(doc: Document, catalog: Catalog) -> Iterator[Problem]:
    """Every reference that leads nowhere and every rule between keys that is broken."""
    for _, value, path in doc.entries("models"):
        if isinstance(value, dict):
            yield from _model(doc, catalog, value, path)
    for _, value, path in doc.entries("prompts"):
        if isinstance(value, dict) and sum(value.get(k) is not None for k in ("file", "text")) != 1:
            yield doc.problem(path, "A prompt has either `file` or `text`.")
    for _, _, path in doc.entries("guards"):
        for item, where in doc.items(path):
            yield from _rule(doc, catalog, item, where)
    for _, value, path in doc.entries("suites"):
        if isinstance(value, dict):
            yield from _suite(doc, catalog, value, path)
    for name, value, path in doc.entries("apps"):
        if isinstance(value, dict):
            yield from _app(doc, name, value, path)
    yield from _service(doc, catalog)


def _service(doc: Document, catalog: Catalog) -> Iterator[Problem]:
    for key, value, path in doc.entries("serve"):
        if key == "passthrough" and isinstance(value, str) and value not in _names(doc, "models"):
            yield doc.problem(path, *unknown("model", value, _names(doc, "models")))
    for _, value, path in doc.entries("stores"):
        if not isinstance(value, str) or "://" not in value:
            continue
        if (scheme := extension.scheme(value)) not in catalog.engines:
            yield doc.problem(path, *unknown("engine", scheme, catalog.engines))
    yield from _own_cache(doc)


def _own_cache(doc: Document) -> Iterator[Problem]:
    """The shared cache is a file that may be thrown away: nothing else may lie in it."""
    given = {key: value for key, value, _ in doc.entries("stores")}
    urls = StoreSettings().model_dump() | given
    for key, value in urls.items():
        if key != "cache" and value == urls["cache"] and str(value).startswith("sqlite"):
            what = f"The cache cannot be the file of `stores.{key}`: it is thrown away where it is damaged."
            at = ("stores", "cache" if "cache" in given else key)
            yield doc.problem(at, what, "Give the cache a file of its own.")
            return


def _model(doc: Document, catalog: Catalog, value: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    provider = value.get("provider")
    if not isinstance(provider, str):
        return
    if provider not in {*catalog.providers, *catalog.vendors}:
        yield doc.problem((*path, "provider"), *unknown("provider", provider, {*catalog.providers, *catalog.vendors}))
        return
    needs_url = provider == "openai_compatible" or catalog.vendors.get(provider) == ""
    if needs_url and not value.get("url"):
        yield doc.problem((*path, "url"), f"The provider {provider} needs a `url`.", 'Such as "http://host:8000/v1".')
    for key in ("url", "key"):
        if provider in _IN_PROCESS and value.get(key):
            yield doc.problem((*path, key), f"The provider {provider} runs here and has no `{key}`.", "Remove it.", key=True)
    yield from health.problems(doc, value, path, in_process=provider in _IN_PROCESS)
    options = value.get("options", {})
    if not isinstance(options, dict):
        return
    loaded, wrong = _loaded(catalog.provider, "openai_compatible" if provider in catalog.vendors else provider)
    if loaded is None:
        yield doc.problem((*path, "provider"), *wrong)
    else:
        yield from _options(doc, loaded.Config, options, (*path, "options"))


def _rule(doc: Document, catalog: Catalog, item: Any, path: Path) -> Iterator[Problem]:
    if isinstance(item, str):
        check, at = item, path
        rule: dict[str, Any] = {}
    elif isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), dict):
        check, rule = next(iter(item.items()))
        at = (*path, check)
    else:
        return
    if check not in catalog.checks:
        yield doc.problem(at, *unknown("check", check, catalog.checks), key=True)
        return
    action = rule.get("action") or default_action(check)
    if rule.get("stream") == "after" and action in ("mask", "block"):
        what = f"What has left cannot be undone: with `stream: after` the action is `flag`, not `{action}`."
        yield doc.problem((*at, "stream"), what, "Use stream: hold, or action: flag.")
    loaded, wrong = _loaded(catalog.check, check)
    if loaded is None:
        yield doc.problem(at, *wrong, key=True)
        return
    sides = rule.get("on", "input")
    on_input = sides in ("input", "both") or (isinstance(sides, list) and "input" in sides)
    if on_input and not loaded.either and "output" in loaded.needs:
        yield doc.problem((*at, "on"), f"The check {check!r} judges answers, not prompts.", "Write on: output.")
    if "expected" in loaded.needs:
        what = f"The check {check!r} compares an answer with an expected one, which nobody knows of live traffic."
        yield doc.problem(at, what, "Use it as a metric, under `suites`.", key=True)
        return
    own = {k: v for k, v in rule.items() if k not in RuleSettings.model_fields}
    yield from _options(doc, loaded.Config, own, at, also=tuple(RuleSettings.model_fields))


def _suite(doc: Document, catalog: Catalog, value: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    """Metrics that do not exist or score no answers, their options, and parameters that an evaluation sets itself."""
    for key in value["params"] if isinstance(value.get("params"), dict) else ():
        if key in REFUSED_PARAMS:
            what = f"A suite cannot set {key!r}: the evaluation does."
            yield doc.problem((*path, "params", key), what, "Leave it out.", key=True)
    given: dict[str, Any]
    for item, where in doc.items((*path, "metrics")):
        if isinstance(item, str):
            check, at, given = item, where, {}
        elif isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), dict):
            check, given = next(iter(item.items()))
            at = (*where, check)
        else:
            continue
        if check not in catalog.checks:
            yield doc.problem(at, *unknown("check", check, catalog.checks), key=True)
            continue
        loaded, wrong = _loaded(catalog.check, check)
        if loaded is None:
            yield doc.problem(at, *wrong, key=True)
        elif loaded.either or "output" not in loaded.needs:
            what = f"The check {check!r} scores no answers: it is a guard's."
            yield doc.problem(at, what, "Use `exact`, `label`, `f1`, …", key=True)
        else:
            own = {"labels": ["?"], **given} if check == "label" else given  # a dataset brings its labels along
            yield from _options(doc, loaded.Config, own, at)


def _loaded(load: Callable[[str], type[Any]], id: str) -> tuple[type[Any] | None, tuple[str, str]]:
    """The extension, or what kept it from loading."""
    try:
        with boundary(ConfigError, f"The extension {id!r} cannot be loaded"):
            return load(id), ("", "")
    except NoriaError as e:
        return None, (e.message, e.hint or "")


def _options(
    doc: Document, config: type[Options], given: Mapping[str, Any], path: Path, *, also: tuple[str, ...] = ()
) -> Iterator[Problem]:
    """Mistakes in an extension's own options, each at its key; those of the whole only where no key is wrong."""
    fields = {f.encode_name: f for f in msgspec.structs.fields(config)}
    wrong = False
    for key, value in given.items():
        if key not in fields:
            wrong = True
            yield doc.problem((*path, key), *unknown("key", key, [*fields, *also]), key=True)
            continue
        mistake = _mistake(value, fields[key].type)
        if mistake:
            wrong = True
            yield doc.problem((*path, key), mistake)
    mistake = None if wrong else _mistake(dict(given), config)
    if mistake:
        yield doc.problem(path, mistake)


def _mistake(value: Any, type: Any) -> str | None:
    try:
        msgspec.convert(value, type)
    except msgspec.ValidationError as e:
        return f"{e}."
    except ConfigError as e:
        return e.text
    return None


def _app(doc: Document, name: str, value: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    short = [k for k in ReleaseSettings.model_fields if value.get(k) is not None]
    if value.get("releases") is not None:
        for key in short:
            what = f"An app with `releases` has no `{key}` of its own."
            yield doc.problem(
                (*path, key), what, f"Move it into the releases: {', '.join(_names(doc, *path, 'releases'))}.", key=True
            )
    elif "model" not in short:
        yield doc.problem((*path, "model"), "An app needs a `model`, or `releases` that have one.")
    else:
        yield from _release(doc, value, path)
    for _, release, at in doc.entries(*path, "releases"):
        if isinstance(release, dict):
            yield from _release(doc, release, at)
    yield from _weights(doc, value, path)
    yield from rollout.problems(doc, value, path, _names(doc, *path, "releases"))
    yield from refresh.problems(doc, value, path)
    if name in _embedding_models(doc):
        yield doc.problem(path, f"{name!r} is an embedding model's name too, and clients call both by name.", key=True)


def _release(doc: Document, release: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    models = _names(doc, "models")
    seen: set[str] = set()
    for model, at in routing.named(doc, (*path, "model")):
        if not isinstance(model, str):
            continue
        if model not in models:
            yield doc.problem(at, *unknown("model", model, models))
        elif model in _embedding_models(doc):
            yield doc.problem(at, f"The model {model!r} makes embeddings and cannot answer chats.")
        elif model in seen:
            yield doc.problem(at, f"The model {model!r} is in the route already.", "Remove it.")
        seen.add(model)
    yield from routing.problems(doc, release, path, _embedding_models(doc))
    yield from routing.residency(doc, release, path)
    yield from _semantic(doc, release.get("cache"), (*path, "cache", "semantic"))
    for key, section in (("prompt", "prompts"), ("guard", "guards")):
        name = release.get(key)
        known = _names(doc, section)
        if isinstance(name, str) and name not in known:
            yield doc.problem((*path, key), *unknown(key, name, known))


def _semantic(doc: Document, cache: Any, path: Path) -> Iterator[Problem]:
    """The embedder of a semantic cache: there, an embedding model, and run here, since its calls are not billed."""
    semantic = cache.get("semantic") if isinstance(cache, dict) else None
    at = (*path, "embedder") if isinstance(semantic, dict) else path
    name = semantic.get("embedder") if isinstance(semantic, dict) else semantic
    models = {n: v for n, v, _ in doc.entries("models") if isinstance(v, dict)}
    if not isinstance(name, str):
        return
    if name not in models:
        yield doc.problem(at, *unknown("model", name, list(models)))
    elif name not in _embedding_models(doc):
        yield doc.problem(at, f"The model {name!r} answers chats and makes no embeddings.", "Name one of kind: embedding.")
    elif models[name].get("provider") not in _IN_PROCESS:
        what = f"The embedder {name!r} is not local: each question would cost a call to it."
        yield doc.problem(at, what, "Name a model with provider: local.")


def _weights(doc: Document, value: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    releases = _names(doc, *path, "releases") if value.get("releases") is not None else ["main"]
    shares = list(doc.entries(*path, "weights"))
    for name, share, at in shares:
        if name not in releases:
            yield doc.problem(at, *unknown("release", name, releases), key=True)
        elif isinstance(share, int | float) and share < 0:
            yield doc.problem(at, "A share of traffic must be 0 or more.")
    if value.get("weights") is not None and not any(isinstance(s, int | float) and s > 0 for _, s, _ in shares):
        yield doc.problem((*path, "weights"), "No release gets any traffic.", "Give one a share above 0.")


def _embedding_models(doc: Document) -> list[str]:
    return [n for n, v, _ in doc.entries("models") if isinstance(v, dict) and v.get("kind") == "embedding"]


def _names(doc: Document, *path: str | int) -> list[str]:
    return [name for name, _, _ in doc.entries(*path)]
