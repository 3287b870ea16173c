"""A release id from what makes an answer: `r1:` + BLAKE3 of canonical JSON of resolved digests (DESIGN §3a.1).

Names, secrets, URLs and times are left out; every fallback counts, in order. A remote model contributes
provider, name and parameters and makes the release not reproducible, since the vendor may change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from noria.contracts.release import Endpoint, Release
from noria.kit.ids import canonical, digest


def release_id(release: Release, behaviours: Mapping[str, int]) -> str:
    """The id of `release`. `behaviours` gives the integer version of every stage and check it uses."""
    content = {
        "route": [_endpoint(e) for e in release.route],
        "prompt": release.prompt.digest if release.prompt else None,
        "guard": [_plain(r) for r in release.guard],
        "memory": release.memory,
        "normalize": release.normalize,
        "fit": release.fit,
        "params": release.params,
        "behaviours": dict(sorted(behaviours.items())),
    }
    return "r1:" + digest(canonical(_plain(content)))


def reproducible(release: Release) -> bool:
    """Whether the same id means the same weights: true only where every endpoint states its digests."""
    return bool(release.route) and all("weights" in e.digests for e in release.route)


def _endpoint(e: Endpoint) -> dict[str, Any]:
    pin: dict[str, Any] = {
        "provider": e.vendor or e.provider,
        "model": e.model,
        "options": e.options,
        "context": e.context,
    }
    if e.digests:
        pin["digests"] = dict(sorted(e.digests.items()))
        del pin["model"]
    return pin


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)
