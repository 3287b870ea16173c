"""From a snapshot to the stages of `journeys.prompt`: one House a snapshot, kept by exchanges in flight."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from noria.app.aside import Moderators, passing
from noria.contracts.evaluation import EVALUATOR, Pass
from noria.contracts.exchange import Exchange
from noria.contracts.port import Clock
from noria.contracts.release import Endpoint, GuardRule, Release, Snapshot
from noria.contracts.stage import Check, Provider
from noria.contracts.trace import ExchangeRow
from noria.contracts.verdict import Ruling
from noria.gateway import select
from noria.gateway.admit import Admit, no_pass
from noria.gateway.cache import Cache, Recall
from noria.gateway.constraint import within
from noria.gateway.limits import Claim, Limits
from noria.gateway.router import Router
from noria.gateway.semantic import Meanings
from noria.gateway.topic import Topics
from noria.gateway.traffic import Traffic
from noria.ground.memory import Memory, Sessions
from noria.ground.responses import ResponseState, ResponseStore
from noria.guard.chain import InwardGuard, masked_copy
from noria.guard.restore import Restore
from noria.guard.stream import OutwardGuard
from noria.journeys.prompt import Parts
from noria.kit import extension
from noria.kit.step import Stopwatch
from noria.observe.account import Account
from noria.observe.metrics import Metrics
from noria.release.identity import release_id, reproducible
from noria.settings import resolve_secret
from noria.transform.normalize import Normalize
from noria.transform.template import Template
from noria.transform.window import Window

Rules = list[tuple[Check, GuardRule]]


class SessionStore(Sessions, ResponseStore, Protocol):
    """Where named session state is kept."""


class Bench:
    """What a worker has, whatever snapshot is in force: what outlives a House."""

    def __init__(
        self,
        *,
        home: Path,
        worker: str,
        clock: Clock,
        limits: Limits,
        sessions: SessionStore,
        is_session: Callable[[str], bool],
        spool: Callable[[ExchangeRow, Claim | None], None],
        metrics: Metrics,
        passed: Callable[[str], Pass | None] = no_pass,
    ) -> None:
        self.home = home
        self.worker = worker
        self.clock = clock
        self.limits = limits
        self.sessions = sessions
        self.is_session = is_session
        self.passed = passed
        self.spool = spool
        self.metrics = metrics
        self.accounts: dict[str, Account] = {}
        self.cache = Cache()
        self.traffic = Traffic()
        self._providers: dict[bytes, Provider] = {}

    def provider(self, endpoint: Endpoint) -> Provider:
        """The provider of an endpoint; its connections are kept from one snapshot to the next."""
        key = msgspec.msgpack.encode(endpoint)
        found = self._providers.get(key)
        if found is None:
            found = self._providers[key] = make_provider(endpoint, self.home)
        return found

    async def keep_only(self, endpoints: list[Endpoint]) -> None:
        """Close the providers that no snapshot in use names any more."""
        wanted = {msgspec.msgpack.encode(e) for e in endpoints}
        self.traffic.keep_only(endpoints)
        for key in [k for k in self._providers if k not in wanted]:
            await self._providers.pop(key).close()

    def report(self, x: Exchange, ruling: Ruling) -> None:
        """A guard's note, into the account of its exchange."""
        account = self.accounts.get(x.id)
        if account is not None:
            account.rulings.append(ruling)

    def cut(self, x: Exchange, tokens: int, messages: int) -> None:  # noqa: ARG002  the window's signature; tokens say it all
        """What the window stage dropped, into the account of its exchange."""
        account = self.accounts.get(x.id)
        if account is not None:
            account.cut_tokens += tokens


SHORT_HASH = 19
"""Characters of the configuration's hash on every answer: `c1:` and 64 bits."""


