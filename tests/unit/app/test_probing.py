"""Probes of endpoints: what they say of one, when workers are told, and that nothing is sent before somebody serves."""

from __future__ import annotations

import asyncio
import json

import pytest
from msgspec.structs import replace
from tests.loopback import listening

from noria.app.probing import Completion, Get, Outcome, Patient, Probing, judged
from noria.contracts.release import App, Endpoint, Price, Probe, Release, Snapshot

BAD = Outcome("failed", "GET /up was answered with 503.")
GOOD = Outcome("ok", took_ns=2_000_000)


def patient(**probe) -> Patient:
    probe = Probe(**{"every": 10.0, "timeout": 5.0, "failures": 2, **probe})
    return Patient(Endpoint("a", "openai_compatible", "m", probe=probe), probe)


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (200, "ok"),
        (204, "ok"),
        (301, "unfit"),
        (401, "refused"),
        (403, "refused"),
        (404, "unfit"),
        (429, "busy"),
        (500, "failed"),
        (503, "failed"),
    ],
)
def test_what_a_status_says(status, result):
    assert judged(status) == result


def test_workers_are_told_after_so_many_failures_until_two_more_probes_must_have_come():
    one = patient()
    one.note(BAD, 100.0)
    assert one.out(100.0) is None
    one.note(BAD, 110.0)
    told = one.out(111.0)
    assert (told.endpoint, told.state, told.left, told.error) == ("a", "ejected", 24.0, BAD.error)
    assert one.out(134.9) is not None
    assert one.out(135.0) is None, "a keeper that cannot probe any more holds nobody out"
    one.note(GOOD, 120.0)
    assert (one.is_out, one.out(120.0)) == (False, None)


@pytest.mark.parametrize("between", ["ok", "busy", "unfit"])
def test_what_answers_in_between_ends_the_row(between):
    one = patient()
    for outcome in (BAD, Outcome(between), BAD):
        one.note(outcome, 1.0)
    assert not one.is_out


def test_a_refused_key_is_told_at_once():
    one = patient(failures=5)
    one.note(Outcome("refused", "the key is refused."), 1.0)
    assert one.out(1.0).state == "dead"


def test_what_people_are_told():
    one = patient()
    assert one.status(0.0)["state"] == "waiting"
    one.note(BAD, 10.0)
    one.note(replace(GOOD, cost_nanousd=2_000), 20.0)
    one.note(replace(GOOD, cost_nanousd=None), 30.0)
    told = one.status(31.5)
    assert (told["state"], told["seconds_ago"], told["took_ms"], told["cost_usd"], told["cost_unknown"]) == (
        "ok",
        1.5,
        2.0,
        2e-6,
        1,
    )
    assert told["last_error"] == {"text": BAD.error, "seconds_ago": 21.5}, "the last error stays, with its age"


# -- against a server -------------------------------------------------------------------------------


class Server:
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.answer: bytes | None = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.seen.append(head)
            if self.answer is None:
                await reader.read()
            else:
                writer.write(self.answer)
                await writer.drain()
        finally:
            writer.close()


@pytest.fixture
def server():
    made = Server()
    with listening(made.serve) as made.port:
        yield made


def endpoint(server, **more) -> Endpoint:
    return Endpoint("a", "openai_compatible", "m", url=f"http://127.0.0.1:{server.port}/v1", **more)


async def test_a_list_of_models_lies_below_the_url_and_a_path_at_the_host(server, monkeypatch):
    monkeypatch.setenv("SECRET", "sk-1")
    get = Get(endpoint(server, key="env:SECRET", options={"headers": {"X-Team": "wheel"}}))
    assert (await get.ask(Probe())).result == "ok"
    assert (await get.ask(Probe(ask="/health"))).result == "ok"
    assert [head.split()[:2] for head in server.seen] == [["GET", "/v1/models"], ["GET", "/health"]]
    assert "authorization: bearer sk-1" in server.seen[0].lower()
    assert "x-team: wheel" in server.seen[0].lower()


