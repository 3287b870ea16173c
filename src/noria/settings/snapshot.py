"""From Settings to the contract values that a Snapshot is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from msgspec.structs import replace

from noria.contracts.error import ConfigError
from noria.contracts.release import App, Caching, Endpoint, GuardRule, Probe, Prompt, Release, SemanticCaching, Timeouts
from noria.kit.ids import digest
from noria.release.identity import reproducible
from noria.settings import meaning, routing
from noria.settings.environment import resolve_secret
from noria.settings.tree import AppSettings, ModelSettings, ReleaseSettings, Rule, Settings


def endpoints(settings: Settings, vendors: Collection[str] | None = None) -> dict[str, Endpoint]:
    """Every model as an Endpoint, by name. A vendor becomes `openai_compatible` with that `vendor`; `vendors` are the
    shipped ones when None. Digests of local models are for whoever holds the files to fill in.
    """
    known = meaning.vendors() if vendors is None else vendors
    return {name: _endpoint(name, m, known) for name, m in settings.models.items()}


def embedders(settings: Settings, vendors: Collection[str] | None = None) -> dict[str, Endpoint]:
    """The endpoints that `/v1/embeddings` serves, by name."""
    return {n: e for n, e in endpoints(settings, vendors).items() if settings.models[n].kind == "embedding"}


def prompts(settings: Settings) -> dict[str, Prompt]:
    """Every prompt by name, with the BLAKE3 of its text. Raises `ConfigError` where a file has not been read."""
    made = {}
    for name, p in settings.prompts.items():
        if p.text is None:
            raise ConfigError(f"The prompt {name!r} names a file that was not read.", hint="Load the settings with `load`.")
        made[name] = Prompt(name, p.text, digest(p.text.encode()))
    return made


def apps(
    settings: Settings, identify: Callable[[Release], str], *, route: Mapping[str, Endpoint] | None = None
) -> dict[str, App]:
    """Every App with its releases and start weights. `identify` gives a release's id; `route` are the endpoints by
    model name (those of `endpoints`, with their digests, say).
    """
    known = endpoints(settings) if route is None else route
    texts = prompts(settings)
    return {name: _app(settings, name, app, identify, _Parts(known, texts)) for name, app in settings.apps.items()}


def guards(settings: Settings) -> dict[str, tuple[GuardRule, ...]]:
    """Every guard policy by name."""
    return {name: tuple(_rule(item) for item in rules) for name, rules in settings.guards.items()}


def store_urls(settings: Settings, home: Path) -> dict[str, str]:
    """Store name → engine URL, `{home}` and `env:`/`file:` references resolved. May hold passwords: do not log."""
    urls = {}
    for name, url in settings.stores.model_dump().items():
        plain = url if "://" in url else resolve_secret(url)
        urls[name] = plain.replace("{home}", str(home.absolute()))
    return urls


class _Parts:
    """What releases are put together from."""

    def __init__(self, route: Mapping[str, Endpoint], texts: Mapping[str, Prompt]) -> None:
        self.route = route
        self.texts = texts


def _endpoint(name: str, m: ModelSettings, vendors: Collection[str]) -> Endpoint:
    vendor = m.provider if m.provider in vendors else ""
    return Endpoint(
        name=name,
        provider="openai_compatible" if vendor else m.provider,
        model=m.model,
        url=m.url or "",
        key=m.key or "",
        vendor=vendor,
        context=m.context,
        price=m.price.price("noria.yaml") if m.price else None,
        timeouts=Timeouts(**m.timeouts.model_dump()),
        options=m.options,
        region=m.region,
        lacks=tuple(m.lacks),
        probe=Probe(m.health.probe, m.health.every, m.health.timeout, m.health.failures) if m.health else None,
    )


def _app(settings: Settings, name: str, app: AppSettings, identify: Callable[[Release], str], parts: _Parts) -> App:
    releases = {}
    for label, r in app.all_releases().items():
        bare = _release(settings, name, label, r, parts)
        releases[label] = replace(bare, id=identify(bare))
    shares = app.weights if app.weights is not None else {next(iter(releases)): 1.0}
    weights = {label: float(shares.get(label, 0.0)) for label in releases}
    drift = app.drift.policy() if app.drift else None
    return App(name, releases, weights, description=app.description, record_bodies=app.record_bodies, drift=drift)


def _release(settings: Settings, app: str, name: str, r: ReleaseSettings, parts: _Parts) -> Release:
    bare = Release(
        id="",
        name=name,
        app=app,
        route=tuple(parts.route[m] for m in routing.flat(r.model)),
        prompt=parts.texts[r.prompt] if r.prompt else None,
        guard=tuple(_rule(item) for item in settings.guards[r.guard]) if r.guard else (),
        guard_name=r.guard or "",
        memory=r.memory,
        normalize=r.normalize,
        fit=r.fit,
        params=r.params.model_dump(exclude_none=True),
        caching=_caching(r, parts.route),
        routing=routing.routing(r.model, r.routing, settings.apps[app].regions),
        embedder=routing.embedder(r.routing, parts.route),
    )
    return replace(bare, reproducible=reproducible(bare))


def _caching(r: ReleaseSettings, route: Mapping[str, Endpoint]) -> Caching | None:
    """How answers are given again; None where neither the cache nor single flight is on."""
    if r.cache is None:
        return Caching(ttl=0.0) if r.single_flight else None
    meant = r.cache.semantic
    semantic = SemanticCaching(route[meant.embedder], meant.threshold, meant.entries) if meant else None
    plain = r.cache.model_dump(exclude={"semantic"})
    return Caching(**plain, single_flight=r.single_flight is not False, semantic=semantic)


def _rule(item: Rule) -> GuardRule:
    check, rule = next(iter(item.items()))
    return GuardRule(
        check=check,
        action=rule.resolved_action(check),
        on=tuple(s for s in ("input", "output") if s in rule.on),
        options=dict(rule.model_extra or {}),
        message=rule.message,
        stream=rule.stream,
    )
