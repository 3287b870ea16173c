"""The bill of materials of a configuration on this machine."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from noria.govern.sbom import Model, Remote, closure, document
from noria.release import catalogue
from noria.settings import Loaded, endpoints


def bill(loaded: Loaded, here: Path) -> dict[str, Any]:
    """Packages, and every model that the configuration names: those of this machine with licence and hashes.

    `SOURCE_DATE_EPOCH` stands for the time, where it is set (reproducible-builds.org).
    """
    there = catalogue.installed(here)
    models, remotes = {}, []
    for endpoint in endpoints(loaded.settings).values():
        if endpoint.provider == "local":
            models[endpoint.model] = _model(endpoint.model, there)
        else:
            remotes.append(Remote(endpoint.name, endpoint.vendor or endpoint.provider, endpoint.model, endpoint.url))
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    made = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return document(closure(), list(models.values()), remotes, made=made.strftime("%Y-%m-%dT%H:%M:%SZ"))


def _model(id: str, there: dict[str, catalogue.Manifest]) -> Model:
    found = there.get(id)
    if found is not None:
        files = tuple((Path(f.name).name if Path(f.name).is_absolute() else f.name, f.sha256) for f in found.files)
        return Model(id, found.title, found.licence, found.source, files)
    known = catalogue.CATALOGUE.get(id)
    return Model(id, known.title, known.licence, "catalogue") if known else Model(id, "", "", "unknown")
