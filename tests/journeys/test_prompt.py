"""The whole journey of a prompt on in-memory parts: no sockets, the scripted provider, an Outlet that collects."""

from __future__ import annotations

import asyncio
import codecs
import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from noria.checks.denylist import Denylist, DenylistOptions
from noria.checks.pii import Pii, PiiOptions
from noria.checks.secrets import Secrets
from noria.contracts.error import RequestError, StoreError, Unauthorized, Unavailable
from noria.contracts.exchange import Exchange, ModelCall, ModelReply
from noria.contracts.message import Message
from noria.contracts.release import Endpoint, GuardRule, Key, Price, Prompt, Release
from noria.contracts.stage import Options, Provider
from noria.dialects.openai_stream import assemble
from noria.dialects.sse import FrameSplitter, data_of
from noria.engines.memory import MemoryCounter
from noria.gateway.bank import Bank, DirectLeases
from noria.gateway.limits import Claim, Limits
from noria.gateway.router import Router
from noria.ground.memory import Memory
from noria.guard.chain import InwardGuard, masked_copy
from noria.guard.restore import Restore
from noria.guard.stream import OutwardGuard
from noria.journeys.prompt import Parts, answer, refuse
from noria.kit.step import Stopwatch
from noria.observe.account import Account
from noria.providers.scripted import Scripted
from noria.transform.normalize import Normalize
from noria.transform.template import Template
from noria.transform.window import Window

PRICE = Price(input=1.0, output=2.0)
BUDGET = 10_000_000_000
KEY = Key("k1", "h", budget_nanousd=BUDGET)
EMAIL = "bob.smith@example.com"


class Collected:
    """An Outlet that keeps what it is given, beside the rows, in one order."""

    backlog = 0

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.status = 0
        self.headers: dict[str, str] = {}
        self.stream = False
        self.pieces: list[bytes] = []
        self.ended = 0

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:
        assert not self.status, "the head leaves once"
        self.status, self.headers, self.stream = status, dict(headers), stream
        self.log.append("head")

    def data(self, data: bytes) -> None:
        assert self.status
        self.pieces.append(data)
        self.log.append(data)

    def end(self) -> None:
        self.ended += 1
        self.log.append("end")

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def frames(self) -> list[bytes]:
        splitter = FrameSplitter()
        frames = splitter.feed(self.body)
        assert not splitter.rest(), "a stream ends with a whole frame"
        return frames

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(data_of(self.frames[-1]) or b"" if self.stream else self.body)["error"]

    @property
    def text(self) -> str:
        if not self.stream:
            return json.loads(self.body)["choices"][0]["message"]["content"]
        return text_of(self.frames)


def text_of(frames: list[bytes]) -> str:
    chunks = [json.loads(d) for f in frames if (d := data_of(f)) and d != b"[DONE]"]
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk.get("choices", ()))


class Ledger:
    """A bank in memory; what is on its counter tells whether the money was settled."""

    def __init__(self) -> None:
        self.counter = MemoryCounter("memory://")
        self.leases = DirectLeases(Bank(self.counter, self, SimpleNamespace(now_ns=lambda: 0)), "w")

    def holders(self) -> set[str]:
        return set()

    async def level(self) -> None:
        return

    async def spent(self, tenant: str, account: str) -> int | None:
        return 0


class Admitted:
    name = "admit"
    behaviour = 1

    def __init__(self, release: Release, key: Key | None) -> None:
        self.release, self.key = release, key

    def __call__(self, x: Exchange) -> Exchange:
        if x.authorization == "wrong":
            raise Unauthorized("The API key is not known here.", code="invalid_api_key")
        return replace(x, authorization="", key=self.key, release=self.release)


class Wire(Provider):
    """Sends the given bytes, a turn of the loop between two pieces; then ends as told."""

    id = "wire"

    def __init__(
        self, pieces: list[bytes], end: BaseException | None = None, *, whole: bytes = b"", turns: bool = True
    ) -> None:
        self.pieces, self.end, self.whole, self.turns = pieces, end, whole, turns
        self.calls: list[ModelCall] = []

    async def send(self, call: ModelCall, sink: Any) -> ModelReply:
        self.calls.append(call)
        if call.stream:
            for piece in self.pieces:
                if self.turns:
                    await asyncio.sleep(0)
                sink(piece)
        if self.end is not None:
            raise self.end
        return ModelReply(200, b"" if call.stream else self.whole)


