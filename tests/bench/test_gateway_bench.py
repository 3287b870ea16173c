"""The gateway benchmark: its arithmetic, its refusals, its tools against answers that are wrong, and its page."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import figures
import gateway
import machine
import modes
import peers
import report
import service
import tools
from targets import Cell, Target

STAT = "{pid} ({name}) S {parent} 1 1 0 -1 4194560 900 0 3 0 {user} {system} {cuser} {csystem} 20 0 3 0 5000 1 2"
needs_compiler = pytest.mark.skipif(tools.compiler() is None, reason="needs a C compiler")


def stat(pid=10, parent=1, name="noria", user=0, system=0, cuser=0, csystem=0):
    return machine.parse_stat(
        STAT.format(pid=pid, name=name, parent=parent, user=user, system=system, cuser=cuser, csystem=csystem)
    )


def row(target, number, rps, p50, **more):
    return {"part": "calls", "cell": "whole-32", "target": target, "round": number, "rps": rps, "p50_ms": p50, **more}


# -- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (90, 90), (99, 99), (100, 100), (0.1, 1)])
def test_percentiles_are_nearest_rank(percent, expected):
    assert figures.percentile(range(1, 101), percent) == expected


def test_a_percentile_of_one_value_is_that_value():
    assert [figures.percentile([7], p) for p in (1, 50, 99)] == [7, 7, 7]


def test_a_percentile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        figures.percentile([], 50)


def test_samples_are_pairs_of_last_and_first_byte():
    data = b"".join(struct.pack("<QQ", last, first) for last, first in ((3_000_000, 20), (1_000_000, 30), (2_000_000, 10)))
    last, first = figures.read_samples(data)
    assert (last, first) == ([1_000_000, 2_000_000, 3_000_000], [10, 20, 30])
    assert figures.spread("ttft", last) == {"ttft_p50_ms": 2.0, "ttft_p90_ms": 3.0, "ttft_p99_ms": 3.0}
    assert figures.spread("", last)["p50_ms"] == 2.0


def test_unknown_figures_stay_unknown():
    assert figures.median([None, 3.0, None, 1.0]) == 2.0
    assert figures.median([None]) is None
    assert figures.ratio(1.0, None) is figures.ratio(None, 1.0) is figures.ratio(1.0, 0) is None
    assert figures.difference(None, 1.0) is None
    assert figures.spread("ttft", [])["ttft_p50_ms"] is None


def test_comparisons_are_paired_by_round_before_the_median_is_taken():
    rows = [
        row("direct", 1, 1000, 1.0), row("plain", 1, 100, 2.0, cpu_ms_per_request=0.2),
        row("direct", 2, 100, 10.0), row("plain", 2, 50, 12.0, cpu_ms_per_request=0.4),
        row("direct", 3, 1000, 1.0), row("plain", 3, 200, 1.5, cpu_ms_per_request=0.3),
    ]  # fmt: skip
    direct, plain = figures.summary(rows, "direct")
    assert (direct["rps_ratio"], direct["added_p50_ms"], direct.get("cpu_ms_per_request")) == (1.0, 0.0, None)
    assert plain["rps_ratio"] == 0.2, "the median of 0.1, 0.5, 0.2; not 100 / 1000"
    assert plain["added_p50_ms"] == 1.0, "the median of 1, 2, 0.5"
    assert plain["cpu_ms_per_request_range"] == [0.2, 0.4]
    assert plain["rounds"] == 3


def test_governance_is_the_median_of_what_is_added_in_each_round():
    rows = [row(t, n, 1, 1, cpu_ms_per_request=ms) for n, pair in enumerate([(0.1, 0.2), (0.5, 0.8), (0.1, 0.3)])
            for t, ms in zip(("plain", "governed"), pair, strict=True)]  # fmt: skip
    found = figures.paired(rows, "cpu_ms_per_request", "governed", "plain")["whole-32"]
    assert found == {"median": pytest.approx(0.2), "least": pytest.approx(0.1), "most": pytest.approx(0.3)}


def test_a_slope_has_an_interval_that_holds_zero_for_noise_and_not_for_a_leak():
    noise = [(x, 100 + (x * 7919 % 13) - 6) for x in range(60)]
    found, width = figures.slope(noise)
    assert abs(found) < width
    found, width = figures.slope([(x, y + x) for x, y in noise])
    assert found - width > 0
    assert found == pytest.approx(1.0, abs=0.1)


def test_steps_widen_the_interval_of_a_slope():
    """Ten residuals of one step are not ten observations."""
    steps = [(x, float((x // 10) % 2)) for x in range(80)]
    shaken = [(x, float(x % 2)) for x in range(80)]
    assert figures.slope(steps)[1] > 2 * figures.slope(shaken)[1]


# -- the machine -----------------------------------------------------------------------------------------------------


def test_cpu_time_is_user_and_system_of_a_process_and_its_ended_children():
    read = stat(pid=42, parent=7, user=5, system=6, cuser=70, csystem=8)
    assert read == machine.Stat(42, 7, "noria", 89)


def test_a_process_name_may_hold_spaces_and_parentheses():
    assert stat(name="a) S 9 (b", parent=3)[1:3] == (3, "a) S 9 (b")


def test_our_own_cpu_time_is_read_from_proc():
    before = machine.processes()[os.getpid()].ticks
    goal = time.process_time() + 0.06
    while time.process_time() < goal:
        sum(range(10_000))
    assert machine.processes()[os.getpid()].ticks >= before + 3


def test_a_tree_is_a_process_and_all_its_descendants():
    every = {s.pid: s for s in (stat(1, 0), stat(2, 1), stat(3, 2), stat(4, 1), stat(5, 9))}
    assert {s.pid for s in machine.tree(2, every)} == {2, 3}
    assert {s.pid for s in machine.tree(1, every)} == {1, 2, 3, 4}
    assert machine.tree(99, every) == []


def test_memory_is_read_in_mebibytes():
    text = "55d0-7ffe ---p 0 00:00 0 [rollup]\nRss:      2048 kB\nPss:      1536 kB\nPss_Anon: 1 kB\n"
    assert machine.parse_rollup(text) == {"rss_mib": 2.0, "pss_mib": 1.5}


def test_a_busy_process_of_somebody_else_is_named_and_ours_is_not():
    before = {s.pid: s for s in (stat(1, name="ours"), stat(2, name="hog"), stat(3, name="calm"))}
    after = {s.pid: s for s in (stat(1, user=99), stat(2, name="hog", user=50), stat(3, user=20), stat(4, name="new", user=90))}
    assert machine.busy(before, after, 1000 / machine.TICK / 100, ours=[1]) == [("hog", 0.5)]


def test_a_machine_is_loaded_above_seven_tenths_of_its_cores_or_by_one_busy_process():
    assert machine.why_loaded(1.4, 2, []) == []
    assert "1.41" in machine.why_loaded(1.41, 2, [])[0]
    assert machine.why_loaded(0.0, 2, [("hog", 0.5)]) == ["hog uses 50% of a core."]


def test_a_loaded_machine_is_refused_and_nothing_is_started(monkeypatch, capsys):
    monkeypatch.setattr(machine, "look", lambda: ["hog uses 50% of a core."])
    monkeypatch.setattr(gateway, "run", lambda *_: pytest.fail("it ran"))
    assert gateway.main(["--short"]) == 2
    assert "hog uses 50%" in capsys.readouterr().err


def test_processes_are_told_apart_by_their_command_line():
    assert service.role(["python", "-m", "noria", "process", "worker", "--slot", "0", "--workers", "1"]) == "worker"
    assert service.role(["python", "-m", "noria", "process", "keeper", "--config", "x"]) == "keeper"
    assert service.role(["python", "-m", "noria", "up"]) == "supervisor"
    assert service.role(["llama"]) == "other"


# -- the load generator, against right and wrong answers -------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    tools.build(folder)
    return folder


@pytest.fixture
def mock(built):
    with tools.upstream(built) as port:
        yield port


def fire(built, port, cell, path="/v1/chat/completions", **how):
    target = Target("direct", port, path=path)
    return tools.Load(built).fire(port, target.request(cell), tools.Ask(cell.connections, tokens=cell.tokens, **how))


def mark(number):
    i = number - 1
    return f" word~{chr(97 + i // 676 % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}"


def frame(text):
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n"


@contextmanager
def answering(body, status=200, kind="text/event-stream"):
    """A server that answers everything with one body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


