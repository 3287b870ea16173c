"""Hard filters: which endpoints may answer a request at all. What is excluded here is never asked, whatever fails."""

from __future__ import annotations

from collections.abc import Sequence

from noria.contracts.error import RequestError
from noria.contracts.exchange import Exchange
from noria.contracts.release import Endpoint
from noria.gateway.facts import Facts

REGIONS_TAG = "regions"
"""The tag (of a key, or of a request) that narrows the regions: `eu`, or several separated by `+`."""

Regions = tuple[tuple[str, ...], ...]


def demanded(x: Exchange, own: Regions) -> Regions:
    """Every constraint on regions that `x` falls under; a caller can narrow them, never widen."""
    if not x.tags and (x.key is None or not x.key.tags):
        return own
    said = {x.tags.get(REGIONS_TAG, ""), x.key.tags.get(REGIONS_TAG, "") if x.key else ""} - {""}
    return own + tuple(tuple(r.strip() for r in text.split("+")) for text in sorted(said))


def within(endpoint: Endpoint, regions: Regions) -> bool:
    """Whether an endpoint computes within every constraint. An unknown region is within none, an empty name (`eu+`) is none.

    >>> within(Endpoint("a", "p", "m", region="eu-west-1"), (("eu", "uk"),))
    True
    """
    return all(any(r and (endpoint.region == r or endpoint.region.startswith(r + "-")) for r in group) for group in regions)


def allowed(x: Exchange, endpoints: Sequence[Endpoint], own: Regions) -> Sequence[Endpoint]:
    """Those that may see `x` at all, whatever they are to do with it. Raises `RequestError` where none may."""
    regions = demanded(x, own)
    if not regions:
        return endpoints
    fit = [e for e in endpoints if within(e, regions)]
    if not fit:
        raise refusal(endpoints, Facts(x), regions)
    return fit


def why_not(endpoint: Endpoint, facts: Facts, regions: Regions) -> str:
    """What keeps an endpoint from answering; empty where nothing does."""
    if regions and not within(endpoint, regions):
        return f"computes in {endpoint.region!r}" if endpoint.region else "has no known region"
    lacking = [f for f in facts.needs() if f in endpoint.lacks] if endpoint.lacks else []
    if lacking:
        return "lacks " + " and ".join(lacking)
    return ""


def too_small(endpoint: Endpoint, facts: Facts) -> bool:
    """Whether the prompt is surely too long for an endpoint: by half more than its window, since tokens are estimated."""
    return endpoint.context is not None and facts.tokens > 1.5 * endpoint.context


def said(regions: Regions) -> str:
    """Constraints in words.

    >>> said((("eu", "uk"), ("eu",)))
    'regions [eu, uk] and [eu]'
    """
    return "regions " + " and ".join(f"[{', '.join(group)}]" for group in regions)


def refusal(endpoints: Sequence[Endpoint], facts: Facts, regions: Regions) -> RequestError:
    """The error that says which constraint leaves nobody."""
    asked = [said(regions)] if regions else []
    asked += [name.replace("_", " ") for name in facts.needs() if any(name in e.lacks for e in endpoints)]
    reasons = [(e.name, why_not(e, facts, regions) or "has too small a context window") for e in endpoints]
    many = "; ".join(f"{name} {why}" for name, why in reasons[:8])
    return RequestError(
        f"No model of {facts.x.model!r} may answer this request ({', '.join(asked) or 'its length'}): {many}.",
        code="no_model_qualifies",
        param="model",
    )
