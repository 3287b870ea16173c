"""What a refresh is asked to do: the settings of the file with what is said besides, resolved once, before anything begins."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
from pydantic import ValidationError

from noria.app.datasets import Datasets
from noria.app.definition import Definition
from noria.app.drift import Drifts
from noria.app.evaluating import Evaluations
from noria.app.registry import Registry
from noria.app.rollouts import OPEN as ROLLOUT_OF
from noria.app.rollouts import Rollouts
from noria.app.training import Trainings
from noria.contracts.error import NotFound, RequestError, Unavailable
from noria.contracts.port import RecordStore
from noria.contracts.refresh import Cause, Plan, RefreshPolicy
from noria.contracts.release import Release, Snapshot
from noria.settings.refresh import RefreshSettings


class Wish(msgspec.Struct, frozen=True):
    """A turn that is asked for."""

    app: str
    cause: Cause
    by: str
    settings: dict[str, Any] = {}
    """As `apps.<app>.refresh`; what is given stands in place of what the file says, the rest is as there."""
    alert_ns: int = 0
    report: str = ""


class House(Protocol):
    """What is needed of a keeper (`app.keeper.Keeper`)."""

    home: Path
    tenant: str
    registry: Registry
    records: RecordStore
    datasets: Datasets | None
    evaluations: Evaluations | None
    trainings: Trainings | None
    rollouts: Rollouts
    drift: Drifts

    def current(self) -> Snapshot | None:
        """The snapshot in force."""
        ...

    async def definition(self) -> Definition | None:
        """The definition in force."""
        ...


async def plan(house: House, wish: Wish) -> Plan:
    """What a turn does. Raises `NotFound` and `RequestError` that name what does not fit."""
    release = await _current(house, wish.app)
    policy = await _policy(house, wish)
    if house.evaluations is None or house.datasets is None or house.trainings is None:
        raise Unavailable("This keeper has no datasets or runs no jobs.", code="no_jobs")
    if not (house.home / "run" / "address.json").exists():
        raise Unavailable("Noria is not running: a refresh asks its gateway.", code="not_running", hint="Start `noria up`.")
    suites = await house.evaluations.suites()
    if policy.suite not in suites:
        raise NotFound.nearest("suite", policy.suite, sorted(suites), code="suite_not_found")
    suite = suites[policy.suite]
    metric = policy.metric or suite.metrics[0]
    if metric not in suite.metrics:
        raise NotFound.nearest("metric", metric, list(suite.metrics), code="metric_not_found")
    if policy.data.dataset != suite.dataset:
        await house.evaluations.version(suite.dataset)
    version = await house.datasets.find(house.tenant, policy.data.dataset)
    if policy.data.harvest == "none" and policy.train.split not in version.splits:
        raise NotFound.nearest("split", policy.train.split, sorted(version.splits), code="split_not_found")
    now = time.time_ns()
    return Plan(
        policy, suite, metric, version.id, release.id, release.name, release.prompt.text if release.prompt else "",
        _base(release, policy), now - int(policy.data.since_seconds * 1e9), now, wish.report,
    )  # fmt: skip


async def _current(house: House, name: str) -> Release:
    """The release with the largest share. Raises `NotFound`, and `RequestError` while a rollout is under way."""
    snapshot = house.current()
    apps = snapshot.apps if snapshot else {}
    if name not in apps:
        raise NotFound.nearest("app", name, sorted(apps), code="app_not_found")
    if there := await house.registry.get(ROLLOUT_OF, name, str):
        raise RequestError(
            f"A rollout of {name} is under way ({there[0]}).", code="rollout_under_way", status=409,
            hint="Promote it or roll it back first.",
        )  # fmt: skip
    app = apps[name]
    return app.releases[max(app.weights, key=lambda n: app.weights[n])]


async def _policy(house: House, wish: Wish) -> RefreshPolicy:
    definition = await house.definition()
    declared = definition.refreshes.get(wish.app, {}) if definition else {}
    given = _upon(declared, wish.settings)
    if not given:
        raise RequestError(
            f"The app {wish.app} has no `refresh` in noria.yaml.", code="no_refresh",
            hint="Declare it, or say what to do: --set suite=… --set data.dataset=….",
        )  # fmt: skip
    try:
        settings = RefreshSettings(**given)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RequestError(f"{where}: {first['msg']}.", code="invalid_value", param=where) from None
    return settings.policy(await house.rollouts.declared_policy(wish.app))


def _upon(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings in mappings, `above` where both say something."""
    found = dict(below)
    for key, value in above.items():
        there = found.get(key)
        found[key] = _upon(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
    return found


def _base(release: Release, policy: RefreshPolicy) -> str:
    """The model that is trained upon; empty for a trainer that needs none."""
    if policy.train.method == "tiny" or policy.train.base:
        return "" if policy.train.method == "tiny" else policy.train.base
    first = release.route[0]
    if first.provider != "local":
        raise RequestError(
            f"{first.name} does not run here: it cannot be trained upon.", code="no_local_model", param="train.base",
            hint="Name an installed model as `train.base`, and output a merged model.",
        )  # fmt: skip
    return first.model
