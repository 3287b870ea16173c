"""A release id from what makes an answer: `r1:` + BLAKE3 of canonical JSON of resolved digests (DESIGN §3a.1).

Names, secrets, URLs and times are left out; every fallback counts, in order. A remote model contributes
provider, name and parameters and makes the release not reproducible, since the vendor may change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from noria.contracts.release import Endpoint, Release
from noria.contracts.routing import Pools
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
    semantic = release.caching.semantic if release.caching else None
    if semantic is not None:  # an exact cache repeats what the model said; this one answers by resemblance
        content["semantic"] = {"embedder": _endpoint(semantic.embedder), "threshold": semantic.threshold}
    if not release.routing.plain or any(e.lacks for e in release.route):
        content["routing"] = _routing(release)
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
    if "adapter" in e.digests:  # what is in it counts, not what an installation calls it
        pin["options"] = {k: v for k, v in e.options.items() if k != "adapter"}
    if "artifact" in e.options and "weights" in e.digests:
        pin["options"] = {k: v for k, v in e.options.items() if k not in ("artifact", "file", "sha256")}
    if e.digests:
        pin["digests"] = dict(sorted(e.digests.items()))
        del pin["model"]
    return pin


def _routing(release: Release) -> dict[str, Any]:
    """The choice among the endpoints, which are named by their places in the route. How failures are met (retries, health,
    hedging) changes when an answer comes, not which release it is of.
    """
    r, place = release.routing, {e.name: n for n, e in enumerate(release.route)}

    def places(pools: Pools) -> list[list[int]]:
        return [[place[name] for name in pool] for pool in pools]

    topics = r.semantic and {
        "embedder": _endpoint(release.embedder) if release.embedder else None,
        "topics": [{"examples": t.examples, "use": places(t.use)} for t in r.semantic.topics],
        "margin": r.semantic.margin,
    }
    return {
        "strategy": r.strategy,
        "pools": places(r.pools),
        "weights": {str(place[name]): weight for name, weight in r.weights.items() if name in place},
        "sticky": r.sticky,
        "rules": [{**_plain(rule), "use": places(rule.use)} for rule in r.rules],
        "semantic": topics,
        "regions": r.regions,
        "region_of": [e.region for e in release.route] if r.regions else [],
        "lacks": [e.lacks for e in release.route],
        "window": r.window,
    }


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)
