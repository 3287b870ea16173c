"""From settings to open stores, a definition and a plan: what the processes start from."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from noria.app.change import Changes
from noria.app.definition import Definition, stored_definition, with_ids
from noria.app.depot import Depot
from noria.app.house import identify
from noria.app.keeper import Keeper, Stores
from noria.app.link import APPLIED
from noria.app.pricing import priced
from noria.app.supervisor import Operate, Plan
from noria.contracts.error import ConfigError, NotFound
from noria.contracts.port import BlobStore, Counter, Queue, RecordStore, TraceStore
from noria.contracts.release import App, Endpoint, GuardRule
from noria.contracts.stage import Check
from noria.govern.access import Sessions, admin_token
from noria.kit import extension
from noria.kit.atomic import write_whole
from noria.release import catalogue
from noria.settings import InvalidSettings, Loaded, apps, default, endpoints, guards, home, load, loads, store_urls
from noria.settings.money import budgets, limits

log = logging.getLogger("noria.stores")
T = TypeVar("T")
OF_THIS_NODE = frozenset({"memory", "sqlite"})
"""Engines of counters that other nodes cannot reach."""
PORTS: dict[str, type] = {"records": RecordStore, "traces": TraceStore, "counters": Counter, "queue": Queue, "blobs": BlobStore}


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
    route = priced({name: _pinned(e) for name, e in endpoints(settings).items()}, home(), settings.price_file)
    made = {name: _without_files(app) for name, app in apps(settings, identify, route=route).items()}
    return Definition(
        source=loaded.text_digest,
        apps=made,
        embedders={n: e for n, e in route.items() if settings.models[n].kind == "embedding"},
        keys_required=settings.serve.keys_required == "always" or settings.serve.host not in ("127.0.0.1", "localhost", "::1"),
        hosts=tuple(h.lower() for h in settings.serve.hosts),
        body_limit=settings.serve.body_limit,
        budgets=budgets(settings.budgets),
        limits=limits(settings.limits),
        webhook=settings.alerts.webhook or "",
        guards={name: tuple(_content(rule) for rule in rules) for name, rules in guards(settings).items()},
        passthrough=route[settings.serve.passthrough] if settings.serve.passthrough else None,
    )


def _without_files(app: App) -> App:
    """`app` with the files that its checks name read into the release: an id pins content, not paths."""
    releases = {n: replace(r, guard=tuple(_content(g) for g in r.guard)) for n, r in app.releases.items()}
    return with_ids(replace(app, releases=releases), identify)


def _content(rule: GuardRule) -> GuardRule:
    """`rule` with the files that its check names replaced by what they say."""
    options = extension.load("checks", rule.check, Check).pin(rule.options)
    return rule if options == rule.options else replace(rule, options=options)


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
        operate=Operate(**loaded.settings.operate.model_dump()),
    )
    return made, missing


async def open_keeper(here: Path, config: Path | None) -> Keeper:
    """A started keeper. Without a file it keeps the definition in force, or starts from the default one."""
    loaded = _good(here, config)
    urls = store_urls(loaded.settings, here)
    files, batches = loaded.settings.files, loaded.settings.batches
    depot = Depot(here, _open(urls, "queue"), _open(urls, "blobs"), files, batches)
    own = urls["counters"].partition("://")[0] in OF_THIS_NODE
    stores = Stores(_open(urls, "records"), _open(urls, "traces"), _open(urls, "counters"), depot, counters_own=own)
    keeper = Keeper(here, stores, Sessions(admin_token(here)))
    keeper.keep_days = loaded.settings.retention.traces_days
    keeper.responses.days = loaded.settings.retention.responses_days
    keeper.changes = Changes(keeper, loaded, config, load=load_settings, define=define)
    stored = await stored_definition(stores.records, keeper.tenant)
    # a keeper that is started again does not apply: names resolve when the service starts and at `apply` (DESIGN §3a.2)
    again = (here / "run" / APPLIED).exists()
    keep = stored is not None and (again or (config is None and stored.source != "default"))
    await keeper.start(None if keep else define(loaded))
    with suppress(OSError):
        (here / "run" / APPLIED).touch()
    return keeper


def _good(here: Path, config: Path | None) -> Loaded:
    """The settings of the file, or, where somebody has broken it while the service runs, those that were good last."""
    kept = here / "run" / "good.yaml"
    try:
        loaded = load_settings(config)
    except InvalidSettings as e:
        if config is None or not (here / "run" / APPLIED).exists() or not kept.exists():
            raise
        log.error("the configuration cannot be read, the one in force stays: %s", e)
        return loads(kept.read_bytes(), name=str(config), folder=config.absolute().parent)
    if config is not None:
        with suppress(OSError):
            write_whole(kept, config.read_bytes())
    return loaded


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