async def test_silence_and_a_closed_port_are_failures_in_words(server):
    server.answer = None
    late = await Get(endpoint(server)).ask(Probe(timeout=0.1))
    assert (late.result, "GET /models" in late.error) == ("failed", True)
    nobody = Endpoint("a", "openai_compatible", "m", url="http://127.0.0.1:1/v1")
    gone = await Get(nobody).ask(Probe(timeout=1.0))
    assert (gone.result, "127.0.0.1:1" in gone.error) == ("failed", True)
    keyless = await Get(endpoint(server, key="env:NOT_SET_ANYWHERE")).ask(Probe())
    assert (keyless.result, "NOT_SET_ANYWHERE" in keyless.error) == ("failed", True)


@pytest.mark.parametrize(("status", "result"), [(401, "refused"), (429, "busy"), (500, "failed"), (400, "unfit")])
async def test_what_the_failure_of_a_completion_says(server, tmp_path, status, result):
    body = json.dumps({"error": {"message": "no"}}).encode()
    server.answer = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )
    asker = Completion(endpoint(server), tmp_path)
    try:
        assert (await asker.ask(Probe(ask="completion"))).result == result
    finally:
        await asker.close()


async def test_a_completion_that_does_not_come_has_failed(server, tmp_path):
    server.answer = None
    asker = Completion(endpoint(server), tmp_path)
    try:
        outcome = await asker.ask(Probe(ask="completion", timeout=0.1))
    finally:
        await asker.close()
    assert (outcome.result, outcome.error) == ("failed", "No answer within 0.1 s.")


# -- all of them ------------------------------------------------------------------------------------


class Clock:
    def now_ns(self) -> int:
        return 1_795_000_000_000_000_000


def snapshot(*route: Endpoint) -> Snapshot:
    return Snapshot("c1:x", "local", 1, {"app": App("app", {"main": Release("r1:x", "main", "app", route)}, {"main": 1.0})}, {})


async def until(what) -> None:
    async with asyncio.timeout(5):
        while not what():
            await asyncio.sleep(0.01)


async def test_nothing_is_sent_before_somebody_serves_and_a_new_configuration_is_followed(server, tmp_path, monkeypatch):
    monkeypatch.setattr("noria.app.probing.FIRST", 0.01)
    (tmp_path / "metrics").mkdir()
    rows = []

    async def record(row) -> None:
        rows.append(row)

    probing = Probing(tmp_path, "local", Clock(), record)
    probed, plain = endpoint(server, probe=Probe(every=0.05)), replace(endpoint(server), name="plain")
    probing.adopt(snapshot(probed, plain))
    await asyncio.sleep(0.05)
    assert (server.seen, probing.status()) == ([], [])
    probing.begin()
    await until(lambda: len(server.seen) >= 2)
    assert [p["endpoint"] for p in probing.status()] == ["a"]
    assert rows == [], "a list of models costs nothing"
    probing.adopt(snapshot(plain))
    before = len(server.seen)
    await asyncio.sleep(0.2)
    assert len(server.seen) <= before + 1, "one may have been under way"
    assert (probing.status(), probing.told()) == ([], ())
    await probing.close()


async def test_a_completion_is_recorded_with_its_price_and_a_failed_one_with_its_error(tmp_path, monkeypatch):
    monkeypatch.setattr("noria.app.probing.FIRST", 0.01)
    (tmp_path / "metrics").mkdir()
    rows = []

    async def record(row) -> None:
        rows.append(row)

    probing = Probing(tmp_path, "local", Clock(), record)
    probe = Probe(ask="completion", every=0.05)
    good = Endpoint("good", "scripted", "m", price=Price(1.0, 2.0), probe=probe)
    bad = Endpoint("bad", "openai_compatible", "m", url="http://127.0.0.1:1/v1", price=Price(1.0, 2.0), probe=probe)
    probing.adopt(snapshot(good, bad))
    probing.begin()
    await until(lambda: {"good", "bad"} <= {r.endpoint for r in rows} and len(probing.told()) == 1)
    by_name = {r.endpoint: r for r in rows}
    good_row, bad_row = by_name["good"], by_name["bad"]
    assert (good_row.app, good_row.outcome, good_row.cost_status, good_row.worker) == ("noria:probe", "ok", "exact", "keeper")
    assert good_row.cost_nanousd == good_row.usage.input * 1000 + good_row.usage.output * 2000
    assert (bad_row.outcome, bad_row.cost_nanousd, bad_row.error_code) == ("error", 0, "upstream_refused")
    assert (probing.told()[0].endpoint, probing.told()[0].state) == ("bad", "ejected")
    await probing.close()
