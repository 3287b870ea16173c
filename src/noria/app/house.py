"""From a snapshot to the stages of `journeys.prompt`: one House a snapshot, kept by exchanges in flight."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from noria.contracts.exchange import Exchange
from noria.contracts.port import Clock
from noria.contracts.release import Endpoint, GuardRule, Release, Snapshot
from noria.contracts.stage import Check, Provider
from noria.contracts.trace import ExchangeRow
from noria.contracts.verdict import Ruling
from noria.gateway.admit import Admit
from noria.gateway.limits import Limits
from noria.gateway.router import Router
from noria.ground.memory import Memory, Sessions
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


class Bench:
    """What a worker has, whatever snapshot is in force: what outlives a House."""

    def __init__(
        self,
        *,
        home: Path,
        worker: str,
        clock: Clock,
        limits: Limits,
        sessions: Sessions,
        is_session: Callable[[str], bool],
        spool: Callable[[ExchangeRow], None],
        metrics: Metrics,
    ) -> None:
        self.home = home
        self.worker = worker
        self.clock = clock
        self.limits = limits
        self.sessions = sessions
        self.is_session = is_session
        self.spool = spool
        self.metrics = metrics
        self.accounts: dict[str, Account] = {}
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


class WiredHouse:
    """`journeys.prompt.House` of one snapshot."""

    def __init__(self, snapshot: Snapshot, bench: Bench) -> None:
        self.snapshot = snapshot
        self.limits = bench.limits
        self._bench = bench
        self.embedders = {name: embedder_release(e) for name, e in snapshot.embedders.items()}
        self.admit = Admit(snapshot, self.embedders, clock=bench.clock, is_session=bench.is_session)
        releases = [r for app in snapshot.apps.values() for r in app.releases.values()] + list(self.embedders.values())
        self.endpoints = [e for r in releases for e in r.route]
        self._parts = {(r.app, r.name): self._wire(r) for r in releases}

    @property
    def ready(self) -> bool:
        """Whether some app can be answered now."""
        return not self.snapshot.apps or any(p.router.ready for (app, _), p in self._parts.items() if app in self.snapshot.apps)

    def open(self, x: Exchange) -> Account:
        """See `journeys.prompt.House`."""
        account = self._bench.accounts[x.id] = Account(Stopwatch())
        return account

    def parts(self, x: Exchange) -> Parts:
        """See `journeys.prompt.House`."""
        assert x.release is not None, "admit comes first"
        return self._parts[x.release.app, x.release.name]

    def close(self, x: Exchange, account: Account) -> ExchangeRow:
        """See `journeys.prompt.House`."""
        self._bench.accounts.pop(x.id, None)
        row = account.row(x, worker=self._bench.worker, config=self.snapshot.hash)
        self._bench.spool(row)
        self._bench.metrics.count(row)
        return row

    def _wire(self, release: Release) -> Parts:
        bench = self._bench
        providers = {e.name: bench.provider(e) for e in release.route}
        rules = [(make_check(rule), rule) for rule in release.guard]
        inward = [(c, r) for c, r in rules if "input" in r.on]
        outward = [(c, r) for c, r in rules if "output" in r.on]
        windows = [e.context for e in release.route if e.context is not None]
        app = self.snapshot.apps.get(release.app)
        return Parts(
            router=Router(release.route, providers, release.params),
            normalize=Normalize() if release.normalize else None,
            template=Template() if release.prompt else None,
            memory=Memory(bench.sessions) if release.memory else None,
            window=Window(min(windows), counter(providers[release.route[0].name]), report=bench.cut)
            if release.fit and windows
            else None,
            guard=InwardGuard(inward, report=bench.report) if inward else None,
            masked=masked_copy if inward else None,
            outward=(OutwardGuard(outward),) if outward else (),
            restore=Restore() if any(r.action == "mask" for _, r in inward) else None,
            record_bodies=app.record_bodies if app else False,
        )


def counter(provider: Provider) -> Callable[[str], Awaitable[int]]:
    """Tokens of a text: the provider's own count, else an estimate.

    The estimate errs towards more: tokenizers of 2023 and later average 3.5 to 4.5 ASCII characters a token on
    prose and code, and stay below one token a character elsewhere. Where it is wrong, the endpoint still refuses.
    """

    async def count(text: str) -> int:
        try:
            return await provider.count(text)
        except NotImplementedError:
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
    for e in release.route:
        used[f"provider.{e.provider}"] = extension.load("providers", e.provider, Provider).behaviour
    return used


def identify(release: Release) -> str:
    """The release's id, from its content and the behaviours it uses."""
    return release_id(release, behaviours(release))


def embedder_release(endpoint: Endpoint) -> Release:
    """An embedder as a release of its own: no prompt, no guard, no memory."""
    bare = Release(id="", name="main", app=endpoint.name, route=(endpoint,), normalize=False, fit=False)
    return replace(bare, id=identify(bare), reproducible=reproducible(bare))