DONE = "data: [DONE]\n\n"
STREAMS = {
    "right": ([1, 2, 3], DONE, {"ok": 1, "tokens": 3}),
    "lost": ([1, 3], DONE, {"ok": 0, "tokens_lost": 1, "bad_stream": 1}),
    "lost at the end": ([1, 2], DONE, {"ok": 0, "tokens_lost": 1}),
    "reordered": ([2, 1, 3], DONE, {"ok": 0, "tokens_disordered": 1}),
    "doubled": ([1, 2, 2, 3], DONE, {"ok": 0, "tokens_disordered": 1}),
    "without its end": ([1, 2, 3], "", {"ok": 0, "not_done": 1, "bad_stream": 1}),
    "ended twice": ([1, 2, 3], DONE * 2, {"ok": 0, "not_done": 1}),
}


@needs_compiler
@pytest.mark.parametrize("how", STREAMS)
def test_a_stream_is_judged_by_its_tokens_and_its_end(built, how):
    tokens, end, expected = STREAMS[how]
    with answering("".join(frame(mark(n)) for n in tokens) + end) as port:
        told, _ = fire(built, port, Cell("s", "m", 1, stream=True, tokens=3), requests=1)
    assert {k: told[k] for k in expected} == expected, told


@needs_compiler
def test_a_token_may_be_cut_by_frames_and_a_frame_may_hold_several(built):
    text = "".join(mark(n) for n in range(1, 31))
    cut = "".join(frame(text[i : i + 7]) for i in range(0, len(text), 7))
    for body in (cut + DONE, frame(text) + DONE):
        with answering(body) as port:
            told, _ = fire(built, port, Cell("s", "m", 1, stream=True, tokens=30), requests=1)
        assert (told["ok"], told["tokens"], told["tokens_lost"], told["tokens_disordered"]) == (1, 30, 0, 0)


