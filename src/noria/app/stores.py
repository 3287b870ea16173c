"""From settings to open stores, a definition and a plan: what the processes start from."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from msgspec.structs import replace

from noria.app.change import Changes
from noria.app.clock import SystemClock
from noria.app.definition import Canary, Definition, stored_definition, with_ids
from noria.app.depot import Depot
from noria.app.evaluating import Evaluations
from noria.app.house import identify
from noria.app.keeper import Keeper, Stores
from noria.app.link import APPLIED
from noria.app.model_process import adapter_of
from noria.app.otlp import Push
from noria.app.pricing import priced
from noria.app.refreshes import Refreshes
from noria.app.releases import digest_of
from noria.app.sharing import SharedAnswers
from noria.app.supervisor import Operate, Plan
from noria.app.training import Trainings
from noria.contracts.error import ConfigError, MissingDependency, NotFound
from noria.contracts.port import BlobStore, CacheStore, Counter, DatasetStore, JobRunner, Queue, RecordStore, TraceStore
from noria.contracts.release import App, Endpoint, GuardRule
from noria.contracts.stage import Check
from noria.gateway.tenure import SharedCounter
from noria.govern.access import Sessions, admin_token
from noria.kit import extension
from noria.kit.atomic import write_whole
from noria.kit.ids import uuid7
from noria.release import catalogue
from noria.settings import InvalidSettings, Loaded, apps, default, endpoints, guards, home, load, loads, store_urls
from noria.settings.evaluate import suites
from noria.settings.money import budgets, limits
from noria.settings.tree import ServeSettings

log = logging.getLogger("noria.stores")
T = TypeVar("T")
OF_THIS_NODE = frozenset({"memory", "sqlite"})
"""Engines of counters that other nodes cannot reach."""
PORTS: dict[str, type] = {
    "records": RecordStore, "traces": TraceStore, "counters": Counter, "queue": Queue, "blobs": BlobStore, "cache": CacheStore,
    "datasets": DatasetStore, "jobs": JobRunner,
}  # fmt: skip


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
        hosts=_hosts(settings.serve),
        body_limit=settings.serve.body_limit,
        budgets=budgets(settings.budgets),
        limits=limits(settings.limits),
        webhook=settings.alerts.webhook or "",
        guards={name: tuple(_content(rule) for rule in rules) for name, rules in guards(settings).items()},
        passthrough=route[settings.serve.passthrough] if settings.serve.passthrough else None,
        file_limit=settings.files.max_size,
        public_url=settings.serve.public_url or "",
        suites=suites(settings.suites),
        refreshes={n: a.refresh.model_dump(exclude_unset=True) for n, a in settings.apps.items() if a.refresh},
        rollouts={n: Canary(a.rollout.canary, a.rollout.policy()) for n, a in settings.apps.items() if a.rollout},
    )


def _hosts(serve: ServeSettings) -> tuple[str, ...]:
    """The names that are served besides the loopback ones."""
    public = urlsplit(serve.public_url).hostname if serve.public_url else None
    return tuple(dict.fromkeys(h.lower() for h in (*serve.hosts, *([public] if public else ()))))


def _without_files(app: App) -> App:
    """`app` with the files that its checks name read into the release: an id pins content, not paths."""
    releases = {n: replace(r, guard=tuple(_content(g) for g in r.guard)) for n, r in app.releases.items()}
    return with_ids(replace(app, releases=releases), identify)


def _content(rule: GuardRule) -> GuardRule:
    """`rule` with the files that its check names replaced by what they say."""
    options = extension.load("checks", rule.check, Check).pin(rule.options)
    return rule if options == rule.options else replace(rule, options=options)


def _pinned(endpoint: Endpoint) -> Endpoint:
    """A local model's endpoint with the digests and the window of the files that serve it; a classifier's that is an artifact, too."""
    try:
        if endpoint.provider == "tiny" and "artifact" in endpoint.options:
            return replace(endpoint, digests={"weights": digest_of(home(), str(endpoint.options["artifact"]))})
        if endpoint.provider != "local":
            return endpoint
        manifest = catalogue.manifest_of(home(), endpoint.model)
        digests = dict(catalogue.digests(home(), endpoint.model))
        if adapter := adapter_of(endpoint):
            digests["adapter"] = digest_of(home(), adapter)
    except NotFound:
        return endpoint
    return replace(endpoint, digests=digests, context=endpoint.context or manifest.context)


def plan(loaded: Loaded, config: Path | None, *, port: int | None, workers: int | None) -> tuple[Plan, list[str]]:
    """What `noria up` runs, and the local models that are named but not installed."""
    can_store(loaded)
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
        public_url=serve.public_url or "",
    )
    return made, missing


async def open_keeper(here: Path, config: Path | None) -> Keeper:
    """A started keeper. Without a file it keeps the definition in force, or starts from the default one."""
    loaded = _good(here, config)
    urls = store_urls(loaded.settings, here)
    files, batches = loaded.settings.files, loaded.settings.batches
    depot = Depot(here, _open(urls, "queue"), _open(urls, "blobs"), files, batches)
    counters, shared = _counters(urls, here)
    cache = SharedAnswers(_open(urls, "cache"), urls["cache"])
    stores = Stores(
        _open(urls, "records"),
        _open(urls, "traces"),
        counters,
        depot,
        tenure=shared,
        cache=cache,
        datasets=_open(urls, "datasets"),
    )
    keeper = Keeper(here, stores, Sessions(admin_token(here)))
    keeper.keep_days = loaded.settings.retention.traces_days
    keeper.responses.days = loaded.settings.retention.responses_days
    keeper.feedback.days = loaded.settings.retention.feedback_days
    keeper.drift.jobs = _open(urls, "jobs")
    keeper.releases.find_model = partial(_find_model, config)
    keeper.changes = Changes(keeper, loaded, config, load=load_settings, define=define)
    if keeper.datasets is not None:
        runner = _open(urls, "jobs")
        keeper.evaluations = Evaluations(
            here, keeper.registry, datasets=keeper.datasets, jobs=runner, files=lambda: depot.files,
            current=keeper.current, secret=lambda: keeper.secret(keeper.tenant, "subjects"),
        )  # fmt: skip
        keeper.trainings = Trainings(here, keeper.tenant, runner, keeper.datasets, keeper.note)
        keeper.trainings.settings = loaded.settings.train
        keeper.refreshes = Refreshes(keeper, runner)
        keeper.drift.opens = keeper.refreshes.alert
    if loaded.settings.metrics.otlp is not None:
        keeper.push = Push(here, loaded.settings.metrics.otlp)
    stored = await stored_definition(stores.records, keeper.tenant)
    # a keeper that is started again does not apply: names resolve when the service starts and at `apply` (DESIGN §3a.2)
    again = (here / "run" / APPLIED).exists()
    keep = stored is not None and (again or (config is None and stored.source != "default"))
    await keeper.start(None if keep else define(loaded))
    with suppress(OSError):
        (here / "run" / APPLIED).touch()
    return keeper


def _find_model(config: Path | None, name: str) -> Endpoint | None:
    """A model of noria.yaml by name, as it would be served; None where there is none."""
    settings = load_settings(config).settings
    found = endpoints(settings).get(name)
    return priced({name: _pinned(found)}, home(), settings.price_file)[name] if found else None


def _counters(urls: dict[str, str], here: Path) -> tuple[Counter, SharedCounter | None]:
    """The counters; the second is the first again where other nodes can reach them, too."""
    counters = _open(urls, "counters")
    if urls["counters"].partition("://")[0] in OF_THIS_NODE:
        return counters, None
    alone = extension.engine("memory").serves[Counter]("memory://")
    shared = SharedCounter(counters, alone, SystemClock(), node=_node(here))
    return shared, shared


def _node(here: Path) -> str:
    """Which node this is among those that share counters: as long as its NORIA_HOME lives."""
    path = here / "node.id"
    with suppress(FileNotFoundError):
        return path.read_text().strip()
    write_whole(path, uuid7().encode())
    return path.read_text().strip()


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
    """A store, open."""
    return _maker(urls[store], store)(urls[store])


def can_store(loaded: Loaded) -> None:
    """Whether the engine of each store is there and serves it, as far as the file tells. Raises `ConfigError`, `NotFound`."""
    for store, url in loaded.settings.stores.model_dump().items():
        if "://" in url:
            _maker(url, store)


def _maker(url: str, store: str) -> Any:
    """What opens a store. Raises `ConfigError` that names the engines which can, `MissingDependency`, `NotFound`."""
    scheme, port = extension.scheme(url), PORTS[store]
    maker = extension.engine(scheme).serves.get(port)
    if maker is None:
        able = []
        for name in extension.ids("engines"):
            with suppress(MissingDependency):
                able += [name] if port in extension.engine(name).serves else []
        raise ConfigError(
            f"The engine {scheme!r} cannot serve {port.__name__}.",
            where=f"stores.{store}",
            hint=f"These can: {', '.join(able)}.",
        )
    return maker


def summary_of(loaded: Loaded) -> dict[str, Any]:
    """What a configuration defines, for `noria validate`."""
    can_store(loaded)
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
