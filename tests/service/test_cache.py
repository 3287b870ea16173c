"""The answer cache as callers and operators of a running Noria meet it."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

CONFIG = """
models:
  mirror: {provider: openai_compatible, url: "%s", model: mirror, price: {input: 1.0, output: 2.0}}
  slow: {provider: openai_compatible, url: "%s", model: slow-0.7, price: {input: 1.0, output: 2.0}}
guards:
  masking: [{pii: {action: mask}}]
apps:
  plain: {model: mirror}
  kept: {model: mirror, cache: true}
  brief: {model: mirror, cache: {ttl: 1s}}
  shared: {model: mirror, guard: masking, cache: {scope: app}}
  single: {model: slow, single_flight: true}
"""


@pytest.fixture(scope="module")
def noria(serve_once, mirror, upstream, caller):
    return caller(serve_once(CONFIG % (mirror.url, upstream.url)))


@pytest.fixture(scope="module")
def keyed(noria):
    """The same service for two callers with keys of their own."""
    return [type(noria)(noria.service, noria.new_key(name=name)) for name in ("ann", "bob")]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("again", [False, True], ids=["then whole", "then stream"])
def test_the_second_identical_request_does_not_reach_the_model(keyed, mirror, stream, again):
    ann, text = keyed[0], f"what is a noria? {stream} {again}"
    first = ann.chat("kept", text, stream=stream)
    asked = len(mirror.seen)
    second = ann.chat("kept", text, stream=again)
    assert len(mirror.seen) == asked
    assert (first.headers["x-noria-cache"], second.headers["x-noria-cache"]) == ("miss", "hit")
    assert first.text() == second.text() == text
    if stream == again:
        assert first.body == second.body
    if again:
        assert second.frames[-1] == "[DONE]"
        assert all(f["choices"] for f in second.frames[:-1]), "no usage frame for those who did not ask"
    else:
        assert second.headers["x-noria-cost"] == "0.000000000"
    row = ann.row(second.id)
    assert (row["cache"], row["cost_usd"], row["cost_status"], row["outcome"]) == ("hit", 0, "exact", "ok")
    assert row["usage"]["input"] == 10, "what the answer took once is shown"
    assert ann.row(first.id)["cost_usd"] == pytest.approx(20e-6)


def test_openais_own_client_reads_a_replayed_stream(keyed):
    client = openai.OpenAI(base_url=keyed[0].service.url + "/v1", api_key=keyed[0].key, max_retries=0)
    ask = {"model": "kept", "messages": [{"role": "user", "content": "say it twice"}]}
    for _ in range(2):
        with client.chat.completions.with_streaming_response.create(
            **ask, stream=True, stream_options={"include_usage": True}
        ) as raw:
            cache = raw.headers["x-noria-cache"]
            chunks = list(raw.parse())
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "say it twice"
        assert chunks[-1].usage.total_tokens == 15
    assert cache == "hit"
    whole = client.chat.completions.create(**ask)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("say it twice", "stop")
    with pytest.raises(openai.APIStatusError) as told:
        client.chat.completions.create(
            model="kept",
            messages=[{"role": "user", "content": "never said"}],
            extra_headers={"cache-control": "only-if-cached"},
        )
    assert (told.value.status_code, told.value.code) == (504, "not_cached")


def test_an_app_without_a_cache_says_nothing_of_one(keyed, mirror):
    for _ in range(2):
        assert "x-noria-cache" not in keyed[0].chat("plain", "no cache here").headers
    assert [m["messages"][-1]["content"] for m in mirror.seen].count("no cache here") == 2


def test_one_key_never_gets_what_another_was_answered(keyed, mirror):
    ann, bob = keyed
    ann.chat("kept", "between us")
    assert bob.chat("kept", "between us").headers["x-noria-cache"] == "miss"
    assert [m["messages"][-1]["content"] for m in mirror.seen].count("between us") == 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_shared_answer_restores_only_the_callers_own_secrets(keyed, mirror, stream):
    ann, bob = keyed
    before = len(mirror.seen)
    text = "please write to %s about the wheel" + (" soon" if stream else "")
    one = ann.chat("shared", text % "ann.miller@example.com", stream=stream)
    two = bob.chat("shared", text % "bob.smith@example.org", stream=stream)
    assert len(mirror.seen) == before + 1
    assert "@" not in mirror.last["messages"][-1]["content"]
    assert (two.headers["x-noria-cache"], one.text(), two.text()) == (
        "hit", text % "ann.miller@example.com", text % "bob.smith@example.org",
    )  # fmt: skip
    assert b"ann.miller" not in two.body
    assert "example" not in str(ann.trace(two.id)), "what was masked is not recorded either"


def test_cache_control_is_honoured(keyed, mirror):
    ann, text = keyed[0], "mind the header"

    def asked(control: str) -> tuple[str, int]:
        before = len(mirror.seen)
        answer = ann.chat("kept", text, headers={"cache-control": control})
        return answer.headers["x-noria-cache"], len(mirror.seen) - before

    assert asked("no-store") == ("bypass", 1)
    assert asked("max-age=100") == ("miss", 1)
    assert asked("max-age=100") == ("hit", 0)
    assert asked("no-cache") == ("miss", 1)
    assert asked("only-if-cached") == ("hit", 0)
    hit = ann.chat("kept", text)
    assert hit.headers["age"] in ("0", "1", "2")
    assert hit.headers["cache-control"].startswith("private, max-age=359")


def test_an_answer_outlives_its_time_by_nothing(keyed):
    ann = keyed[0]
    ann.chat("brief", "short memory")
    assert ann.chat("brief", "short memory").headers["x-noria-cache"] == "hit"
    time.sleep(1.05)
    assert ann.chat("brief", "short memory").headers["x-noria-cache"] == "miss"


def test_identical_requests_at_the_same_time_are_one_call(keyed, upstream):
    ann, before = keyed[0], len(upstream.seen)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: ann.chat("single", "all at once", stream=n % 2 == 1), range(8)))
    assert len(upstream.seen) == before + 1
    assert {a.text() for a in answers} == {"Hello, 世界! How are you?"}
    assert sorted(a.headers["x-noria-cache"] for a in answers) == ["joined"] * 7 + ["miss"]
    rows = [ann.row(a.id) for a in answers]
    assert sum(r["cost_usd"] for r in rows) == pytest.approx(32e-6), "one pays"


def test_hits_leave_a_budget_alone(noria):
    ann = type(noria)(noria.service, noria.new_key(name="thrifty", budget_usd=0.004))
    assert ann.chat("kept", "a dear question", max_tokens=100).status == 200
    answers = [ann.chat("kept", "a dear question", max_tokens=100) for _ in range(200)]
    assert {a.status for a in answers} == {200}, "two hundred of these would cost 0.004 USD"
    statuses = {ann.chat("kept", f"question {n}", max_tokens=100).status for n in range(200)}
    assert 429 in statuses, "new questions do spend"
    assert ann.chat("kept", "a dear question", max_tokens=100).status == 200, "what is known is still told"


def test_the_metrics_tell_what_the_cache_did(noria, keyed):
    keyed[0].chat("kept", "count me")
    keyed[0].chat("kept", "count me")
    end = time.monotonic() + 5
    while True:
        text = noria.send("GET", "/metrics").body.decode()
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("noria_cache"))
        if float(lines.get('noria_cache_total{event="hit"}', 0)) > 0 or time.monotonic() > end:
            break
        time.sleep(0.1)
    assert float(lines['noria_cache_total{event="evaluated"}']) >= float(lines['noria_cache_total{event="hit"}']) >= 1
    assert float(lines['noria_cache_total{event="stored"}']) >= 1
    assert float(lines["noria_cache_saved_nanousd_total"]) >= 20_000
    assert sum(float(v) for k, v in lines.items() if k.startswith("noria_cache_bytes")) > 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_another_protocol_gets_kept_answers_in_its_own_words(keyed, mirror, stream):
    ann, text = keyed[0], f"bonjour {stream}"
    first, asked = ann.post("/v1/responses", {"model": "kept", "input": text, "stream": stream}), len(mirror.seen)
    second = ann.post("/v1/responses", {"model": "kept", "input": text, "stream": stream})
    assert (first.status, second.status, len(mirror.seen)) == (200, 200, asked), second.body
    assert (first.headers["x-noria-cache"], second.headers["x-noria-cache"]) == ("miss", "hit")
    for answer in (first, second):
        if stream:
            assert b"event: response.completed" in answer.body
            done = next(p for p in answer.body.split(b"\n\n") if b"event: response.output_text.done" in p)
            assert json.loads(done.split(b"data: ")[1])["text"] == text
        else:
            assert answer.json["output"][0]["content"][0]["text"] == text
            assert answer.json["usage"]["total_tokens"] == 15
