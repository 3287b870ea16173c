"""Every surface of the running service: the other endpoints, health, metrics, headers, and the command line."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

CONFIG = {
    "models": {
        "fake": {"provider": "scripted", "model": "fake-1", "price": {"input": 1, "output": 2}},
        "slow": {"provider": "scripted", "model": "slow-1", "options": {"first_ms": 150, "reply": "late"}},
        "vec": {"provider": "scripted", "model": "vec-1", "kind": "embedding", "options": {"dimensions": 8}},
    },
    "apps": {"echo": {"model": "fake"}, "slow": {"model": "slow"}, "team/bot": {"model": "fake", "description": "a bot"}},
}


@pytest.fixture(scope="module")
def noria(serve_once, caller):
    """Two workers, no keys."""
    return caller(serve_once(json.dumps(CONFIG), "--workers", "2"))


# -- endpoints ------------------------------------------------------------------------------------------


def test_completions_answer_whole_and_as_a_stream(noria) -> None:
    answer = noria.post("/v1/completions", {"model": "echo", "prompt": "one two three"})
    assert (answer.status, answer.json["object"]) == (200, "text_completion")
    assert answer.json["choices"][0]["text"] == "one two three"
    assert answer.json["usage"]["total_tokens"] == 6
    streamed = noria.post("/v1/completions", {"model": "echo", "prompt": "one two three", "stream": True})
    assert "".join(f["choices"][0]["text"] for f in streamed.frames[:-1]) == "one two three"
    assert noria.row(answer.id)["kind"] == "completion"
    assert noria.trace(answer.id)["request"]["prompt"] == "one two three"
    noria.post("/v1/completions", {"model": "echo"}).refuses(400, "missing_required_parameter", param="prompt")


def test_embeddings_come_as_floats_and_as_base64(noria) -> None:
    plain = noria.post("/v1/embeddings", {"model": "vec", "input": ["hello", "世界"]})
    assert (plain.status, plain.json["object"], len(plain.json["data"])) == (200, "list", 2)
    floats = [d["embedding"] for d in plain.json["data"]]
    assert [len(v) for v in floats] == [8, 8]
    assert math.fsum(x * x for x in floats[0]) == pytest.approx(1)
    packed = noria.post("/v1/embeddings", {"model": "vec", "input": ["hello", "世界"], "encoding_format": "base64"})
    read = [struct.unpack("<8f", base64.b64decode(d["embedding"])) for d in packed.json["data"]]
    assert read == [pytest.approx(v, abs=1e-6) for v in floats]
    assert noria.post("/v1/embeddings", {"model": "vec", "input": "hello", "stream": True}).json["data"], "nothing to stream"
    row = noria.row(plain.id)
    assert (row["kind"], row["outcome"], row["tokens_in"], row["served_model"]) == ("embedding", "ok", 3, "vec-1")
    noria.post("/v1/embeddings", {"model": "vec", "input": []}).refuses(400, None, param="input")
    noria.post("/v1/embeddings", {"model": "echo", "input": "x"}).refuses(404, "model_not_found", param="model")


def test_models_lists_what_may_be_called(noria) -> None:
    listed = noria.send("GET", "/v1/models")
    assert listed.json["object"] == "list"
    assert [m["id"] for m in listed.json["data"]] == ["echo", "slow", "team/bot", "vec"]
    assert all(m["object"] == "model" and m["created"] > 0 and m["owned_by"] for m in listed.json["data"])
    for path in ("/v1/models/team/bot", "/v1/models/team%2Fbot"):
        assert noria.send("GET", path).json["id"] == "team/bot"
    noria.send("GET", "/v1/models/eco").refuses(404, "model_not_found", param="model")


def test_health_is_told(noria) -> None:
    assert (noria.send("GET", "/livez").status, noria.send("GET", "/readyz").json) == (200, {"status": "ready"})


def test_the_console_comes_packed_to_whoever_takes_it_so(noria) -> None:
    page = noria.send("GET", "/", headers={"accept-encoding": "identity"})
    if page.status == 503:
        pytest.skip("the console is not built (make ui)")
    script = re.search(r'src="(/assets/[^"]+\.js)"', page.body.decode())[1]
    plain = noria.send("GET", script, headers={"accept-encoding": "identity"})
    packed = noria.send("GET", script, headers={"accept-encoding": "gzip, br", "x-noria-coding": "identity"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert "x-noria-coding" not in packed.headers
    assert gzip.decompress(packed.body) == plain.body


def test_the_management_api_describes_itself(noria) -> None:
    described = noria.send("GET", "/api/openapi.json").json
    assert "/api/traces/{id}" in described["paths"]
    assert not [p for p in described["paths"] if p.startswith("/internal")]


# -- metrics --------------------------------------------------------------------------------------------


def samples(noria):
    answer = noria.send("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.body.decode()))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def total(found, name, **labels):
    return sum(v for (n, pairs), v in found.items() if n == name and labels.items() <= dict(pairs).items())


def test_metrics_count_every_worker_once(noria) -> None:
    before = samples(noria)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: noria.chat("echo", "a b", stream=i % 3 == 0), range(30)))
        wrong = list(pool.map(lambda i: noria.chat(f"no-such-{i}"), range(5)))
    assert {noria.row(a.id)["worker"] for a in answers} == {"n0-w0", "n0-w1"}, "both workers took part"
    found = [samples(noria) for _ in range(4)]  # whichever worker is asked
    for after in found:
        grown = lambda name, after=after, **labels: total(after, name, **labels) - total(before, name, **labels)  # noqa: E731
        assert grown("noria_exchanges_total", app="echo", outcome="ok", code="200") == len(answers)
        assert grown("noria_exchanges_total", app="unknown", outcome="refused", code="404") == len(wrong)
        assert grown("noria_tokens_total", app="echo", direction="output") == 2 * len(answers)
        assert grown("gen_ai_server_request_duration_seconds_count", app="echo") == len(answers)
        assert grown("gen_ai_server_time_to_first_token_seconds_count", app="echo") == 10
        assert grown("noria_cost_nanousd_total", app="echo") == len(answers) * (2 * 1000 + 2 * 2000)
    apps = {dict(pairs).get("app") for _, pairs in found[0]}
    assert apps <= {None, "echo", "slow", "team/bot", "vec", "unknown"}, "a caller cannot make labels"


# -- headers and frames ---------------------------------------------------------------------------------


def test_an_answer_says_what_it_was(noria) -> None:
    answer = noria.chat("echo", "a b")
    headers = answer.headers
    row = noria.row(answer.id)
    assert headers["x-noria-release"] == row["release"]
    assert headers["x-noria-release"].startswith("r1:")
    assert headers["x-noria-trace"] == row["trace"]
    assert len(headers["x-noria-trace"]) == 32
    assert float(headers["x-noria-cost"]) == pytest.approx(2e-6 + 4e-6)
    assert row["cost_usd"] == pytest.approx(6e-6)
    assert 0 < float(headers["x-noria-overhead-ms"]) < 5000
    assert headers["content-type"] == "application/json"


def test_our_trace_ids_begin_with_the_time(noria) -> None:
    trace = noria.chat("echo").headers["x-noria-trace"]
    assert abs(int(trace[:12], 16) / 1000 - time.time()) < 60


def test_the_overhead_leaves_the_models_time_out(noria) -> None:
    row = noria.row(noria.chat("slow").id)
    assert row["duration_ns"] >= 149e6  # the loop's timers have milliseconds
    assert row["overhead_ns"] < row["duration_ns"] - 140e6


def test_a_callers_trace_is_kept(noria) -> None:
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    answer = noria.chat("echo", headers={"traceparent": f"00-{trace}-{span}-01"})
    assert answer.headers["x-noria-trace"] == trace
    row = noria.row(answer.id)
    assert (row["trace"], row["parent_span"]) == (trace, span)
    assert row["span"] != span
    for broken in ("00-xyz-b7ad6b7169203331-01", f"00-{'0' * 32}-{span}-01", "junk"):
        assert noria.chat("echo", headers={"traceparent": broken}).headers["x-noria-trace"] not in (trace, "0" * 32)


def test_a_stream_tells_its_cost_to_those_who_ask(noria) -> None:
    asked = noria.chat("echo", "a b", stream=True, headers={"x-noria-tail": "1"})
    comment = next(f for f in asked.body.decode().split("\n\n") if f.startswith(": x-noria "))
    told = json.loads(comment.removeprefix(": x-noria "))
    assert float(told["cost"]) == pytest.approx(6e-6)
    assert told["overhead_ms"] > 0
    assert asked.body.endswith(b"data: [DONE]\n\n")
    assert b": x-noria" not in noria.chat("echo", "a b", stream=True).body


def test_the_usage_frame_goes_only_to_those_who_asked(noria) -> None:
    asked = noria.chat("echo", "a b", stream=True, stream_options={"include_usage": True})
    assert asked.frames[-2]["choices"] == []
    assert asked.frames[-2]["usage"]["total_tokens"] == 4
    plain = noria.chat("echo", "a b", stream=True)
    assert all(f["choices"] for f in plain.frames[:-1])
    assert all(f.get("usage") is None for f in plain.frames[:-1])
    assert noria.row(plain.id)["tokens_out"] == 2, "we know it all the same"


# -- the command line -----------------------------------------------------------------------------------


def document(done):
    """The one JSON document on stdout."""
    value, end = json.JSONDecoder().raw_decode(done.stdout)
    assert done.stdout[end:].strip() == ""
    return value


def test_traces_are_listed_shown_and_exported(noria, tmp_path) -> None:
    ids = [noria.chat("team/bot", f"question {i}").id for i in range(3)]
    for name in ids:  # workers' spools are read one by one
        noria.row(name)
    cli = noria.service.cli
    listed = document(cli("trace", "list", "app=team/bot", "--limit", "2", "--json"))
    assert [r["id"] for r in listed] == ids[:0:-1], "newest first"
    assert document(cli("trace", "list", "app=team/bot", "--count", "--json")) == {"count": 3}
    assert "question 2" in cli("trace", "list", "app=team/bot").stdout
    shown = document(cli("trace", "show", ids[0], "--json"))
    assert shown["request"]["messages"][0]["content"] == "question 0"
    assert "question 0" in cli("trace", "show", ids[0]).stdout
    cli("trace", "export", str(tmp_path / "out.jsonl"), "app=team/bot")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {line["row"]["id"] for line in lines} == set(ids)
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600


def test_what_is_not_there_is_an_error_and_no_json(noria) -> None:
    done = noria.service.cli("trace", "show", "nothing", "--json", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing" in done.stderr
    done = noria.service.cli("trace", "list", "colour=red", "--json", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "colour" in done.stderr


def test_chat_asks_once(noria) -> None:
    assert noria.service.cli("chat", "echo", "-m", "good day 世界").stdout == "good day 世界\n"
    done = noria.service.cli("chat", "ecko", "-m", "x", check=False)
    assert done.returncode == 1
    assert "Did you mean 'echo'" in done.stderr


def test_doctor_and_models_speak_json(noria) -> None:
    done = noria.service.cli("doctor", "--json", check=False)
    told = document(done)
    assert told["ok"] is (done.returncode == 0)
    assert any("running" in f["what"] for f in told["findings"])
    models = document(noria.service.cli("models", "list", "--json"))
    assert isinstance(models, list)


def test_validate_tells_what_is_right_and_what_is_wrong(noria, tmp_path) -> None:
    told = document(noria.service.cli("validate", "--json"))
    assert told["valid"] is True
    release = next(a for a in told["apps"] if a["name"] == "echo")["releases"][0]
    assert release["id"] == noria.chat("echo").headers["x-noria-release"], "the same id as in service"
    (tmp_path / "wrong.yaml").write_text("models:\n  a: {provider: scripted, model: x}\napps:\n  b: {modle: a}\n")
    done = noria.service.cli("validate", str(tmp_path / "wrong.yaml"), "--json", check=False)
    assert done.returncode == 2
    assert document(done)["valid"] is False
    assert any("wrong.yaml:4:7" in p and "'model'" in p for p in document(done)["problems"]), done.stdout
