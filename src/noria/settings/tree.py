"""The shape of `noria.yaml`: one frozen pydantic model a mapping, unknown keys refused, nothing converted silently.

Only shape is decided here; whether a name that is referred to exists is decided in `meaning`, so that both
kinds of mistake are reported together.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from noria.contracts.routing import Feature
from noria.settings.caching import Caching
from noria.settings.drift import DriftSettings
from noria.settings.evaluate import SuiteSettings
from noria.settings.files import BatchSettings, FileSettings
from noria.settings.health import Health
from noria.settings.metrics import MetricsSettings
from noria.settings.money import AlertSettings, BudgetSettings, LimitSettings, OwnPrice
from noria.settings.operate import OperateSettings
from noria.settings.refresh import RefreshSettings
from noria.settings.rollout import RolloutSettings
from noria.settings.routing import Regions, Route, RoutingSettings
from noria.settings.shape import Duration, HttpUrl, Name, SecretReference, Size, StoreUrl, Strict, Texts, listed
from noria.settings.train import TrainSettings

_DEFAULT_ACTIONS: dict[str, Action] = {"secrets": "block", "pii": "mask", "denylist": "block"}

Action = Literal["flag", "mask", "block"]
Side = Literal["input", "output"]


def _sides(value: Any) -> Any:
    return ["input", "output"] if value == "both" else listed(value)


def _rule(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


Sides = Annotated[
    list[Side],
    Field(min_length=1),
    BeforeValidator(_sides, json_schema_input_type=Literal["input", "output", "both"] | list[Side]),
]


class TimeoutSettings(Strict):
    """How long a model may take: numbers are seconds, text has a unit (`500ms`, `5s`, `2m`)."""

    connect: Duration = Field(default=5.0, gt=0)
    """Until the connection stands."""
    first: Duration = Field(default=120.0, gt=0)
    """From the request to the first byte of the answer."""
    idle: Duration = Field(default=60.0, gt=0)
    """The longest pause inside an answer."""
    total: Duration = Field(default=600.0, gt=0)
    """The whole answer."""


class ModelSettings(Strict):
    """One model that can be called: an embedded one, a server that speaks OpenAI's dialect, or a vendor's."""

    provider: str
    """`local`, `scripted`, `anthropic`, `openai_compatible`, a vendor (`openai`, …) or the id of an extension."""
    model: str = Field(min_length=1)
    """The provider's own name of the model."""
    url: HttpUrl | None = None
    """Where the server is, up to and including `/v1`; vendors have one of their own."""
    key: SecretReference | None = None
    """Where the API key is: `env:NAME` or `file:PATH`, never the key itself."""
    context: int | None = Field(default=None, gt=0)
    """The context window in tokens, where it is known; prompts are fitted into it."""
    price: OwnPrice | None = None
    """What it costs."""
    timeouts: TimeoutSettings = TimeoutSettings()
    """How long it may take."""
    options: dict[str, Any] = {}
    """The provider's own options."""
    region: str = ""
    """Where it computes (`eu`, `us-east-1`, …): for apps, releases and keys that demand a region."""
    lacks: list[Feature] = []
    """What it cannot do, of `tools`, `images`, `json_schema`: requests that need it go to other models of the route."""
    health: Health = None
    """Whether the endpoint is asked now and then if it answers, besides what its answers say: what to ask, or a mapping. Off when absent."""
    kind: Literal["chat", "embedding"] = "chat"
    """Whether it answers chats or serves `/v1/embeddings` under its name."""


class PromptSettings(Strict):
    """A system prompt, versioned by its content: give `file` or `text`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["file"]}, {"required": ["text"]}]})

    file: str | None = Field(default=None, min_length=1)
    """A UTF-8 text file; relative paths start at the configuration's folder."""
    text: str | None = None
    """The prompt itself."""


class RuleSettings(Strict):
    """What follows from one check. Any other key is an option of the check itself."""

    model_config = ConfigDict(extra="allow")

    action: Action | None = None
    """`flag` records, `mask` replaces what was found, `block` refuses; when absent `block` for `secrets` and `denylist`,
    `mask` for `pii`, `flag` for all others."""
    on: Sides = ["input"]
    """What is judged: `input`, `output` or `both`."""
    message: str = ""
    """What the caller is told when it blocks."""
    stream: Literal["hold", "after"] = "hold"
    """For checks that must see the whole answer: `hold` the stream back, or judge `after` it left (then only `flag`)."""

    def resolved_action(self, check: str) -> Action:
        """The action that applies to `check`."""
        return self.action or default_action(check)


Rule = Annotated[
    dict[str, RuleSettings],
    Field(min_length=1, max_length=1),
    BeforeValidator(_rule, json_schema_input_type=str | Annotated[dict[str, RuleSettings], Field(min_length=1, max_length=1)]),
]