class Sessions:
    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str], tuple[Message, ...]] = {}

    async def load(self, tenant: str, key_id: str, conversation: str) -> tuple[Message, ...]:
        return self.kept.get((tenant, key_id, conversation), ())

    async def append(self, tenant: str, key_id: str, conversation: str, new: tuple[Message, ...]) -> None:
        self.kept[tenant, key_id, conversation] = (*self.kept.get((tenant, key_id, conversation), ()), *new)


def scripted(name: str = "m", price: Price | None = PRICE, **options: Any) -> tuple[Endpoint, Provider]:
    endpoint = Endpoint(name, "scripted", f"{name}-served", price=price)
    return endpoint, Scripted(endpoint, "", msgspec.convert(options, Scripted.Config))


def wired(provider: Provider, name: str = "m") -> tuple[Endpoint, Provider]:
    return Endpoint(name, "wire", f"{name}-served", price=PRICE), provider


class Home:
    """A House of the test's own parts. `reach` = (endpoint, provider) in order of the route."""

    def __init__(self, *reach: tuple[Endpoint, Provider], key: Key | None = KEY, **parts: Any) -> None:
        reach = reach or (scripted(),)
        release = Release(
            "r1:test", "main", "a", tuple(e for e, _ in reach), memory=parts.pop("keep", 0), prompt=parts.pop("prompt", None)
        )
        self.log: list[Any] = []
        self.ledger = Ledger()
        self.limits = Limits(self.ledger.leases, SimpleNamespace(now_ns=lambda: 0))
        self.admit = Admitted(release, key)
        self.accounts: dict[str, Account] = {}
        self.wired = Parts(Router(release.route, {e.name: p for e, p in reach}, {}), **parts)
        self.row: Any = None

    def open(self, x: Exchange) -> Account:
        self.accounts[x.id] = Account(Stopwatch())
        return self.accounts[x.id]

    def parts(self, x: Exchange) -> Parts:
        return self.wired

    def close(self, x: Exchange, account: Account, claim: Claim | None = None) -> Any:
        assert self.row is None, "an exchange is recorded once"
        self.row = account.row(x, worker="w", config="c")
        self.log.append("row")
        if claim is not None:
            claim.settle(self.row.cost_nanousd, self.row.usage)
        return self.row

    async def spent(self) -> int:
        """What the key has really paid: the leases given back, the rest is on the counter."""
        await self.limits.give_back()
        return await self.ledger.counter.read("local", "budget:key:k1@0", now_ns=0)


def guards(*rules: tuple[Any, GuardRule]) -> dict[str, Any]:
    """The stages of a policy; the inward guard reports into whichever House is asked last."""
    inward = [r for r in rules if "input" in r[1].on]
    outward = [r for r in rules if "output" in r[1].on]
    return {
        "guard": InwardGuard(inward, report=lambda x, r: None) if inward else None,
        "masked": masked_copy if inward else None,
        "outward": (OutwardGuard(outward),) if outward else (),
        "restore": Restore() if any(r.action == "mask" for _, r in inward) else None,
    }


def guarded_home(*reach: tuple[Endpoint, Provider], rules: list[tuple[Any, GuardRule]], **more: Any) -> Home:
    home = Home(*reach, **more)
    parts = guards(*rules)
    inward = [r for r in rules if "input" in r[1].on]
    if inward:
        parts["guard"] = InwardGuard(inward, report=lambda x, r: home.accounts[x.id].rulings.append(r))
    home.wired = Parts(**{**{f: getattr(home.wired, f) for f in home.wired.__slots__}, **parts})
    return home


def pii(action: str = "mask", on: tuple[str, ...] = ("input", "output")) -> tuple[Any, GuardRule]:
    return Pii(PiiOptions()), GuardRule("pii", action, on)


def deny(action: str, on: tuple[str, ...], term: str = "falcon") -> tuple[Any, GuardRule]:
    return Denylist(DenylistOptions(terms=[term])), GuardRule("denylist", action, on)


