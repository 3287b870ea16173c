"""`/api/releases*` and `/api/rollouts*`: what serves an app, what shall, and how it gets there; artifacts, too."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Query, Request
from pydantic import Field

from noria.api.field import Strict, actor
from noria.app.keeper import Keeper
from noria.app.releases import Wish
from noria.app.rollouts import Plan
from noria.contracts.artifact import Artifact
from noria.contracts.error import NotFound, RequestError
from noria.contracts.rollout import GateRule, Rollout, RolloutPolicy
from noria.release import artifact, gate


class Creating(Strict):
    """A release like another one, with other parts."""

    app: str
    parent: str = Field(description="The release that it is made from: its name, an environment's, or its id.")
    name: str
    model: str = Field("", description="A name under `models`, an installed model, or the id of an artifact `model_gguf`.")
    adapter: str = Field("", description="The id of an artifact `adapter_gguf`, upon the parent's local model.")
    scale: float | None = Field(None, description="Of the adapter; else what its manifest says, else 1.")
    prompt: str | None = Field(None, description="The system prompt's text; empty takes none.")
    prompt_name: str = ""
    guard: str | None = Field(None, description="A name under `guards`.")
    params: dict[str, Any] | None = Field(None, description="Request parameters to set; null takes one away.")
    note: str = Field("", max_length=1000)
    by: str = Field("", max_length=200, description="Who makes it (`refresh:<id>`); else whoever calls.")


class Naming(Strict):
    """One release of an app."""

    app: str
    name: str
    why: str = Field("", max_length=1000)


class Aliasing(Strict):
    """What an environment's name means; without a release, nothing any more."""

    app: str
    alias: str
    release: str | None = None


class Policy(Strict):
    """As `apps.<app>.rollout`; what is not given is as there, else as by default."""

    steps: list[float] | None = None
    metric: str | None = None
    max_regression: float | None = None
    min_answers: int | None = None
    alpha: float | None = None
    error_rate: float | None = None
    patience_hours: float | None = None


class Waiver(Strict):
    """Who lets a candidate pass a gate that it did not pass, and why."""

    by: str = Field("", max_length=200, description="Else whoever calls.")
    why: str = Field(max_length=1000)


class Judging(Strict):
    """What a candidate's gate is asked."""

    app: str
    candidate: str
    rules: list[dict[str, Any]] = Field([], description="`contracts.rollout.GateRule` each.")
    evidence: dict[str, Any] = Field({}, description="`release.gate.Evidence`.")


class Beginning(Strict):
    """A rollout. Rules are judged on the evidence; what the installation itself knows of the candidate is looked up, whatever it says."""

    app: str
    candidate: str
    policy: Policy = Policy()
    rules: list[dict[str, Any]] = Field([], description="`contracts.rollout.GateRule` each.")
    evidence: dict[str, Any] = Field({}, description="`release.gate.Evidence`.")
    waive: Waiver | None = None
    by: str = Field("", max_length=200, description="Who begins it (`refresh:<id>`); else whoever calls.")


class Word(Strict):
    """What a person decides of a rollout."""

    action: Literal["promote", "rollback", "pause", "resume"]
    why: str = Field("", max_length=1000)


class Publishing(Strict):
    """Files of this machine that shall be an artifact."""

    kind: str
    files: dict[str, str] = Field(description="Name in the artifact → absolute path.")
    inputs: dict[str, str] = {}
    facts: dict[str, str] = {}


class Trusting(Strict):
    """A public key (hex) and whose it is."""

    key: str
    name: str


def routes(app: FastAPI, keeper: Keeper, relayed: str) -> None:
    """Add them. Calls that came over the network (`relayed` is their header) may name no file and trust no key."""
    _releases(app, keeper)
    _export(app, keeper)
    _rollouts(app, keeper)
    _artifacts(app, keeper, relayed)


