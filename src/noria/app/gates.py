"""The gate of a release in the keeper: a caller's evidence with what only the installation itself can say of a candidate.

Signatures, what stands in trained files, what is pinned, and which data an artifact was made from are looked up here, whatever a
caller says of them; every rollout passes through, whoever begins it (`app.rollouts`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from noria.adapt import equivalence
from noria.adapt.equivalence import Served
from noria.app.house import identify
from noria.app.releases import Releases, artifacts_of
from noria.contracts.artifact import FINGERPRINT, Artifact
from noria.contracts.error import NoriaError
from noria.contracts.release import Endpoint, Prompt, Release
from noria.contracts.rollout import Finding, GateRule
from noria.contracts.training import Fingerprint
from noria.kit.ids import digest
from noria.release import artifact, catalogue
from noria.release.gate import ALWAYS, Evidence, judge

PROMPT, DATASET = "prompt", "dataset"
"""The fact and the input of an artifact that are compared with the release."""


class Gates:
    """Judges candidates. Raises `NotFound` for a release that is not there."""

    def __init__(self, home: Path, releases: Releases) -> None:
        self._home = home
        self._releases = releases

    async def judged(
        self, app: str, candidate: str, rules: Sequence[GateRule] = (), evidence: Evidence | None = None
    ) -> tuple[Finding, ...]:
        """A finding for each declared rule, then for each of `ALWAYS` that was not declared. Nothing is changed by it."""
        release = await self._releases.get(app, candidate)
        known = replace(evidence or Evidence(), artifacts=await self._releases.verify(app, candidate))
        known = await asyncio.to_thread(_looked_at, self._home, release, known)
        kinds = {rule.kind for rule in rules}
        return judge([*rules, *(rule for rule in ALWAYS if rule.kind not in kinds)], known)


def _looked_at(home: Path, release: Release, evidence: Evidence) -> Evidence:
    """`evidence` with what is found here in place of what it says of these."""
    files: dict[str, str] = {}
    trained: dict[str, str] = {}
    pins = list(_wrong_pins(release))
    for endpoint in release.route:
        for name in artifacts_of(home, replace(release, route=(endpoint,))):
            try:
                made = artifact.manifest_of(home, name)
            except NoriaError:
                continue  # the rule `signature` says why
            if DATASET in made.inputs:
                trained[name] = made.inputs[DATASET]
            if any(f.name == FINGERPRINT for f in made.files):
                files[name] = _fault(home, endpoint, made)
            pins += _other_prompt(release.prompt, made)
    return replace(evidence, files=files, pins=tuple(pins), trained=trained)


def _fault(home: Path, endpoint: Endpoint, made: Artifact) -> str:
    """What in a served file is not what was trained; empty where all of it is."""
    base = artifact.folder(home, made.id)
    try:
        expected = msgspec.json.decode((base / FINGERPRINT).read_bytes(), type=Fingerprint)
        equivalence.inspect(_served(home, endpoint, made), expected)
    except NoriaError as e:
        return e.text
    except (OSError, msgspec.MsgspecError) as e:
        return f"{base / FINGERPRINT} cannot be read: {e}."
    return ""


def _served(home: Path, endpoint: Endpoint, made: Artifact) -> Served:
    """The files as the model server would load them."""
    file = artifact.folder(home, made.id) / artifact.weights_of(made).name
    if endpoint.options.get("adapter") != made.id:
        return Served(file)
    return Served(catalogue.weights(home, endpoint.model), file, float(endpoint.options.get("scale", 1.0)))


def _wrong_pins(release: Release) -> list[str]:
    """What a release says of itself and is not so."""
    prompt = release.prompt
    if prompt is not None and digest(prompt.text.encode()) != prompt.digest:
        return [f"The prompt {prompt.name} of {release.name} is mis-pinned: its text is not that of {prompt.digest[:12]}."]
    if identify(release) != release.id:
        changed = "something was changed, or another version of Noria made it"
        return [f"The id of {release.name} is not that of its parts: {changed}. Make the release anew."]
    return []


def _other_prompt(served: Prompt | None, made: Artifact) -> list[str]:
    """An artifact was trained with another prompt than it is asked with."""
    pinned = served.digest if served is not None else ""
    if PROMPT not in made.facts or made.facts[PROMPT] == pinned:
        return []
    now, then = (f"the prompt {d[:12]}" if d else "no prompt" for d in (pinned, made.facts[PROMPT]))
    return [f"The prompt is mis-pinned: the release has {now}, {artifact.short(made.id)} was trained with {then}."]