def ask(text: str = "hello there world", *, stream: bool = False, raw: dict[str, Any] | None = None, **more: Any) -> Exchange:
    body = {
        "model": "a",
        "messages": [{"role": "user", "content": text}],
        **({"stream": True} if stream else {}),
        **(raw or {}),
    }
    x = Exchange(
        id="x1",
        trace="0" * 31 + "1",
        span="0" * 15 + "1",
        tenant="local",
        kind="chat",
        model="a",
        stream=stream,
        body={k: msgspec.Raw(msgspec.json.encode(v)) for k, v in body.items()},
        started_ns=0,
    )
    return replace(x, **more)


async def go(home: Home, x: Exchange) -> Collected:
    out = Collected(home.log)
    await answer(x, home, out)
    assert out.ended == 1
    assert home.row is not None
    return out


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    whole = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "model": "up",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + msgspec.json.encode(whole) + b"\n\n"


USAGE = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
DONE = b"data: [DONE]\n\n"


def streamed(*texts: str) -> list[bytes]:
    return [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": t}) for t in texts),
        chunk({}, "stop"),
        USAGE,
        DONE,
    ]


# -- the straight way ---------------------------------------------------------------------------------------


async def test_stages_run_in_the_order_of_the_story() -> None:
    endpoint, provider = scripted(reply="a fine answer")
    home = guarded_home(
        (endpoint, provider),
        rules=[pii()],
        normalize=Normalize(),
        template=Template(),
        memory=Memory(Sessions()),
        window=Window(4096, provider.count, report=lambda *_: None),
        keep=4,
        prompt=Prompt("p", "Be brief.", "d"),
    )
    await go(home, ask(f"write to {EMAIL}", stream=True))
    names = [s.name for s in home.row.stages]
    assert names[:6] == ["admit", "normalize", "template", "memory", "window", "guard.in"]
    assert set(names[6:]) == {"guard.out", "restore"}
    starts = [s.offset_ns for s in home.row.stages[:6]]
    assert starts == sorted(starts)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_absent_stage_leaves_no_time_behind(stream: bool) -> None:
    home = Home()
    await go(home, ask(stream=stream))
    assert [s.name for s in home.row.stages] == ["admit"]


async def test_a_whole_answer_leaves_with_the_models_own_bytes() -> None:
    body = b'{ "id":"c9", "model":"up",\n "choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"x_vendor":1.50}'
    home = Home(wired(Wire([], whole=body)))
    out = await go(home, ask())
    assert out.body == body == home.row.answer
    assert (out.status, out.headers["content-type"]) == (200, "application/json")
    assert out.headers["x-request-id"] == "x1"
    assert out.headers["x-noria-release"] == "r1:test"
    assert out.headers["x-noria-trace"] == home.row.trace
    assert (home.row.served_model, home.row.upstream_id, home.row.outcome) == ("up", "c9", "ok")


async def test_an_answer_says_what_it_cost_and_what_we_added() -> None:
    home = Home(scripted(reply="one two three"))
    out = await go(home, ask("four words are here"))
    assert float(out.headers["x-noria-cost"]) == pytest.approx((4 * 1 + 3 * 2) / 1e6)
    assert float(out.headers["x-noria-overhead-ms"]) >= 0


async def test_an_unknown_price_is_left_out_never_zero() -> None:
    home = Home(scripted(price=None), key=None)
    out = await go(home, ask())
    assert "x-noria-cost" not in out.headers
    assert (home.row.cost_nanousd, home.row.cost_status) == (None, "unknown")


async def test_what_was_asked_is_recorded_as_it_came() -> None:
    home = Home()
    x = ask(raw={"temperature": 0.5})
    await go(home, x)
    assert json.loads(home.row.request) == {k: msgspec.json.decode(v) for k, v in x.body.items()} | {"max_tokens": 1024}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_app_that_keeps_no_bodies_keeps_neither_question_nor_answer(stream: bool) -> None:
    home = guarded_home(rules=[pii()], record_bodies=False)
    await go(home, ask(f"mail {EMAIL}", stream=stream))
    assert (home.row.request, home.row.answer) == (b"", b"")


