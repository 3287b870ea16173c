"""From settings to open stores, a definition and a plan: what the processes start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from noria.app.definition import Definition, with_ids
from noria.app.house import identify
from noria.app.keeper import Keeper, Stores
from noria.app.supervisor import Plan
from noria.contracts.error import ConfigError, NotFound
from noria.contracts.port import Counter, RecordStore, TraceStore
from noria.contracts.release import App, Endpoint, GuardRule
from noria.contracts.stage import Check
from noria.govern.access import Sessions, admin_token
from noria.kit import extension
from noria.release import catalogue
from noria.settings import Loaded, apps, default, endpoints, home, load, store_urls

T = TypeVar("T")
PORTS: dict[str, type] = {"records": RecordStore, "traces": TraceStore, "counters": Counter}


def load_settings(path: Path | None) -> Loaded:
    """The settings of a file, or those of an installation without one."""
    if path is not None:
        return load(path)
    here = home()
    settings = default(here, catalogue.installed(here))
    return Loaded(settings, "default", {})


def define(loaded: Loaded) -> Definition:
    """Names resolved to digests: what `apply` stores."""
    settings = loaded.settings
    route = {name: _pinned(e) for name, e in endpoints(settings).items()}
    made = {name: _without_files(app) for name, app in apps(settings, identify, route=route).items()}
    return Definition(
        source=loaded.text_digest,
        apps=made,
        embedders={n: e for n, e in route.items() if settings.models[n].kind == "embedding"},
        keys_required=settings.serve.keys_required == "always" or settings.serve.host not in ("127.0.0.1", "localhost", "::1"),
        hosts=tuple(h.lower() for h in settings.serve.hosts),
        body_limit=settings.serve.body_limit,
    )


def _without_files(app: App) -> App:
    """`app` with the files that its checks name read into the release: an id pins content, not paths."""

    def pinned(rule: GuardRule) -> GuardRule:
        options = extension.load("checks", rule.check, Check).pin(rule.options)
        return rule if options == rule.options else replace(rule, options=options)

    releases = {n: replace(r, guard=tuple(pinned(g) for g in r.guard)) for n, r in app.releases.items()}
    return with_ids(replace(app, releases=releases), identify)


def _pinned(endpoint: Endpoint) -> Endpoint:
    """A local model's endpoint with the digests and the window of the files that serve it."""
    if endpoint.provider != "local":
        return endpoint
    try:
        manifest = catalogue.manifest_of(home(), endpoint.model)
    except NotFound:
        return endpoint
    return replace(endpoint, digests=catalogue.digests(home(), endpoint.model), context=endpoint.context or manifest.context)


def plan(loaded: Loaded, config: Path | None, *, port: int | None, workers: int | None) -> tuple[Plan, list[str]]:
    """What `noria up` runs, and the local models that are named but not installed."""
    serve = loaded.settings.serve
    local = [e for e in endpoints(loaded.settings).values() if e.provider == "local"]
    have = catalogue.installed(home())
    here = {e.model: e for e in local if e.model in have}
    missing = sorted({e.model for e in local} - set(have))
    made = Plan(
        home=home(),
        config=config,
        host=serve.host,
        port=serve.port if port is None else port,
        workers=workers or serve.workers,
        models=tuple(here.values()),
    )
    return made, missing


async def open_keeper(here: Path, config: Path | None) -> Keeper:
    """A started keeper. Without a file it keeps the definition in force, or starts from the default one."""
    from noria.app.definition import stored_definition

    loaded = load_settings(config)
    urls = store_urls(loaded.settings, here)
    stores = Stores(records=_open(urls, "records"), traces=_open(urls, "traces"), counters=_open(urls, "counters"))
    keeper = Keeper(here, stores, Sessions(admin_token(here)))
    keeper.keep_days = loaded.settings.retention.traces_days
    stored = await stored_definition(stores.records, keeper.tenant)
    keep = config is None and stored is not None and stored.source != "default"
    await keeper.start(None if keep else define(loaded))
    return keeper


def _open(urls: dict[str, str], store: str) -> Any:
    """The engine of a store's URL. Raises `ConfigError` that names the engines which can serve it."""
    url, port = urls[store], PORTS[store]
    scheme = url.partition("://")[0].partition("+")[0]
    scheme = {"postgresql": "postgres"}.get(scheme, scheme)
    maker = extension.engine(scheme).serves.get(port)
    if maker is None:
        able = [i for i in extension.ids("engines") if port in extension.engine(i).serves]
        raise ConfigError(
            f"The engine {scheme!r} cannot serve {port.__name__}.",
            where=f"stores.{store}",
            hint=f"These can: {', '.join(able)}.",
        )
    return maker(url)


def summary_of(loaded: Loaded) -> dict[str, Any]:
    """What a configuration defines, for `noria validate`."""
    definition = define(loaded)
    return {
        "apps": [
            {
                "name": a.name,
                "releases": [
                    {"name": r.name, "id": r.id, "route": [e.name for e in r.route], "reproducible": r.reproducible}
                    for r in a.releases.values()
                ],
            }
            for a in definition.apps.values()
        ],
        "embedders": sorted(definition.embedders),
    }
