"""Every extension point of the prompt journey on one page.

Inward stages are `Exchange → Exchange`. Outward stages are incremental transducers over text, one
instance for each (choice, channel): a whole answer is one `feed` plus `flush`, and any chunking of a
stream gives the same text (DESIGN §3a.8). Providers push bytes into a sink, so that relaying a stream
costs no task switch a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import msgspec

from noria.contracts.error import NoriaError, NotFound
from noria.contracts.exchange import Dialect, Exchange, ModelCall, ModelReply, RawCall
from noria.contracts.release import Endpoint
from noria.contracts.verdict import Cost, Field, Ruling, Scope, Verdict

Channel = str
"""`content`, `reasoning`, `refusal`, `tool.<index>` (the arguments of tool call <index>, JSON text) or `custom.<index>` (the
input of tool call <index> where that is of a custom tool, free text)."""

Sink = Callable[[bytes], None]
"""Takes the next bytes of a stream, in order, any chunking; never blocks. What it raises ends the stream."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every extension's `Config`: unknown keys are errors."""


class Inward(Protocol):
    """A stage before the model. `name` is the stage's word in traces, `behaviour` enters the release id."""

    name: str
    behaviour: int

    def __call__(self, x: Exchange, /) -> Exchange:
        """The Exchange as this stage leaves it; raises `RequestError` to refuse."""
        ...


class InwardAsync(Protocol):
    """An inward stage that waits for something DESIGN §3a.11 allows (session state, a tokenizer)."""

    name: str
    behaviour: int

    async def __call__(self, x: Exchange, /) -> Exchange:
        """As `Inward`."""
        ...


class Transducer(Protocol):
    """Text in, text out, incrementally, for one (choice, channel) of one answer."""

    @property
    def held(self) -> int:
        """How many characters, at the end of what was fed, nothing has left for yet: at least those held back."""
        ...

    def feed(self, text: str) -> str:
        """What may leave now; the rest is held back. Raises `Blocked` to end the answer."""
        ...

    def flush(self) -> str:
        """What was held back, at the end of the channel."""
        ...


class Outward(Protocol):
    """A stage after the model: opens one transducer a channel."""

    name: str
    behaviour: int

    def open(self, x: Exchange, choice: int, channel: Channel, report: Callable[[Ruling], None]) -> Transducer | None:
        """A fresh transducer, or None where this stage leaves the channel alone."""
        ...


class Sample(msgspec.Struct, frozen=True):
    """What a check judges; only the fields that it `needs` are filled."""

    input: str = ""
    output: str = ""
    context: tuple[str, ...] = ()
    expected: str = ""
    label: str = ""
    """The class of the input, where it has one and `expected` is something else; comes along with `expected`."""


class Check(ABC):
    """One judgement. A subclass fills `judge`; it observes and never changes anything.

    `needs` names the fields of a Sample that it reads. A check that needs both `input` and `output`
    in one list element is symmetric: it judges whichever text it is given (`pii`, `secrets`).
    `scope` says how much text it must see to decide: `span` checks state `reach`, the number of
    characters around a position that can change the judgement there.
    """

    id: ClassVar[str]
    """= the module's name; set by the loader."""
    needs: ClassVar[frozenset[Field]] = frozenset({"input"})
    either: ClassVar[bool] = True
    """True: one text, input or output alike. False: needs all of `needs` at once."""
    cost: ClassVar[Cost] = "cpu"
    category: ClassVar[str] = ""
    """Under which `/v1/moderations` reports it where no policy is named; empty = only where one names it, by its id."""
    scope: ClassVar[Scope] = "span"
    reach: ClassVar[int] = 256
    behaviour: ClassVar[int] = 1
    requires: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type[Options]] = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    @classmethod
    def pin(cls, options: dict[str, Any]) -> dict[str, Any]:
        """`options` with everything they name outside of themselves (a file) replaced by its content.

        Called once, at `apply`: a release pins what a check does, not where that was written down.
        """
        return options

    @abstractmethod
    def judge(self, sample: Sample) -> Verdict:
        """The verdict. Must not block; more than 0.3 ms a kilobyte must be declared by `cost`."""