async def test_a_prompt_and_its_memory_are_what_the_model_sees() -> None:
    wire = Wire([], whole=b'{"choices":[{"message":{"content":"second answer"}}]}')
    sessions = Sessions()
    sessions.kept["local", "k1", "c"] = (Message.of("user", "first"), Message.of("assistant", "first answer"))
    home = Home(wired(wire), template=Template(), memory=Memory(sessions), keep=4, prompt=Prompt("p", "Be brief.", "d"))
    await go(home, ask("second", conversation="c", raw={"conversation": "c"}))
    sent = msgspec.json.decode(wire.calls[0].body["messages"])
    assert [(m["role"], m["content"]) for m in sent] == [
        ("system", "Be brief."),
        ("user", "first"),
        ("assistant", "first answer"),
        ("user", "second"),
    ]
    assert "conversation" not in wire.calls[0].body
    assert [m.text for m in sessions.kept["local", "k1", "c"]] == ["first", "first answer", "second", "second answer"]


# -- streams ------------------------------------------------------------------------------------------------


async def test_done_is_held_until_the_exchange_is_recorded() -> None:
    home = Home(wired(Wire(streamed("a", "b"))))
    await go(home, ask(stream=True))
    assert home.log.index("row") < home.log.index(DONE) < home.log.index("end")
    assert home.log.index(chunk({}, "stop")) < home.log.index("row"), "only the end waits for the record"


async def test_a_whole_answer_waits_for_its_record() -> None:
    home = Home()
    await go(home, ask())
    assert home.log[:2] == ["row", "head"]


@pytest.mark.parametrize("wanted", [False, True])
async def test_the_usage_frame_goes_only_to_those_who_asked(wanted: bool) -> None:
    home = Home(wired(Wire(streamed("a"))))
    out = await go(home, ask(stream=True, usage_wanted=wanted))
    assert (USAGE in out.frames) is wanted
    assert (home.row.usage.input, home.row.usage.output) == (7, 3), "it is counted either way"


async def test_frames_before_the_first_content_are_held_and_then_leave_in_order() -> None:
    home = Home(wired(Wire(streamed("a"))))
    out = await go(home, ask(stream=True))
    assert out.frames == [f for f in streamed("a") if f != USAGE]
    assert out.headers["content-type"].startswith("text/event-stream")
    assert home.row.ttft_ns is not None


async def test_the_tail_comes_before_done_for_those_who_asked() -> None:
    home = Home(wired(Wire(streamed("a"))))
    out = await go(home, ask(stream=True, tail_wanted=True))
    assert out.frames[-1] == DONE
    assert out.frames[-2].startswith(b': x-noria {"cost": 0.000013000, "overhead_ms": ')


async def test_an_answer_without_content_is_still_an_answer() -> None:
    home = Home(wired(Wire([chunk({"role": "assistant", "content": ""}), DONE])))
    out = await go(home, ask(stream=True))
    assert (out.status, out.frames[-1], home.row.outcome) == (200, DONE, "ok")


# -- another endpoint ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_the_next_endpoint_answers_when_the_first_fails_before_content(stream: bool) -> None:
    home = Home(scripted("bad", cut_after=0), scripted("good", reply="from the second"))
    out = await go(home, ask(stream=stream))
    assert out.text == "from the second"
    assert [(a.endpoint, a.error) for a in home.row.attempts] == [("bad", "upstream_cut"), ("good", "")]
    assert (home.row.endpoint, home.row.served_model, home.row.outcome) == ("good", "good-served", "ok")
    assert b"bad-served" not in out.body, "nothing of the failed attempt leaves"
    assert b"bad-served" not in home.row.answer


async def test_no_other_endpoint_is_asked_once_content_has_left() -> None:
    home = Home(scripted("bad", cut_after=2, reply="one two three four"), scripted("good"))
    out = await go(home, ask(stream=True))
    assert [a.endpoint for a in home.row.attempts] == ["bad"]
    assert out.status == 200
    assert text_of(out.frames[:-1]) == "one two"
    assert out.error["code"] == "upstream_cut"
    assert DONE not in out.frames
    assert (home.row.outcome, home.row.error_code, home.row.status) == ("error", "upstream_cut", 200)