def _releases(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/releases", tags=["releases"])
    async def releases(app: str = "") -> list[dict[str, Any]]:
        """Every release of an app, or of all, with its share of the traffic; retired ones last."""
        return [_fields(r) for r in await keeper.releases.all(app)]

    @app.post("/api/releases", tags=["releases"], status_code=201)
    async def create(request: Request, body: Creating) -> dict[str, Any]:
        """Make a release from another; it is served at once, without traffic. The same again changes nothing."""
        made = await keeper.releases.create(Wish(**body.model_dump(exclude={"by"}), by=_by(request, body.by)))
        return _fields(await keeper.releases.show(body.app, made.name))

    @app.get("/api/releases/one", tags=["releases"])
    async def one(app: str, name: str) -> dict[str, Any]:
        """One release with all of its parts."""
        return _fields(await keeper.releases.show(app, name))

    @app.get("/api/releases/compare", tags=["releases"])
    async def compare(app: str, first: str, second: str) -> list[dict[str, str]]:
        """What two releases of an app differ in, in words."""
        return await keeper.releases.compare(app, first, second)

    @app.get("/api/releases/versions", tags=["releases"])
    async def versions() -> dict[str, Any]:
        """The models, prompts and guards that releases are made of, by content; the versions of datasets."""
        found = await keeper.releases.versions()
        if keeper.datasets is not None:
            found["datasets"] = [msgspec.to_builtins(v) for v in await keeper.datasets.latest(keeper.tenant)]
        return _fields(found)

    @app.post("/api/releases/retire", tags=["releases"])
    async def retire(request: Request, body: Naming) -> dict[str, Any]:
        """Serve a release no more. Refused while anything may need it; its record stays."""
        await keeper.releases.retire(body.app, body.name, actor=actor(request), why=body.why)
        return _fields(await keeper.releases.show(body.app, body.name))

    @app.post("/api/releases/alias", tags=["releases"])
    async def alias(request: Request, body: Aliasing) -> dict[str, Any]:
        """Let `model: "<app>@<alias>"` mean a release."""
        await keeper.releases.alias(body.app, body.alias, body.release, actor=actor(request))
        return {"app": body.app, "alias": body.alias, "release": body.release}

    @app.post("/api/releases/verify", tags=["releases"])
    async def verify(body: Naming) -> dict[str, Any]:
        """Read every artifact of a release again, whole."""
        found = await keeper.releases.verify(body.app, body.name)
        return {"ok": not any(found.values()), "artifacts": found}

    @app.post("/api/releases/gate", tags=["releases"])
    async def judged(body: Judging) -> dict[str, Any]:
        """What the gate says of a candidate: the declared rules, and what is asked of every one. Nothing is begun."""
        rules, evidence = _read(body.rules, list[GateRule], "rules"), _read(body.evidence, gate.Evidence, "evidence")
        findings = await keeper.gates.judged(body.app, body.candidate, rules, evidence)
        return {"verdict": gate.verdict(findings), "findings": [_fields(msgspec.to_builtins(f)) for f in findings]}


def _export(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/releases/export", tags=["releases"])
    async def export(app: str, name: str = "production") -> dict[str, Any]:
        """A release that was made while the service ran as noria.yaml would have it: what is added, and the whole file with it."""
        snapshot, release = keeper.current(), await keeper.releases.get(app, name)
        assert snapshot is not None, "it has a release"
        if keeper.changes is None:
            raise NotFound("This keeper reads no file.", code="not_found")
        found: dict[str, Any] = msgspec.to_builtins(await keeper.changes.exported(snapshot.apps[app], release))
        return found


def _rollouts(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/rollouts", tags=["releases"])
    async def several(app: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        """Rollouts, newest first."""
        return [_shown(r) for r in (await keeper.rollouts.all(app))[:limit]]

    @app.post("/api/rollouts", tags=["releases"], status_code=201)
    async def begin(request: Request, body: Beginning) -> dict[str, Any]:
        """Begin a rollout. Where the gate does not let the candidate pass, it is `rejected`, unless somebody waives that."""
        rules, evidence = _read(body.rules, list[GateRule], "rules"), _read(body.evidence, gate.Evidence, "evidence")
        findings = await keeper.gates.judged(body.app, body.candidate, rules, evidence)
        waived = gate.waiver(body.waive.by or actor(request), body.waive.why) if body.waive else ""
        passed = gate.verdict(findings) == "pass"
        plan = Plan(
            body.app, body.candidate, _by(request, body.by), await _policy(keeper, body), findings,
            passed=passed or bool(waived), waived="" if passed else waived,
        )  # fmt: skip
        return await whole(await keeper.rollouts.start(plan))

    @app.get("/api/rollouts/{id}", tags=["releases"])
    async def one(id: str) -> dict[str, Any]:
        """One rollout with its decisions, what they rest on, and what was known meanwhile; the latest of an app by the app's name."""
        return await whole((await keeper.rollouts.get(id))[0])

    @app.post("/api/rollouts/{id}", tags=["releases"])
    async def overrule(request: Request, id: str, body: Word) -> dict[str, Any]:
        """A person decides. In force at every worker within a second."""
        return await whole(await keeper.rollouts.override(id, body.action, actor=actor(request), why=body.why))

    async def whole(rollout: Rollout) -> dict[str, Any]:
        return _shown(rollout) | {
            "decisions": [_fields(msgspec.to_builtins(d)) for d in await keeper.rollouts.decisions(rollout)],
            "looks": [_fields(msgspec.to_builtins(k)) for k in await keeper.rollouts.looks(rollout)],
        }


def _artifacts(app: FastAPI, keeper: Keeper, relayed: str) -> None:
    def local(request: Request) -> None:
        if relayed in request.headers:
            raise RequestError("This is for the machine's own command line.", code="file_refused", status=403)

    @app.get("/api/artifacts", tags=["releases"])
    async def artifacts() -> dict[str, Any]:
        """Every artifact, newest first, and this installation's public key."""
        found = await asyncio.to_thread(artifact.installed, keeper.home)
        trusted = await asyncio.to_thread(artifact.trusted, keeper.home)
        shown = [_manifest(a) | {"signed_by": trusted.get(a.signer, "")} for a in found.values()]
        return {"key": artifact.public_key(keeper.home), "trusted": trusted, "artifacts": shown}

    @app.post("/api/artifacts", tags=["releases"], status_code=201)
    async def publish(request: Request, body: Publishing) -> dict[str, Any]:
        """Make an artifact of files of this machine, signed."""
        local(request)
        files = {name: Path(path) for name, path in body.files.items()}
        made = await asyncio.to_thread(
            artifact.publish, keeper.home, body.kind, files, inputs=body.inputs, facts=body.facts, made_ns=time.time_ns()
        )
        await keeper.note("artifact.published", actor(request), made.id, {"kind": made.kind, "inputs": made.inputs})
        return _manifest(made)

    @app.post("/api/artifacts/{id}/verify", tags=["releases"])
    async def verify(id: str) -> dict[str, Any]:
        """Read it whole and check its signature. An error names what is wrong."""
        return _manifest(await asyncio.to_thread(artifact.verify, keeper.home, id, anew=True))

    @app.post("/api/artifacts/trust", tags=["releases"])
    async def trust(request: Request, body: Trusting) -> dict[str, str]:
        """Believe in what the holder of a key has signed."""
        local(request)
        await asyncio.to_thread(artifact.trust, keeper.home, body.key, body.name)
        await keeper.note("artifact.key_trusted", actor(request), body.key, {"name": body.name})
        return await asyncio.to_thread(artifact.trusted, keeper.home)

    @app.post("/api/artifacts/collect", tags=["releases"])
    async def collect(request: Request, dry_run: bool = True) -> dict[str, Any]:
        """Artifacts that nothing serves; they are removed where this is no dry run."""
        found = await keeper.releases.unreferenced()
        for a in found if not dry_run else ():
            await asyncio.to_thread(artifact.remove, keeper.home, a.id)
            await keeper.note("artifact.removed", actor(request), a.id, {"kind": a.kind})
        freed = sum(f.bytes for a in found for f in a.files)
        return {"dry_run": dry_run, "bytes": freed, "artifacts": [_manifest(a) for a in found]}


async def _policy(keeper: Keeper, body: Beginning) -> RolloutPolicy:
    """What was asked for, upon what the file declares for the app."""
    given = {k: v for k, v in body.policy.model_dump().items() if v is not None}
    if "steps" in given:
        given["steps"] = tuple(given["steps"])
    return msgspec.structs.replace(await keeper.rollouts.declared_policy(body.app), **given)


def _by(request: Request, given: str) -> str:
    """Who begins or makes it: what the machine's own jobs say of themselves, else the caller."""
    who = actor(request)
    return given if given and who == "cli" else who


def _read(value: Any, type: Any, param: str) -> Any:
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as e:
        raise RequestError(f"{param}: {e}", code="invalid_value", param=param) from e


def _shown(rollout: Rollout) -> dict[str, Any]:
    step = rollout.policy.steps[rollout.step] if rollout.step_began_ns else 0.0
    shares = {"promoted": 100.0, "rolled_back": 0.0, "rejected": 0.0}
    return _fields(msgspec.to_builtins(rollout)) | {"percent": shares.get(rollout.state, step)}


def _manifest(made: Artifact) -> dict[str, Any]:
    return _fields(msgspec.to_builtins(made)) | {"bytes": sum(f.bytes for f in made.files)}


def _fields(value: dict[str, Any]) -> dict[str, Any]:
    """Moments (`…_ns`) as text: 64 bits are more than a browser's numbers hold."""
    return {k: str(v) if k.endswith("_ns") and v is not None else _inside(v) for k, v in value.items()}


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return _fields(value)
    return [_inside(v) for v in value] if isinstance(value, (list, tuple)) else value
