"""Releases of the running service: list, make from another, compare, retire, name for an environment (DESIGN §3a.1-2)."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from noria.app.added import ADDED, ALIAS, RETIRED, Registered, Retired, place, registered
from noria.app.definition import RELEASE, Definition, stored_definition
from noria.app.house import identify
from noria.app.registry import Registry, put
from noria.app.rollouts import OPEN, ROLLOUT
from noria.contracts.artifact import Artifact
from noria.contracts.error import Conflict, NoriaError, NotFound, RequestError, Unavailable
from noria.contracts.port import Write
from noria.contracts.release import App, Endpoint, GuardRule, Prompt, Release, Snapshot
from noria.contracts.rollout import Rollout
from noria.kit.ids import digest
from noria.release import artifact, catalogue
from noria.release.registry import Added, Parts, derive, differences

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
ADAPTER, MODEL, TINY = "adapter_gguf", "model_gguf", "tiny_model"
PRODUCTION = "production"


class Wish(msgspec.Struct, frozen=True):
    """A release that is asked for: `parent` with other parts. Of `model` and `adapter` one at most."""

    app: str
    parent: str
    name: str
    by: str
    model: str = ""
    """A name under `models`, an installed model, or the id of an artifact `model_gguf` or `tiny_model`."""
    adapter: str = ""
    """The id of an artifact `adapter_gguf`, put upon the parent's local model."""
    scale: float | None = None
    """Of the adapter; 1 unless its manifest says otherwise."""
    prompt: str | None = None
    """Text of the system prompt; empty takes none."""
    prompt_name: str = ""
    guard: str | None = None
    """A name under `guards`."""
    params: dict[str, Any] | None = None
    note: str = ""