class ParameterSettings(Strict):
    """Request parameters that a release sets where the caller did not."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    """Sampling temperature; 0 = greedy."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling: the probability mass that is kept."""
    top_k: int | None = Field(default=None, ge=0)
    """How many of the likeliest tokens are kept; 0 = all. Not every provider knows it."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Least probability of a token relative to the likeliest one. Not every provider knows it."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Most tokens of an answer."""
    max_completion_tokens: int | None = Field(default=None, gt=0)
    """As `max_tokens`, reasoning included (OpenAI's newer name)."""
    seed: int | None = None
    """Seed of the sampler."""
    stop: Texts | None = None
    """Texts at which an answer ends."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Penalty on tokens that have occurred."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Penalty on tokens by how often they have occurred."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """Multiplicative penalty on repetition; 1 = none. Not every provider knows it."""
    logit_bias: dict[str, float] | None = None
    """Token id → bias."""
    reasoning_effort: str | None = None
    """How much a reasoning model thinks (`low`, `medium`, `high`, …)."""
    verbosity: str | None = None
    """How long a model's answers are, where it has that control."""
    response_format: dict[str, Any] | None = None
    """The form of the answer, as in OpenAI's API."""


class AnswerSettings(Strict):
    """What makes an answer besides the model."""

    prompt: str | None = None
    """A name under `prompts`: the system prompt."""
    guard: str | None = None
    """A name under `guards`: the policy."""
    memory: int = Field(default=0, ge=0)
    """How many messages of a conversation are kept and replayed; 0 = none."""
    normalize: bool = True
    """Whether Unicode of the prompt is normalised."""
    fit: bool = True
    """Whether the oldest turns are dropped where a prompt exceeds the context window."""
    params: ParameterSettings = ParameterSettings()
    """Request parameters set where the caller did not."""
    cache: Caching = None
    """Whether answers are given again to those who ask the same: `true`, or a mapping. Off when absent."""
    routing: RoutingSettings = RoutingSettings()
    """How the models of the route share the load and stand in for each other."""
    single_flight: bool | None = None
    """Whether identical requests under way at the same time share one call to the model; when absent, as `cache`."""


class ReleaseSettings(AnswerSettings):
    """One immutable way to answer for an app."""

    model: Route
    """A name under `models`, or several in order: the first answers, the others are fallbacks. An inner list is a pool whose
    models share the load as `routing` says: `[[a, b], c]`."""


class AppSettings(AnswerSettings):
    """What a client calls by name. Give `releases`, or the keys of a single release, which is then called `main`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["model"]}, {"required": ["releases"]}]})

    description: str = ""
    """What it is for; shown in the console and in `/v1/models`."""
    model: Route | None = None
    """As in a release (short form)."""
    releases: dict[Name, ReleaseSettings] | None = Field(default=None, min_length=1)
    """The releases by name."""
    weights: dict[str, float] | None = None
    """Start shares of traffic by release; absent ones get 0. All to the first release when not given."""
    rollout: RolloutSettings | None = None
    """How one of the releases, the candidate, comes into service; `apply` begins it."""
    drift: DriftSettings | None = None
    """Whether somebody watches if its traffic changes; `{}` for the usual windows. Not watched when absent."""
    refresh: RefreshSettings | None = None
    """How its traffic becomes its next release: what is learned, trained, asked for, and what begins it. By hand alone when absent."""
    regions: Regions = []
    """Where its requests may be computed, in whatever release; see `routing.regions`."""
    record_bodies: bool = True
    """Whether traces keep prompts and answers (encrypted) or only their facts."""

    def all_releases(self) -> dict[str, ReleaseSettings]:
        """The releases by name, the short form spelt out."""
        if self.releases is not None:
            return self.releases
        keys = [k for k in ReleaseSettings.model_fields if k in self.model_fields_set]
        return {"main": ReleaseSettings(**{k: getattr(self, k) for k in keys})}


class ServeSettings(Strict):
    """The port that clients speak to."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port; 0 = any free one."""
    workers: int = Field(default=1, ge=1, le=256)
    """Gateway worker processes."""
    hosts: list[str] = []
    """`Host` names accepted besides the loopback names."""
    body_limit: Size = Field(default=16 * 1024 * 1024, ge=1024)
    """Largest request body: bytes, or text such as `16MB` (1 MB = 1,048,576 bytes)."""
    passthrough: str | None = None
    """A name under `models`: who is asked what names no model and is none of ours (`GET /v1/fine_tuning/jobs`), verbatim.
    Whoever has a key may then use that account's resources: limit keys by their `endpoints`."""
    public_url: HttpUrl | None = None
    """Where clients reach Noria, when that is not its own address (a proxy): its name is one of `hosts` by that, links that are
    printed begin with it, and webhooks name it as their `source`."""
    keys_required: Literal["auto", "always"] = "auto"
    """`auto`: API keys are asked for as soon as one exists, or where `host` is not a loopback address; `always`: even before."""