async def test_the_callers_own_mistake_is_passed_on_and_not_tried_elsewhere() -> None:
    home = Home(scripted("bad", fail_rate=1.0, fail_status=400, fail_message="no such parameter"), scripted("good"))
    out = await go(home, ask())
    assert (out.status, out.error["message"]) == (400, "no such parameter")
    assert [a.endpoint for a in home.row.attempts] == ["bad"]
    assert out.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
async def test_when_every_endpoint_fails_the_error_is_the_last_ones(stream: bool) -> None:
    # neither is worth a second try: a refused key, and a wait of 7 s
    home = Home(scripted("a", fail_rate=1.0, fail_status=401), scripted("b", fail_rate=1.0, fail_status=429, retry_after=7))
    out = await go(home, ask(stream=stream))
    assert (out.status, out.error["code"], out.headers["retry-after"]) == (429, "upstream_rate_limited", "7")
    assert out.headers["content-type"] == "application/json"
    assert [a.status for a in home.row.attempts] == [401, 429]


class Away(Wire):
    """Ready when looked at, gone when asked; or not even ready."""

    def __init__(self, *, ready: bool) -> None:
        super().__init__([], Unavailable("The local model is not running.", code="model_not_running"))
        self._ready = ready

    @property
    def ready(self) -> Any:
        return None if self._ready else self.end


@pytest.mark.parametrize("ready", [False, True])
async def test_a_local_model_that_is_away_is_passed_over(ready: bool) -> None:
    home = Home(wired(Away(ready=ready), "local"), scripted("good", reply="here"))
    out = await go(home, ask())
    assert out.text == "here"
    assert [a.endpoint for a in home.row.attempts] == ["local", "good"]


async def test_with_no_model_to_ask_the_outage_is_ours() -> None:
    home = Home(wired(Away(ready=False)))
    out = await go(home, ask())
    assert (out.status, out.error["code"]) == (503, "model_not_running")
    assert "retry-after" in out.headers
    assert await home.spent() == 0