class Releases:
    """Everything about releases that is no rollout. `find_model` knows models of noria.yaml by name."""

    def __init__(self, home: Path, registry: Registry, current: Callable[[], Snapshot | None]) -> None:
        self._home = home
        self._registry = registry
        self._current = current
        self.find_model: Callable[[str], Endpoint | None] = lambda _: None

    # -- looking ------------------------------------------------------------------------------------

    async def all(self, app: str = "") -> list[dict[str, Any]]:
        """Every release of an app, or of all, those that are served first, then the retired ones."""
        known, definition = await self._known()
        opened = {a: under_way for a, (under_way, _) in (await self._registry.all(OPEN, str)).items()}
        rows: list[dict[str, Any]] = []
        for name, served in self._apps(app).items():
            filed = definition.apps[name].releases if name in definition.apps else {}
            rows += [self._row(served, r, known, filed, opened.get(name, "")) for r in served.releases.values()]
            gone = {n: a.release for n, a in known.added.get(name, {}).items()} | filed
            rows += [self._row(served, r, known, filed, "") for n, r in gone.items() if n not in served.releases]
        return rows

    async def get(self, app: str, name: str) -> Release:
        """A release of an app, by name, environment or id (or its beginning); retired ones too. Raises `NotFound`."""
        known, definition = await self._known()
        served = self._apps(app)[app]
        all_of = {n: a.release for n, a in known.added.get(app, {}).items()}
        all_of |= definition.apps[app].releases if app in definition.apps else {}
        all_of |= served.releases
        name = self._alias(served, name)
        if name in all_of:
            return all_of[name]
        by_id = [r for r in all_of.values() if name.startswith("r1:") and len(name) >= 7 and r.id.startswith(name)]
        if len(by_id) == 1:
            return by_id[0]
        if record := await self._registry.get(RELEASE, name, Release):
            return record[0]
        raise NotFound.nearest("release", name, sorted(all_of), code="release_not_found")

    async def show(self, app: str, name: str) -> dict[str, Any]:
        """One release with all of its parts."""
        release = await self.get(app, name)
        rows = [r for r in await self.all(app) if r["name"] == release.name]
        return (rows[0] if rows else {"app": app, "name": release.name, "id": release.id}) | {"parts": _parts(release)}

    async def compare(self, app: str, first: str, second: str) -> list[dict[str, str]]:
        """What two releases differ in, in words."""
        return differences(await self.get(app, first), await self.get(app, second))

    async def versions(self) -> dict[str, Any]:
        """What releases are made of, by content: models, prompts, guards, with the releases that use each."""
        models: dict[str, dict[str, Any]] = {}
        prompts: dict[str, dict[str, Any]] = {}
        guards: dict[str, dict[str, Any]] = {}
        for app in self._apps().values():
            for r in app.releases.values():
                who = f"{app.name}/{r.name}"
                for e in r.route:
                    pin = e.digests.get("weights") or f"{e.vendor or e.provider}/{e.model}"
                    row = models.setdefault(
                        f"{e.name} {pin}", {"name": e.name, "version": pin, "digests": e.digests, "releases": []}
                    )
                    row["releases"].append(who)
                if r.prompt:
                    row = prompts.setdefault(
                        r.prompt.digest, {"name": r.prompt.name, "version": r.prompt.digest, "releases": []}
                    )
                    row["releases"].append(who)
                if r.guard:
                    pin = digest(msgspec.json.encode(r.guard))
                    guards.setdefault(pin, {"name": r.guard_name, "version": pin, "releases": []})["releases"].append(who)
        return {"models": [*models.values()], "prompts": [*prompts.values()], "guards": [*guards.values()]}

    # -- changing -----------------------------------------------------------------------------------

    async def create(self, wish: Wish) -> Release:
        """Make a release and serve it, without traffic. The same wish twice gives the same release."""
        if not NAME.fullmatch(wish.name):
            raise RequestError(
                f"{wish.name!r} is no name of a release.", code="invalid_name", param="name",
                hint="Letters, digits and . _ : -, at most 64.",
            )  # fmt: skip
        parent = await self.get(wish.app, wish.parent)
        made = derive(parent, wish.name, await self._wished(wish, parent), identify)
        known, definition = await self._known()
        there = known.added.get(wish.app, {}).get(wish.name)
        in_file = definition.apps[wish.app].releases.get(wish.name) if wish.app in definition.apps else None
        before = in_file or (there.release if there and not there.retired_ns else None)
        if before is not None:
            if before.id == made.id:
                return before
            raise Conflict(f"{wish.app} has another release {wish.name!r}.", code="release_exists", hint="Choose another name.")
        added = Added(made, time.time_ns(), wish.by, parent.id, wish.note)
        detail = {"release": made.id, "parent": parent.id, "differs": differences(parent, made), "note": wish.note}
        await self._registry.change(
            [put(ADDED, place(wish.app, wish.name), added), put(RELEASE, made.id, made)],
            ("release.created", wish.by, f"{wish.app}/{wish.name}", detail),
        )
        return made

    async def retire(self, app: str, name: str, *, actor: str, why: str = "") -> None:
        """Serve a release no more: who is being answered by it is answered to the end; the record stays.

        Refused while it has traffic, while a rollout may go back to it or forward, and while an environment names it.
        """
        served = self._apps(app)[app]
        if name not in served.releases:
            known, _ = await self._known()
            if name in known.retired.get(app, {}) or name in known.added.get(app, {}):
                return
            raise NotFound.nearest("release", name, sorted(served.releases), code="release_not_found")
        if share := served.weights.get(name, 0.0):
            words = f"{name} has {100 * share / sum(served.weights.values()):g} % of the traffic of {app}."
            raise RequestError(words, code="release_in_use", status=409, hint="Give its traffic to another release first.")
        if named := [a for a, n in served.aliases.items() if n == name]:
            raise RequestError(
                f"The environment {named[0]} of {app} is {name}.", code="release_in_use", status=409,
                hint=f"Take the name away first: noria release alias {app} {named[0]} --remove",
            )  # fmt: skip
        if await self._in_rollout(app, name):
            raise RequestError(
                f"{name} takes part in a rollout of {app} that is under way.", code="release_in_use", status=409,
                hint="Promote it or roll it back first.",
            )  # fmt: skip
        await self._retire(served, name, actor, why)

    async def alias(self, app: str, alias: str, name: str | None, *, actor: str) -> None:
        """Let an environment's name mean a release, or (None) nothing."""
        served = self._apps(app)[app]
        if not NAME.fullmatch(alias):
            raise RequestError(f"{alias!r} is no name of an environment.", code="invalid_name", param="alias")
        if name is not None and name not in served.releases:
            raise NotFound.nearest("release", name, sorted(served.releases), code="release_not_found")
        detail = {"release": served.releases[name].id if name else ""}
        write = Write(ALIAS, place(app, alias), None) if name is None else put(ALIAS, place(app, alias), name)
        await self._registry.change(
            [write], ("release.alias_set" if name else "release.alias_removed", actor, f"{app}@{alias}", detail)
        )

    # -- artifacts ----------------------------------------------------------------------------------

    async def verify(self, app: str, name: str) -> dict[str, str]:
        """Each artifact that a release serves: empty where it is whole and signed, else why it is refused."""
        release = await self.get(app, name)
        return await asyncio.to_thread(lambda: {a: _refusal(self._home, a) for a in artifacts_of(self._home, release)})

    async def unreferenced(self) -> list[Artifact]:
        """Artifacts that no release serves, nor any installed model."""
        known, _ = await self._known()
        releases = [r for app in self._apps().values() for r in app.releases.values()]
        releases += [a.release for of in known.added.values() for a in of.values() if not a.retired_ns]
        used = {a for r in releases for a in artifacts_of(self._home, r)}
        used |= {m.source for m in catalogue.installed(self._home).values() if m.source.startswith("a1:")}
        return await asyncio.to_thread(artifact.unreferenced, self._home, used, now_ns=time.time_ns())

    # -- inside -------------------------------------------------------------------------------------

    async def _wished(self, wish: Wish, parent: Release) -> Parts:
        if wish.model and wish.adapter:
            raise RequestError("Give a model or an adapter, not both.", code="ambiguous", param="adapter")
        model = None
        if wish.adapter:
            model = await asyncio.to_thread(self._adapted, parent.route[0], wish.adapter, wish.scale)
        elif wish.model:
            model = await asyncio.to_thread(self._model, parent.route[0], wish.model)
        prompt = None
        if wish.prompt is not None:
            prompt = Prompt(wish.prompt_name or wish.name, wish.prompt, digest(wish.prompt.encode()))
        rules: tuple[GuardRule, ...] | None = None
        if wish.guard is not None:
            snapshot = self._snapshot()
            if wish.guard not in snapshot.guards:
                raise NotFound.nearest("guard", wish.guard, sorted(snapshot.guards), code="guard_not_found")
            rules = snapshot.guards[wish.guard]
        return Parts(model, prompt, rules, wish.guard or "", wish.params)

    def _model(self, now: Endpoint, name: str) -> Endpoint:
        """An endpoint: of noria.yaml, an installed model, or a model that is an artifact, which is installed by this."""
        if name.startswith("a1:") and artifact.manifest_of(self._home, name).kind == TINY:
            return _tiny(self._home, name)
        if name.startswith("a1:"):
            name = install(self._home, name, context=now.context).id
        else:
            served = {e.name: e for a in self._apps().values() for r in a.releases.values() for e in r.route}
            found = served.get(name) or self.find_model(name)
            if found is not None:
                return found
        manifest = catalogue.manifest_of(self._home, name)
        if manifest.kind == "embedding":
            raise RequestError(f"The model {name!r} makes embeddings and cannot answer.", code="wrong_model", param="model")
        bare = now if now.provider == "local" else Endpoint(name, "local", name)
        options = {k: v for k, v in bare.options.items() if k not in ("adapter", "scale")}
        pinned = catalogue.digests(self._home, name)
        return replace(bare, name=name, model=name, options=options, digests=pinned, context=manifest.context or bare.context)

    def _adapted(self, now: Endpoint, id: str, scale: float | None) -> Endpoint:
        """The endpoint with an adapter upon it. Raises `RequestError` where it is of another base model."""
        if now.provider != "local":
            raise RequestError(
                f"{now.name} does not run here: an adapter goes upon a local model.", code="no_local_model", param="adapter"
            )
        path, made = artifact.path_of(self._home, id, kind=ADAPTER), artifact.manifest_of(self._home, id)
        base, weights = made.inputs.get("base", ""), now.digests.get("weights", "")
        if base and weights and base.removeprefix("sha256:") != weights.removeprefix("sha256:"):
            raise RequestError(
                f"The adapter {artifact.short(id)} was trained upon another model than {now.model}.", code="wrong_base",
                param="adapter", hint=f"Its base has the weights {base[:19]}, this one {weights[:19]}.",
            )  # fmt: skip
        strength = float(made.facts.get("scale", "1")) if scale is None else scale
        sha = next(f.sha256 for f in made.files if f.name == path.name)
        options = {**now.options, "adapter": id, "scale": strength}
        digests = {**now.digests, "adapter": f"sha256:{sha}"}
        return replace(now, name=f"{now.name.partition('+')[0]}+{id[3:11]}", options=options, digests=digests)

    async def _retire(self, app: App, name: str, actor: str, why: str) -> None:
        known, _ = await self._known()
        now, release = time.time_ns(), app.releases[name]
        added = known.added.get(app.name, {}).get(name)
        if added is not None and not added.retired_ns:
            write = put(ADDED, place(app.name, name), replace(added, retired_ns=now))
        else:
            write = put(RETIRED, place(app.name, name), Retired(release.id, now, actor, why))
        detail = {"release": release.id, "why": why}
        await self._registry.change([write], ("release.retired", actor, f"{app.name}/{name}", detail))

    async def _in_rollout(self, app: str, name: str) -> bool:
        there = await self._registry.get(OPEN, app, str)
        found = await self._registry.get(ROLLOUT, there[0], Rollout) if there else None
        return found is not None and name in (
            found[0].stable,
            found[0].candidate,
            *(n for n, w in found[0].before.items() if w),
        )

    async def _known(self) -> tuple[Registered, Definition]:
        definition = await stored_definition(self._registry.records, self._registry.tenant)
        return await registered(self._registry.records, self._registry.tenant), definition or Definition("", {})

    def _snapshot(self) -> Snapshot:
        found = self._current()
        if found is None:
            raise Unavailable("There is no configuration yet.", code="no_configuration")
        return found

    def _apps(self, app: str = "") -> dict[str, App]:
        all_apps = self._snapshot().apps
        if app and app not in all_apps:
            raise NotFound.nearest("app", app, sorted(all_apps), code="app_not_found")
        return {app: all_apps[app]} if app else all_apps

    @staticmethod
    def _alias(app: App, name: str) -> str:
        if name == PRODUCTION and name not in app.aliases:
            return max(app.weights, key=lambda n: app.weights[n])
        return app.aliases.get(name, name)

    @staticmethod
    def _row(app: App, release: Release, known: Registered, filed: dict[str, Release], rollout: str) -> dict[str, Any]:
        added = known.added.get(app.name, {}).get(release.name)
        retired = known.retired.get(app.name, {}).get(release.name)
        total = sum(app.weights.values())
        served = release.name in app.releases
        since = 0 if served else added.retired_ns if added and added.retired_ns else retired.at_ns if retired else 0
        return {
            "app": app.name,
            "name": release.name,
            "id": release.id,
            "percent": round(100 * app.weights.get(release.name, 0.0) / total, 6) if served else 0.0,
            "aliases": sorted(a for a, n in app.aliases.items() if n == release.name),
            "from": "file" if release.name in filed else added.by if added else "file",
            "made_ns": added.made_ns if added and release.name not in filed else None,
            "parent": added.parent if added else "",
            "note": added.note if added else "",
            "model": " → ".join(e.name for e in release.route),
            "prompt": release.prompt.name if release.prompt else "",
            "guard": release.guard_name,
            "reproducible": release.reproducible,
            "retired_ns": since or None,
            "rollout": rollout if app.weights.get(release.name) else "",
        }


