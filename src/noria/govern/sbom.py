"""What this installation is made of, as a CycloneDX 1.6 document: packages, models on this machine, models elsewhere.

Packages are those that Noria's own metadata leads to and that are installed (`importlib.metadata`). A requirement whose
environment marker does not hold here is listed all the same where the package is there: what lies here can be loaded.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

import msgspec

SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")
_LINKS = {"homepage": "website", "repository": "vcs", "source": "vcs", "documentation": "documentation"}

Closure = dict[str, tuple[Distribution, list[str]]]
"""Package (normalised name) → its metadata, and the packages that it asks for."""


class Model(msgspec.Struct, frozen=True):
    """A model that this machine serves. `files` are (name, SHA-256), the weights first; none = it is not installed."""

    id: str
    title: str
    licence: str
    source: str
    files: Sequence[tuple[str, str]] = ()


class Remote(msgspec.Struct, frozen=True):
    """A model that somebody else serves."""

    name: str
    provider: str
    model: str
    url: str


def closure(root: str = "noria") -> Closure:
    """`root` and everything installed that it asks for, directly or not, with the extras that are asked for."""
    found: dict[str, tuple[Distribution, set[str]]] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(_normal(root), frozenset())]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = asked = waiting.pop()
        if asked in done:
            continue
        done.add(asked)
        try:
            dist = distribution(name)
        except PackageNotFoundError:  # for another platform, or optional
            continue
        wanted = [r for r in map(_read, dist.requires or ()) if r[2] is None or r[2] in extras]
        known = found.setdefault(name, (dist, set()))[1]
        known.update(n for n, _, _ in wanted)
        waiting += [(n, e) for n, e, _ in wanted]
    return {name: (dist, sorted(n for n in names if n in found)) for name, (dist, names) in sorted(found.items())}


def document(packages: Closure, models: Sequence[Model], remotes: Sequence[Remote], *, made: str) -> dict[str, Any]:
    """The document; the same installation gives the same serial number. `made` is ISO 8601, UTC."""
    root, _ = packages["noria"]
    libraries = [_library(dist) for name, (dist, _) in packages.items() if name != "noria"]
    whole = {**_library(root), "type": "application"}
    parts = [*libraries, *map(_model, models)]
    services = [_service(r) for r in remotes]
    refs = {name: _purl(dist) for name, (dist, _) in packages.items()}
    tree: list[dict[str, Any]] = [
        {"ref": refs[name], "dependsOn": [refs[n] for n in names]} for name, (_, names) in packages.items()
    ]
    tree[list(packages).index("noria")]["dependsOn"] += [p["bom-ref"] for p in (*parts[len(libraries) :], *services)]
    content = msgspec.json.encode([whole, parts, services], order="deterministic")
    return {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, sha256(content).hexdigest())}",
        "version": 1,
        "metadata": {
            "timestamp": made,
            "lifecycles": [{"phase": "operations"}],
            "tools": {"components": [{"type": "application", "name": "noria", "version": root.version}]},
            "component": whole,
        },
        "components": parts,
        "services": services,
        "dependencies": tree,
    }


def _library(dist: Distribution) -> dict[str, Any]:
    name = _normal(dist.metadata["Name"])
    record = dist.read_text("RECORD")
    made: dict[str, Any] = {
        "type": "library", "bom-ref": _purl(dist), "name": name, "version": dist.version, "purl": _purl(dist),
        "licenses": _licences(dist), "externalReferences": _links(dist),
    }  # fmt: skip
    if record:  # it has the hash of every file, so its own stands for them all
        made["properties"] = [{"name": "noria:record.sha256", "value": sha256(record.encode()).hexdigest()}]
    return {k: v for k, v in made.items() if v}


def _licences(dist: Distribution) -> list[dict[str, Any]]:
    """As the package declares it: an SPDX expression, else its classifiers, else the first line of its text."""
    meta = dist.metadata
    for expression in meta.get_all("License-Expression") or ():
        return [{"expression": expression, "acknowledgement": "declared"}]
    named = [c.rpartition(" :: ")[2] for c in meta.get_all("Classifier") or () if c.startswith("License :: ")]
    if not named:
        texts = [t.strip() for t in meta.get_all("License") or ()]
        named = [t.splitlines()[0][:200] for t in texts if t]
    return [{"license": {"name": n, "acknowledgement": "declared"}} for n in dict.fromkeys(named)]


def _links(dist: Distribution) -> list[dict[str, str]]:
    found: dict[str, str] = {}
    for entry in dist.metadata.get_all("Project-URL") or ():
        label, _, url = entry.partition(",")
        kind = _LINKS.get(label.strip().lower())
        if kind and " " not in url.strip():
            found.setdefault(kind, url.strip())
    return [{"type": kind, "url": url} for kind, url in found.items()]


def _model(model: Model) -> dict[str, Any]:
    ref = f"model:{model.id}"
    made: dict[str, Any] = {
        "type": "machine-learning-model", "bom-ref": ref, "name": model.id, "description": model.title,
        "licenses": [{"license": {"name": model.licence, "acknowledgement": "declared"}}] if model.licence else [],
        "hashes": [_hash(model.files[0][1])] if model.files else [],
        "components": [
            {"type": "file", "bom-ref": f"{ref}/{name}", "name": name, "hashes": [_hash(digest)]} for name, digest in model.files
        ],
        "properties": [
            {"name": "noria:source", "value": model.source},
            {"name": "noria:installed", "value": "true" if model.files else "false"},
        ],
    }  # fmt: skip
    return {k: v for k, v in made.items() if v}


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _service(remote: Remote) -> dict[str, Any]:
    """Prompts leave this machine for it: it is a part of what runs, though nothing of it is here."""
    made: dict[str, Any] = {
        "bom-ref": f"service:{remote.name}", "name": remote.name, "provider": {"name": remote.provider},
        "endpoints": [remote.url] if remote.url else [], "x-trust-boundary": True,
        "properties": [{"name": "noria:model", "value": remote.model}],
    }  # fmt: skip
    return {k: v for k, v in made.items() if v}


def _purl(dist: Distribution) -> str:
    return f"pkg:pypi/{_normal(dist.metadata['Name'])}@{dist.version}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _read(requirement: str) -> tuple[str, frozenset[str], str | None]:
    """(name, extras that are asked for, the extra that it belongs to) of a line of metadata."""
    found = _REQUIREMENT.match(requirement)
    assert found is not None, requirement
    extras = frozenset(e.strip() for e in (found[2] or "").split(",") if e.strip())
    belongs = _EXTRA.search(requirement.partition(";")[2])
    return _normal(found[1]), extras, belongs[1] if belongs else None


def counts(made: Mapping[str, Any]) -> str:
    """One line for people."""
    kinds = [c["type"] for c in made["components"]]
    return (
        f"{kinds.count('library')} packages, {kinds.count('machine-learning-model')} models, {len(made['services'])} services"
    )