@needs_compiler
def test_a_refusal_is_counted_and_its_first_text_told(built):
    with answering('{"error": "no"}', status=429, kind="application/json") as port:
        told, samples = fire(built, port, Cell("w", "m", 1), requests=2)
    assert (told["sent"], told["ok"], told["bad_status"], samples) == (2, 0, 2, b"")
    assert told["first_bad"].startswith("429 ")


@needs_compiler
@pytest.mark.parametrize("body", [0, 100_000, 3_000_000])
def test_bodies_of_every_size_reach_the_mock_whole(built, mock, body):
    told, samples = fire(built, mock, Cell("b", "mock", 2, body=body), requests=6)
    assert (told["sent"], told["ok"], len(samples)) == (6, 6, 6 * 16)
    assert tools.told_by(mock)["requests"] == 6


@needs_compiler
def test_a_request_has_the_size_that_was_asked_for():
    data = Target("direct", 1).request(Cell("b", "mock", 1, body=100_000))
    assert len(data.partition(b"\r\n\r\n")[2]) == pytest.approx(100_000, rel=0.01)


@needs_compiler
def test_a_paced_stream_keeps_its_pace_and_its_time_to_the_first_token(built, mock):
    cell = Cell("p", "mock-l20-g5000-t10", 4, stream=True, tokens=10)
    told, samples = fire(built, mock, cell, requests=8)
    assert (told["ok"], told["tokens"]) == (8, 80)
    last, first = figures.read_samples(samples)
    assert first[0] >= 24e6, "20 ms, then 5 ms after the frame that holds the role"
    assert last[0] >= 20e6 + 10 * 5e6


@needs_compiler
def test_arrivals_of_an_open_loop_do_not_wait_for_answers(built, mock):
    """One connection and answers of 50 ms: what finds it busy waits, and its latency counts from when it was due."""
    told, samples = fire(built, mock, Cell("o", "mock-l50", 1), rate=200.0, seconds=0.5)
    last, _ = figures.read_samples(samples)
    assert told["queued_most"] > 20, "at 200 a second some 100 fall due, and 10 can be answered"
    assert last[-1] > 200e6


@needs_compiler
def test_the_mock_tells_when_a_client_left_in_mid_stream(built, mock):
    cell = Cell("leave", "mock-g5000-t200", 1, stream=True, tokens=200)
    left = tools.leave(mock, Target("direct", mock).request(cell), 2)
    end = time.monotonic() + 5
    while not (cancelled := tools.told_by(mock)["cancelled"]) and time.monotonic() < end:
        time.sleep(0.005)
    assert len(cancelled) == 1
    assert cancelled[0] >= left
    fire(built, mock, Cell("w", "mock", 1), requests=1)
    assert len(tools.told_by(mock)["cancelled"]) == 1, "an orderly end is no cancelling"


@needs_compiler
def test_the_mock_can_be_reached_by_tls(built, mock, tmp_path):
    import ssl
    import urllib.request

    with tools.behind_tls(tmp_path, mock) as (port, certificate):
        context = ssl.create_default_context(cafile=str(certificate))
        body = json.dumps({"model": "mock-t3", "stream": True}).encode()
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/v1/chat/completions", body, context=context, timeout=10) as told:
            assert told.read().endswith(b"data: [DONE]\n\n")


# -- configurations, peers, forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", modes.MODES)
def test_every_mode_is_a_valid_configuration_and_has_what_its_name_says(mode, tmp_path):
    from noria.settings import load

    modes.write(tmp_path, mode, {"mock": ("http://127.0.0.1:9/v1", "mock")})
    settings = load(tmp_path / "noria.yaml").settings
    app, model = settings.apps["mock"], settings.models["mock"]
    assert app.record_bodies == bool(model.price) == bool(settings.budgets) == bool(settings.limits) == (mode != "plain")
    assert (app.guard == "all") == (mode == "guarded")