class WiredHouse:
    """`journeys.prompt.House` of one snapshot."""

    def __init__(self, snapshot: Snapshot, bench: Bench) -> None:
        self.snapshot = snapshot
        self._config = ("x-noria-config", snapshot.hash[:SHORT_HASH])
        self.limits = bench.limits
        self._bench = bench
        self.embedders = {name: embedder_release(e) for name, e in snapshot.embedders.items()}
        self.admit = Admit(snapshot, self.embedders, clock=bench.clock, is_session=bench.is_session, passed=bench.passed)
        releases = [r for app in snapshot.apps.values() for r in app.releases.values()] + list(self.embedders.values())
        self.endpoints = [e for r in releases for e in r.route]
        bench.cache.keep_only(r.app for r in releases if r.caching is not None)
        self.shares = any(r.caching is not None and r.caching.ttl > 0 and r.caching.shared_bytes > 0 for r in releases)
        """Whether some app keeps answers that workers share."""
        self._rules: dict[tuple[str, str], Rules] = {}
        self._parts = {(r.app, r.name): self._wire(r) for r in releases}
        self._own = {k.guard_name: checks_of(k.guard) for k in snapshot.keys.values() if k.guard}
        """Checks of the guards that keys name."""
        self._guarded: dict[tuple[str, str, str], Parts] = {}
        self._moderators = Moderators(snapshot, self.admit)
        bench.limits.adopt(snapshot)
        if snapshot.passthrough is not None:
            self.endpoints.append(snapshot.passthrough)

    def provider(self, endpoint: Endpoint) -> Provider:
        """What speaks to an endpoint of this snapshot."""
        return self._bench.provider(endpoint)

    @property
    def ready(self) -> bool:
        """Whether some app can be answered now."""
        return not self.snapshot.apps or any(p.router.ready for (app, _), p in self._parts.items() if app in self.snapshot.apps)

    def open(self, x: Exchange) -> Account:
        """See `journeys.prompt.House`."""
        account = self._bench.accounts[x.id] = Account(Stopwatch(), x.started_ns)
        account.headers.append(self._config)
        return account

    def parts(self, x: Exchange) -> Parts:
        """See `journeys.prompt.House`."""
        release = x.release
        assert release is not None, "admit comes first"
        if x.key is not None and x.key.id == EVALUATOR:
            return self._evaluated(release)
        if x.key is not None and x.key.guard:
            return self._with_guard(release, x.key.guard_name)
        return self._parts[release.app, release.name]

    def drop(self, x: Exchange) -> None:
        """Forget the account of an exchange that is not to be recorded."""
        self._bench.accounts.pop(x.id, None)

    def passing(self, x: Exchange) -> tuple[Endpoint, Provider]:
        """See `journeys.raw.RawHouse`."""
        return passing(x, self.snapshot, self._bench.provider)

    def moderators(self, x: Exchange) -> tuple[Exchange, Sequence[Check]]:
        """See `journeys.moderation.ModerationHouse`."""
        return self._moderators.of(x)

    def _evaluated(self, release: Release) -> Parts:
        """The parts of a release for an evaluation: every item is really asked, and its text, which a dataset holds sealed, is not
        recorded a second time.
        """
        return with_fields(self._parts[release.app, release.name], cache=None, record_bodies=False)

    def _with_guard(self, release: Release, name: str) -> Parts:
        """The parts of a release with the guard of a key behind its own; made once a pair."""
        found = self._guarded.get((release.app, release.name, name))
        if found is None:
            more = [(c, r) for c, r in self._own[name] if r not in release.guard]
            guard = guarding([*self._rules[release.app, release.name], *more], self._bench.report)
            found = with_fields(self._parts[release.app, release.name], **guard)
            self._guarded[release.app, release.name, name] = found
        return found

    def close(self, x: Exchange, account: Account, claim: Claim | None = None) -> ExchangeRow:
        """See `journeys.prompt.House`."""
        self._bench.accounts.pop(x.id, None)
        if claim is not None and claim.unchecked:
            account.warnings = [*account.warnings, *claim.warnings]
        row = account.row(x, worker=self._bench.worker, config=self.snapshot.hash)
        self._bench.spool(row, claim)
        self._bench.metrics.count(row)
        return row

    def _wire(self, release: Release) -> Parts:
        bench = self._bench
        providers = {e.name: bench.provider(e) for e in release.route}
        rules = self._rules[release.app, release.name] = checks_of(release.guard)
        windows = [e.context for e in release.route if e.context is not None]
        app = self.snapshot.apps.get(release.app)
        return Parts(
            router=Router(
                release.route,
                providers,
                release.params,
                routing=release.routing,
                traffic=bench.traffic,
                topics=self._topics(release),
            ),
            normalize=Normalize() if release.normalize else None,
            template=Template() if release.prompt else None,
            state=ResponseState(bench.sessions),
            memory=Memory(bench.sessions) if release.memory else None,
            window=Window(fitted(release, windows), counter(tokenizer(release, providers)), report=bench.cut)
            if release.fit and windows
            else None,
            record_bodies=app.record_bodies if app else False,
            cache=self._recall(release),
            **guarding(rules, bench.report),
        )

    def _topics(self, release: Release) -> Topics | None:
        """What routes a release's prompts by their meaning."""
        if release.routing.semantic is None or release.embedder is None:
            return None
        self.endpoints.append(release.embedder)
        provider, traffic = self._bench.provider(release.embedder), self._bench.traffic
        return Topics(release.routing.semantic, release.embedder, provider, traffic.counts)

    def _recall(self, release: Release) -> Recall | None:
        """The cache of a release that has one; the model that compares questions is asked like any other."""
        caching, bench = release.caching, self._bench
        if caching is None:
            return None
        likeness = None
        if caching.semantic is not None:
            semantic = caching.semantic
            self.endpoints.append(semantic.embedder)
            name = release.app, msgspec.msgpack.encode(semantic.embedder), semantic.entries
            likeness = Meanings(semantic, bench.provider(semantic.embedder), bench.cache.index(*name), release.routing.regions)
        return Recall(release, caching, bench.cache, likeness)