class Valve(Protocol):
    """Stops an upstream's bytes, and lets them go on."""

    def pause(self) -> None:
        """Read no more for now."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...


OnHead = Callable[[int, list[tuple[str, str]]], Sink | None]
"""Given status and headers (names in lower case); the sink, if any, gets the body piece by piece."""


class Provider(ABC):
    """Speaks to one model endpoint. Translates; never retries, never times: the router does."""

    id: ClassVar[str]
    behaviour: ClassVar[int] = 1
    requires: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type[Options]] = Options
    speaks: frozenset[Dialect] = frozenset({"openai"})
    """Of the class, or of one endpoint: what `ModelCall.dialect` may be; in one that is not `openai`, body and answer pass as they are."""
    understands: ClassVar[frozenset[str]] = frozenset()
    """Fields beyond OpenAI's that it can make use of (`top_k`, `thinking`), whatever the caller's protocol was."""

    @abstractmethod
    async def send(self, call: ModelCall, sink: Sink) -> ModelReply:
        """Send one call. Streams push SSE bytes of `call.dialect` into `sink`; whole answers come in the reply.

        Raises `UpstreamError`. Cancelling it closes the upstream connection within 100 ms.
        """

    @property
    def ready(self) -> NoriaError | None:
        """None when calls can be sent; otherwise why not (a local model still loading)."""
        return None

    async def count(self, text: str) -> int:
        """Exact number of tokens of `text`, by the model's own tokenizer, without special tokens.

        Raises `NotImplementedError` where the endpoint cannot tell.
        """
        raise NotImplementedError(f"provider {self.id} has no tokenizer")

    async def count_request(self, call: ModelCall) -> int:
        """Exact number of input tokens of a whole request, as the endpoint itself would count it.

        Raises `NotImplementedError` where the endpoint cannot tell, `UpstreamError` where it fails.
        """
        raise NotImplementedError(f"provider {self.id} counts no requests")

    async def raw(
        self,
        call: RawCall,
        on_head: OnHead | None = None,  # noqa: ARG002  for who overrides it
        valve: Valve | None = None,  # noqa: ARG002  for who overrides it
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Pass one request on as it is, with the endpoint's credentials and none of the caller's; what came back, as it came.

        `on_head` is not asked about 401 and 403. Raises `NotFound` where the endpoint offers no such thing, `UpstreamError` where it cannot be reached or does not
        know us (401, 403): its own words about that could quote the key.
        """
        raise NotFound(f"The provider {self.id} passes nothing through: {call.method} /v1{call.path}.", code="unknown_url")

    async def close(self) -> None:
        """Let go of connections; calls in flight end as they will."""
        return


class Relay(Protocol):
    """The seam of the hot path: one HTTP exchange with an upstream (`kit.http_client`, or a native one)."""

    async def send(
        self,
        method: str,
        path: str,
        headers: list[tuple[str, str]],
        body: bytes,
        *,
        on_head: Callable[[int, list[tuple[str, str]]], Sink | None] | None = None,
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body. Where `on_head` gives a sink, the body goes there piece by piece instead.

        What `on_head` or the sink raises, `send` raises, and the connection is closed.
        """
        ...


class Outlet(Protocol):
    """Where a journey writes its answer: an HTTP response, or a collector in tests and jobs."""

    @property
    def backlog(self) -> int:
        """Bytes written and not yet taken by the caller."""
        ...

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:
        """Status and headers, once."""
        ...

    def data(self, data: bytes) -> None:
        """The next bytes of the body, in order."""
        ...

    def end(self) -> None:
        """The body is complete."""
        ...


@runtime_checkable
class Keeping(Protocol):
    """An outlet whose protocol says whether the answer can be asked for later."""

    def kept(self, *, stored: bool) -> None:
        """Before `end`: whether it was stored."""
        ...


class Ingress(Protocol):
    """A protocol that callers speak besides OpenAI's chat. The journey works in chat form: a request is translated on its
    way in, and the outlet that `outlet` gives translates the answer, the stream or the error on its way out.

    What chat cannot carry is refused where the caller depends on it, and otherwise said in a warning; never dropped silently.
    """

    dialect: Dialect

    def read(self, fields: dict[str, msgspec.Raw]) -> tuple[dict[str, msgspec.Raw], tuple[str, ...]]:
        """The request's top-level fields in chat form, and a sentence for each thing that chat cannot carry.

        Raises `RequestError` that names the field (`param`).
        """
        ...

    def outlet(self, x: Exchange, out: Outlet) -> Outlet:
        """Takes an answer in chat form (or OpenAI's error body) and writes it into `out` in the caller's protocol."""
        ...

    def error(self, status: int, body: bytes) -> bytes:
        """OpenAI's error body as the protocol has it."""
        ...


class ModelPort(Protocol):
    """How a provider is made from the configuration: `Provider` subclasses are called like this."""

    def __call__(self, endpoint: Endpoint, secret: str, config: Options, /) -> Provider:
        """A provider for `endpoint`; `secret` is the resolved key, or empty."""
        ...


Phase = Literal["inward", "model", "outward", "record"]