class StoreSettings(Strict):
    """Where state lives, by URL; the scheme is the engine. `{home}` stands for NORIA_HOME. A URL with a password goes
    into a variable: `env:NAME`.
    """

    records: StoreUrl = "sqlite:///{home}/records.db"
    """Keys, releases, live state, sessions."""
    traces: StoreUrl = "duckdb:///{home}/traces"
    """What was served."""
    queue: StoreUrl = "sqlite:///{home}/records.db"
    """Waiting work."""
    counters: StoreUrl = "sqlite:///{home}/records.db"
    """Rate limits and budgets. `memory://` forgets what was spent when the service ends; `redis://` is for several nodes."""
    blobs: StoreUrl = "files:///{home}/blobs"
    """Artifacts and exports."""
    cache: StoreUrl = "sqlite:///{home}/cache.db"
    """Answers that all workers share: a file of its own, which may be deleted at any time, or `redis://` for several nodes."""
    datasets: StoreUrl = "sqlite:///{home}/datasets.db"
    """Dataset rows, sealed, and their versions."""
    jobs: StoreUrl = "process:///{home}/jobs"
    """Heavy work outside of the service: training, evaluation."""


class RetentionSettings(Strict):
    """How long things are kept."""

    traces_days: int = Field(default=30, ge=1)
    """Days that traces and their bodies are kept."""
    feedback_days: int = Field(default=365, ge=1)
    """Days that feedback is kept, longer than the traces it is about."""
    responses_days: int = Field(default=30, ge=0)
    """Days that Responses are kept for `previous_response_id` and `GET /v1/responses/{id}`; 0 = none is stored."""


class Settings(Strict):
    """Everything that `noria.yaml` may say."""

    schema_url: str | None = Field(default=None, alias="$schema")
    """For editors: where this schema is. Noria ignores it."""
    models: dict[Name, ModelSettings] = {}
    """Models by name."""
    prompts: dict[Name, PromptSettings] = {}
    """System prompts by name."""
    guards: dict[Name, list[Rule]] = {}
    """Guard policies by name: checks in order, each by its id or as `{id: rule}`."""
    apps: dict[Name, AppSettings] = {}
    """Apps by name: the `model` of a client's request."""
    suites: dict[Name, SuiteSettings] = {}
    """What releases are measured by, by name (`noria eval run`)."""
    budgets: dict[Name, BudgetSettings] = {}
    """Budgets by name; more can be made while the service runs (`noria budgets create`)."""
    limits: dict[Name, LimitSettings] = {}
    """Limits of requests, tokens and concurrency by name."""
    alerts: AlertSettings = AlertSettings()
    """Who is told of spent budgets."""
    price_file: str | None = Field(default=None, min_length=1)
    """A JSON file of prices by `vendor/model`; it comes before the price table that Noria brings along."""
    serve: ServeSettings = ServeSettings()
    """The port."""
    stores: StoreSettings = StoreSettings()
    """Where state lives."""
    files: FileSettings = FileSettings()
    """Files that callers store."""
    batches: BatchSettings = BatchSettings()
    """How batches are worked off."""
    retention: RetentionSettings = RetentionSettings()
    """How long it is kept."""
    train: TrainSettings = TrainSettings()
    """How models are trained."""
    metrics: MetricsSettings = MetricsSettings()
    """Where metrics are pushed to."""
    operate: OperateSettings = OperateSettings()
    """How the service stops, is replaced, and mends itself."""


def default_action(check: str) -> Action:
    """What follows from a check whose rule names no action."""
    return _DEFAULT_ACTIONS.get(check, "flag")


@cache
def schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of the configuration. Do not change what it returns."""
    made: dict[str, Any] = _untitled(Settings.model_json_schema(mode="validation"))
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "noria.yaml"}
    return head | made


def keys(path: tuple[str | int, ...]) -> list[str]:
    """The keys that the mapping at `path` may hold, in the order of the schema; empty where any may."""
    nodes = [schema()]
    for step in path:
        nodes = [n for node in nodes for n in _below(node, step)]
    return [key for node in nodes for key in node.get("properties", {})]


def _below(node: dict[str, Any], step: str | int) -> list[dict[str, Any]]:
    if isinstance(step, int):
        inside = node.get("items")
    else:
        inside = node.get("properties", {}).get(step, node.get("additionalProperties"))
    return _choices(inside) if isinstance(inside, dict) else []


def _choices(node: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _choices(schema()["$defs"][node["$ref"].rpartition("/")[2]])
    return [n for choice in node["anyOf"] for n in _choices(choice)] if "anyOf" in node else [node]


def _untitled(value: Any) -> Any:
    """Without pydantic's `title`s, which repeat the keys, and with whole floats as integers (`5.0` → `5`)."""
    if isinstance(value, dict):
        return {k: _untitled(v) for k, v in value.items() if not (k == "title" and isinstance(v, str))}
    if isinstance(value, list):
        return [_untitled(v) for v in value]
    return int(value) if isinstance(value, float) and math.isfinite(value) and value.is_integer() else value