def test_the_price_of_an_answer_is_that_of_its_tokens():
    assert modes.nanousd(64) == 152_000


def test_an_unknown_peer_or_mode_is_refused_before_anything_starts(monkeypatch, capsys):
    monkeypatch.setattr(gateway, "run", lambda *_: pytest.fail("it ran"))
    assert gateway.main(["--peers", "nginz"]) == 1
    assert "no peer 'nginz'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gateway.main(["--modes", "plan"])


def test_a_short_run_needs_no_peer_but_nginx_and_a_full_one_takes_what_is_installed(monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {n: peers.Peer(n, lambda n=n: n if n != "b" else None, lambda _: []) for n in "abc"})
    assert gateway.arguments(["--short"]).peers == ["nginx"]
    assert gateway.arguments([]).peers == ["a", "c"]
    assert gateway.arguments(["--peers", ""]).peers == []


@pytest.mark.parametrize("name", peers.PEERS)
def test_every_peer_has_a_configuration_and_a_command(name, tmp_path, monkeypatch):
    place = peers.Place(tmp_path, 8001, 9001, ("mock", "mock-g1000"))
    argv = peers.PEERS[name].argv(place)
    told = " ".join(argv) + "".join(p.read_text() for p in tmp_path.iterdir()) + " ".join(peers.PEERS[name].headers(place))
    assert "8001" in told
    assert "9001" in told


def good():
    measured = {
        "part": "calls",
        "cell": "whole-32",
        "target": "plain",
        "round": 1,
        "sent": 5,
        "ok": 5,
        "recorded": 5,
        "first_bad": "",
    }
    records = {"governed": {"sent": 5, "recorded": 5, "priced": 5, "nanousd": 7, "expected_nanousd": 7}}
    targets = [{"name": "plain", "kind": "noria"}, {"name": "nginx", "kind": "peer"}]
    return {"targets": targets, "rounds": [measured], "records": records}


def test_a_result_with_a_failed_an_unrecorded_or_an_unpriced_request_is_invalid():
    assert gateway.wrong(good()) == []
    for change, said in (({"ok": 4}, "4 of 5"), ({"recorded": 4}, "4 recorded")):
        result = good()
        result["rounds"][0] |= change
        assert said in gateway.wrong(result)[0]
    for change, said in (({"recorded": 4}, "4 exchanges"), ({"priced": 4}, "4 exchanges are priced"), ({"nanousd": 1}, "cost")):
        result = good()
        result["records"]["governed"] |= change
        assert any(said in line for line in gateway.wrong(result)), change


def test_a_peer_that_fails_is_told_and_does_not_make_the_result_invalid():
    result = good()
    result["rounds"].append(result["rounds"][0] | {"target": "nginx", "ok": 0, "first_bad": "502 x"})
    del result["rounds"][1]["recorded"]
    assert gateway.wrong(result) == []
    assert "502 x" in gateway.weak(result)[0]


# -- the whole, in little --------------------------------------------------------------------------------------------


@needs_compiler
def test_a_tiny_run_measures_every_mode_records_every_request_and_becomes_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "look", lambda: ["this is a <test>"])
    tiny = gateway.Form(1, 0.1, (gateway.WHOLE, gateway.TLS[1]), 0.1, 1, 2, 1, 0.1, 1, 5)
    monkeypatch.setitem(gateway.FORMS, "smoke", tiny)
    out = tmp_path / "result.json"
    argv = ["--smoke", "--even-if-loaded", "--no-pin", "--peers", "", "--modes", "governed", "--out", str(out)]
    assert gateway.main(argv) == 0, capsys.readouterr().err
    result = json.loads(out.read_text())
    assert (result["format"], result["loaded"], result["invalid"]) == (2, True, [])
    assert {r["target"] for r in result["rounds"]} == {"direct", "governed"}
    assert {r["part"] for r in result["rounds"]} == {"memory", "calls", "half", "streams", "leave"}
    for r in result["rounds"]:
        if r["target"] != "direct" and r["part"] in ("calls", "half", "streams"):
            assert r["recorded"] == r["sent"] == r["ok"] > 0
            assert r["cpu_ms_per_request"] > 0
    assert result["records"]["governed"]["priced"] > 0
    assert "THE MACHINE WAS LOADED" in capsys.readouterr().out
    assert report.main([str(out)]) == 0
    page = out.with_suffix(".html").read_text()
    assert "this is a &lt;test&gt;" in page
    assert page.count("<svg") == 3, "the cell of the fourth was not measured"
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page, "nothing is fetched"  # noqa: PT018


def test_a_page_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"format": 1}')
    assert report.main([str(tmp_path / "x.json")]) == 1
    assert "format 2" in capsys.readouterr().err