def fitted(release: Release, windows: list[int]) -> int:
    """Tokens that a release's prompts are fitted into."""
    return max(windows) if release.routing.window == "largest" else min(windows)


def checks_of(rules: Iterable[GuardRule]) -> Rules:
    """The checks that rules name, each with its rule."""
    return [(make_check(rule), rule) for rule in rules]


def guarding(rules: Rules, report: Callable[[Exchange, Ruling], None]) -> dict[str, Any]:
    """The fields of `Parts` that a guard fills: what is judged on the way in and out, and what that entails."""
    inward = [(c, r) for c, r in rules if "input" in r.on]
    outward = [(c, r) for c, r in rules if "output" in r.on]
    return {
        "guard": InwardGuard(inward, report=report) if inward else None,
        "masked": masked_copy if inward else None,
        "outward": (OutwardGuard(outward),) if outward else (),
        "restore": Restore() if any(r.action == "mask" for _, r in inward) else None,
    }


def tokenizer(release: Release, providers: Mapping[str, Provider]) -> Provider | None:
    """Who counts a release's tokens: the first of the route that may see its prompts."""
    return next((providers[e.name] for e in release.route if within(e, release.routing.regions)), None)


def counter(provider: Provider | None) -> Callable[[str], Awaitable[int]]:
    """Tokens of a text: the provider's own count, else an estimate.

    The estimate errs towards more: tokenizers of 2023 and later average 3.5 to 4.5 ASCII characters a token on
    prose and code, and stay below one token a character elsewhere. Where it is wrong, the endpoint still refuses.
    """

    async def count(text: str) -> int:
        if provider is not None:
            with suppress(NotImplementedError):
                return await provider.count(text)
        plain = len(text.encode("ascii", "ignore"))
        return -(-plain // 3) + len(text) - plain

    return count


def make_provider(endpoint: Endpoint, home: Path) -> Provider:
    """The provider that an endpoint names, its key resolved and its options checked."""
    cls = extension.load("providers", endpoint.provider, Provider)
    options = dict(endpoint.options)
    if "home" in cls.Config.__struct_fields__:  # a provider of local processes must know where they tell of themselves
        options.setdefault("home", str(home))
    config = msgspec.convert(options, cls.Config)
    secret = resolve_secret(endpoint.key) if endpoint.key else ""
    return cls(endpoint, secret, config)  # type: ignore[call-arg]  # `ModelPort`: the shape of every provider's constructor


def make_check(rule: GuardRule) -> Check:
    """The check that a rule names, its options checked."""
    cls = extension.load("checks", rule.check, Check)
    return cls(msgspec.convert(rule.options, cls.Config))


def behaviours(release: Release) -> dict[str, int]:
    """The integer behaviour version of every stage and check that `release` uses."""
    used = {"admit": Admit.behaviour, "model": Router.behaviour}
    if release.normalize:
        used["normalize"] = Normalize.behaviour
    if release.prompt:
        used["template"] = Template.behaviour
    if release.memory:
        used["memory"] = Memory.behaviour
    if release.fit:
        used["window"] = Window.behaviour
    if release.guard:
        used |= {"guard.in": InwardGuard.behaviour, "guard.out": OutwardGuard.behaviour, "restore": Restore.behaviour}
        used |= {f"check.{r.check}": extension.load("checks", r.check, Check).behaviour for r in release.guard}
    if not release.routing.plain:
        used["route"] = select.BEHAVIOUR
    for e in (*release.route, *([release.embedder] if release.embedder else [])):
        used[f"provider.{e.provider}"] = extension.load("providers", e.provider, Provider).behaviour
    return used


def identify(release: Release) -> str:
    """The release's id, from its content and the behaviours it uses."""
    return release_id(release, behaviours(release))


def embedder_release(endpoint: Endpoint) -> Release:
    """An embedder as a release of its own: no prompt, no guard, no memory."""
    bare = Release(id="", name="main", app=endpoint.name, route=(endpoint,), normalize=False, fit=False)
    return replace(bare, id=identify(bare), reproducible=reproducible(bare))