def install(home: Path, id: str, *, context: int | None = None) -> catalogue.Manifest:
    """Make the model that an artifact is one of the installed models, under a name that its content gives."""
    path = artifact.path_of(home, id, kind=MODEL)
    made = artifact.manifest_of(home, id)
    stated = made.facts.get("context", "")
    window = int(stated) if stated.isdecimal() else context
    return catalogue.add_artifact(home, f"a1-{id[3:19]}", path, made=made, context=window)


def _tiny(home: Path, id: str) -> Endpoint:
    """The endpoint of a classifier that is an artifact; it is served from where it lies."""
    path, made = artifact.path_of(home, id, kind=TINY), artifact.manifest_of(home, id)
    sha = artifact.weights_of(made).sha256
    options = {"artifact": id, "file": str(path.absolute()), "sha256": sha}
    return Endpoint(f"tiny+{id[3:11]}", "tiny", f"tiny-{sha[:8]}", options=options, digests={"weights": f"sha256:{sha}"})


def digest_of(home: Path, id: str) -> str:
    """What pins the file that is loaded of an artifact."""
    return f"sha256:{artifact.weights_of(artifact.manifest_of(home, id)).sha256}"


def artifacts_of(home: Path, release: Release) -> list[str]:
    """Artifacts that a release serves: adapters, classifiers, and models that were installed from one."""
    found = [str(e.options[k]) for e in release.route for k in ("adapter", "artifact") if e.options.get(k)]
    for e in release.route:
        if e.provider == "local" and e.model.startswith("a1-"):
            try:
                found.append(catalogue.manifest_of(home, e.model).source)
            except NoriaError:
                found.append(e.model)
    return list(dict.fromkeys(found))


def _refusal(home: Path, id: str) -> str:
    try:
        artifact.verify(home, id, anew=True)
    except NoriaError as e:
        return e.text
    return ""


def _parts(release: Release) -> dict[str, Any]:
    """All of a release for people: no secrets are in it, keys are references."""
    parts: dict[str, Any] = msgspec.to_builtins(release)
    return parts