# -- guards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_the_model_sees_a_mask_and_the_caller_the_original(stream: bool) -> None:
    home = guarded_home(scripted(), rules=[pii(on=("input",))])  # the script echoes what it saw
    out = await go(home, ask(f"write to {EMAIL} now", stream=stream))
    assert out.text == f"write to {EMAIL} now"
    assert EMAIL.encode() not in home.row.request + home.row.answer
    assert b"[EMAIL_1]" in home.row.request
    assert b"[EMAIL_1]" in home.row.answer
    assert [r.action for r in home.row.rulings] == ["mask"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_model_leaks_is_masked_for_good(stream: bool) -> None:
    home = guarded_home(scripted(reply=f"It is {EMAIL}, of course."), rules=[pii(on=("output",))])
    out = await go(home, ask(stream=stream))
    assert out.text == "It is [EMAIL], of course."
    assert EMAIL.encode() not in out.body + home.row.answer
    assert b"[EMAIL]" in home.row.answer


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_refused_reaches_no_model_and_is_recorded_scrubbed(stream: bool) -> None:
    wire = Wire(streamed("never"))
    home = guarded_home(wired(wire), rules=[deny("block", ("input",)), pii(on=("input",))])
    out = await go(home, ask(f"tell {EMAIL} about falcon", stream=stream))
    assert (out.status, out.error["code"], out.error["type"]) == (400, "content_filter", "invalid_request_error")
    assert "falcon" not in json.dumps(out.error)
    assert wire.calls == []
    assert home.row.outcome == "blocked"
    assert b"falcon" not in home.row.request
    assert EMAIL.encode() not in home.row.request
    assert b"tell [EMAIL] about" in home.row.request
    assert await home.spent() == 0


async def test_a_whole_answer_that_is_refused_never_leaves() -> None:
    home = guarded_home(scripted(reply="the falcon flies"), rules=[deny("block", ("output",))])
    out = await go(home, ask())
    assert (out.status, out.error["code"], home.row.outcome) == (400, "content_filter", "blocked")
    assert b"falcon" not in out.body + home.row.answer


@pytest.mark.parametrize("turns", [False, True])
async def test_a_stream_that_is_refused_ends_in_an_error_frame(turns: bool) -> None:
    wire = Wire(streamed("it is ", "the ", "falcon", " that flies ", "away"), turns=turns)
    home = guarded_home(wired(wire), rules=[deny("block", ("output",))])
    out = await go(home, ask(stream=True))
    assert out.error["code"] == "content_filter"
    assert DONE not in out.frames
    assert b"falcon" not in out.body + home.row.answer
    assert (home.row.outcome, home.row.error_code) == ("blocked", "content_filter")
    assert text_of(out.frames[:-1]).startswith("it is")


async def test_a_refusal_in_the_last_breath_of_a_scripted_stream_counts() -> None:
    home = guarded_home(scripted(reply="here comes the falcon"), rules=[deny("block", ("output",))])
    out = await go(home, ask(stream=True))
    assert (out.error["code"], home.row.outcome) == ("content_filter", "blocked")
    assert b"falcon" not in out.body + home.row.answer
    assert asyncio.current_task().cancelling() == 0


async def test_a_refused_answer_keeps_no_choice_that_was_not_judged() -> None:
    choices = [{"index": i, "message": {"role": "assistant", "content": f"falcon {i} {EMAIL}"}} for i in range(2)]
    home = guarded_home(
        wired(Wire([], whole=msgspec.json.encode({"choices": choices}))), rules=[deny("block", ("output",)), pii()]
    )
    await go(home, ask())
    assert home.row.outcome == "blocked"
    assert EMAIL.encode() not in home.row.answer
    assert b"falcon" not in home.row.answer


async def test_masked_words_stay_masked_in_memory() -> None:
    sessions = Sessions()
    home = guarded_home(scripted(), rules=[pii(on=("input",))], memory=Memory(sessions), keep=4)
    await go(home, ask(f"I am {EMAIL}", stream=True, conversation="c"))
    assert [m.text for m in sessions.kept["local", "k1", "c"]] == ["I am [EMAIL_1]", "I am [EMAIL_1]"]


class Aside:
    """An outward stage that looks after reasoning only."""

    name = "aside"
    behaviour = 1

    def open(self, x: Exchange, choice: int, channel: str, report: Any) -> Any:
        return None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_channel_that_no_stage_wants_is_recorded_and_remembered_whole(stream: bool) -> None:
    sessions = Sessions()
    home = Home(scripted(reply="untouched words"), outward=(Aside(),), memory=Memory(sessions), keep=4)
    out = await go(home, ask(stream=stream, conversation="c"))
    assert out.text == "untouched words"
    assert sessions.kept["local", "k1", "c"][-1].text == "untouched words"
    assert b"untouched" in home.row.answer


# -- broken upstreams ---------------------------------------------------------------------------------------


async def test_an_answer_that_is_none_is_the_upstreams_fault() -> None:
    home = Home(wired(Wire([], whole=b"<html>")))
    out = await go(home, ask())
    assert (out.status, out.error["code"]) == (502, "bad_upstream_response")


BAD_FRAMES = [
    b'data: {"choices":[1]}\n\n',
    b'data: {"choices":[{"delta":5}]}\n\n',
    b"data: {nonsense\n\n",
    b'data: {"choices":{"a":1}}\n\n',
]


@pytest.mark.parametrize("bad", BAD_FRAMES)
async def test_a_stream_that_cannot_be_judged_ends_and_is_recorded(bad: bytes) -> None:
    home = guarded_home(wired(Wire([*streamed("some ", "words ")[:3], bad, *streamed("more")])), rules=[pii()])
    out = await go(home, ask(stream=True))
    assert home.row is not None
    assert out.ended == 1
    assert home.row.outcome in ("ok", "error")


@pytest.mark.parametrize("bad", BAD_FRAMES)
@pytest.mark.parametrize("keep", [0, 4])
async def test_without_guards_a_strange_frame_is_relayed(bad: bytes, keep: int) -> None:
    home = Home(wired(Wire([*streamed("some ")[:2], bad, DONE])), memory=Memory(Sessions()) if keep else None, keep=keep)
    out = await go(home, ask(stream=True, conversation="c"))
    assert bad in out.frames
    assert home.row.outcome == "ok"


async def test_an_unfinished_frame_is_still_delivered() -> None:
    home = Home(wired(Wire([*streamed("a")[:2], b"data: {"])))
    out = Collected(home.log)
    await answer(ask(stream=True), home, out)
    assert out.body.endswith(b"data: {")


# -- every way out ------------------------------------------------------------------------------------------


async def test_a_caller_who_leaves_cancels_the_model_and_is_recorded() -> None:
    home = Home(scripted(hang_after=1, reply="one two three"))
    out = Collected(home.log)
    task = asyncio.create_task(answer(ask(stream=True, raw={"max_tokens": 10}), home, out))
    while not out.pieces:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (home.row.outcome, home.row.status, home.row.error_code) == ("cancelled", 499, "cancelled")
    assert home.row.attempts[0].error == "cancelled"
    assert b"one" in home.row.answer
    assert out.ended == 0, "nobody is there to read an end"
    assert await home.spent() > 0


async def test_a_mistake_of_our_own_is_recorded_and_goes_on_up() -> None:
    home = Home(wired(Wire([], RuntimeError("a bug"))))
    out = Collected(home.log)
    with pytest.raises(RuntimeError, match="a bug"):
        await answer(ask(), home, out)
    assert (home.row.outcome, home.row.status, home.row.error_code) == ("error", 500, "RuntimeError")
    assert await home.spent() > 0


async def test_no_admission_no_traces_of_the_secret() -> None:
    home = Home()
    out = await go(home, ask(authorization="wrong"))
    assert (out.status, out.error["code"], home.row.outcome) == (401, "invalid_api_key", "refused")
    assert b"wrong" not in msgspec.msgpack.encode(home.row)
    assert home.row.request == b""


async def test_a_request_that_cannot_be_read_is_recorded_without_its_body() -> None:
    home = Home()
    out = Collected(home.log)
    refuse(ask(), home, out, RequestError("The request body is not valid JSON.", code="invalid_json"))
    assert (out.status, out.error["code"]) == (400, "invalid_json")
    assert (home.row.outcome, home.row.request, home.row.answer) == ("refused", b"", b"")
    assert home.log[0] == "row"


async def test_a_conversation_that_cannot_be_kept_is_our_outage() -> None:
    class Broken(Sessions):
        async def append(self, *args: Any) -> None:
            raise StoreError("The keeper cannot be reached.", code="keeper_away")

    home = Home(memory=Memory(Broken()), keep=4)
    out = await go(home, ask(conversation="c"))
    assert (out.status, home.row.outcome) == (503, "error")
    assert await home.spent() == home.row.cost_nanousd, "the model has been paid all the same"


EXITS: dict[str, tuple[Any, bool, str]] = {
    "whole": (lambda: Home(scripted(reply="a b c")), False, "cost"),
    "stream": (lambda: Home(scripted(reply="a b c")), True, "cost"),
    "fallback": (lambda: Home(scripted("bad", fail_rate=1.0), scripted("good")), False, "cost"),
    "blocked before": (lambda: guarded_home(rules=[deny("block", ("input",), "hello")]), False, "nothing"),
    "blocked after": (lambda: guarded_home(scripted(reply="falcon"), rules=[deny("block", ("output",))]), False, "cost"),
    "cut after content": (lambda: Home(scripted(cut_after=1)), True, "cost"),
    "no usage": (lambda: Home(scripted(usage=False)), False, "cost"),
    "not ready": (lambda: Home(wired(Away(ready=False))), False, "nothing"),
    "unreadable answer": (lambda: Home(wired(Wire([], whole=b"{}"))), False, "reserved"),
}


@pytest.mark.parametrize("way", EXITS)
async def test_money_is_settled_on_every_way_out(way: str) -> None:
    make, stream, pays = EXITS[way]
    home = make()
    x = ask(stream=stream, usage_wanted=stream, raw={"max_tokens": 10, "stream_options": {"include_usage": True}})
    await go(home, x)
    reserved = 1000 * sum(len(v) for v in x.body.values()) + 10 * 2000
    expected = {"cost": home.row.cost_nanousd, "nothing": 0, "reserved": reserved}[pays]
    assert await home.spent() == expected
    assert expected is not None


# -- any chunking -------------------------------------------------------------------------------------------

PROPERTY = settings(max_examples=120, deadline=None, derandomize=True)
WORDS = st.one_of(
    st.sampled_from(
        ["hello", " ", "世界", "[EMAIL_1]", "[EMAIL", "_1]", EMAIL, "bob.smith@", "example.com", "\n", '"', "\\", "🦉", "a b"]
    ),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
)
LINE_ENDS = st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({p % (len(data) + 1) for p in places})
    return [p for a, b in zip([0, *at], [*at, len(data)], strict=True) if (p := data[a:b])]


@PROPERTY
@given(
    texts=st.lists(WORDS, max_size=8),
    places=st.lists(st.integers(0, 10_000), max_size=20),
    ends=LINE_ENDS,
    comment=st.sampled_from([b"", b": keep-alive"]),
    wanted=st.booleans(),
)
def test_any_chunking_of_the_upstreams_bytes_delivers_its_frames_in_order(texts, places, ends, comment, wanted) -> None:
    frames = [f.replace(b"\n\n", ends) for f in streamed(*texts)]
    if comment:
        frames.insert(len(frames) // 2, comment + ends)
    home = Home(wired(Wire(cut(b"".join(frames), places))))
    out = asyncio.run(go(home, ask(stream=True, usage_wanted=wanted)))
    usage = USAGE.replace(b"\n\n", ends)
    assert out.body == b"".join(f for f in frames if wanted or f != usage)
    assert home.row.answer == b"".join(frames), "the record keeps every byte"


def in_ascii(frame: bytes) -> bytes:
    """The same frame as some servers write it: everything beyond ASCII as an escape, astral characters as two."""
    return frame.decode().encode("ascii", "noria.escape")


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error("noria.escape", _escape)


@PROPERTY
@given(
    texts=st.lists(st.sampled_from([" the", "quick", " wheel", "世", "界", "，", "\n", "🦉", " é", '"', "\\"]), max_size=40),
    places=st.lists(st.integers(0, 10_000), max_size=20),
    escaped=st.booleans(),
)
def test_frames_of_which_the_guards_change_nothing_keep_their_bytes(texts, places, escaped) -> None:
    frames = [in_ascii(f) for f in streamed(*texts)] if escaped else streamed(*texts)
    home = guarded_home(wired(Wire(cut(b"".join(frames), places))), rules=[pii(), deny("block", ("output",), "世人")])
    out = asyncio.run(go(home, ask(stream=True, usage_wanted=True)))
    assert out.body == b"".join(frames)
    assert home.row.answer == b"".join(frames)


@PROPERTY
@given(texts=st.lists(WORDS, max_size=10), places=st.lists(st.integers(0, 10_000), max_size=20), escaped=st.booleans())
def test_guards_and_restore_give_the_whole_texts_result_whatever_the_chunks(texts, places, escaped) -> None:
    whole = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "".join(texts)}, "finish_reason": "stop"}]}
    rules = [pii(), (Secrets(Options()), GuardRule("secrets", "mask", ("output",))), deny("mask", ("output",), "世界 hello")]
    question = f"write to {EMAIL}"
    at_once = guarded_home(wired(Wire([], whole=msgspec.json.encode(whole))), rules=rules)
    expected = asyncio.run(go(at_once, ask(question))).text
    frames = [in_ascii(f) for f in streamed(*texts)] if escaped else streamed(*texts)
    piecemeal = guarded_home(wired(Wire(cut(b"".join(frames), places))), rules=rules)
    out = asyncio.run(go(piecemeal, ask(question, stream=True)))
    assert out.text == expected
    recorded = json.loads(at_once.row.answer)["choices"][0]["message"]["content"]
    kept = assemble(piecemeal.row.answer) if piecemeal.row.answer_is_sse else json.loads(piecemeal.row.answer)
    assert (kept["choices"][0]["message"]["content"] or "") == recorded
