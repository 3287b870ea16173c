"""The gateway benchmark: its arithmetic, its refusals, and one tiny run of the whole."""

from __future__ import annotations

import json
import os
import struct
import time

import pytest

import figures
import gateway
import machine
import service

STAT = "{pid} ({name}) S {parent} 1 1 0 -1 4194560 900 0 3 0 {user} {system} {cuser} {csystem} 20 0 3 0 5000 1 2"


def stat(pid=10, parent=1, name="noria", user=0, system=0, cuser=0, csystem=0):
    return machine.parse_stat(
        STAT.format(pid=pid, name=name, parent=parent, user=user, system=system, cuser=cuser, csystem=csystem)
    )


def cell(mode, number, rps, p50, **more):
    return {"mode": mode, "shape": "whole", "connections": 32, "round": number, "rps": rps, "p50_ms": p50, **more}


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


def test_unknown_figures_stay_unknown():
    assert figures.median([None, 3.0, None, 1.0]) == 2.0
    assert figures.median([None]) is None
    assert figures.ratio(1.0, None) is figures.ratio(None, 1.0) is figures.ratio(1.0, 0) is None
    assert figures.difference(None, 1.0) is None
    assert figures.spread("ttft", [])["ttft_p50_ms"] is None


def test_comparisons_are_paired_by_round_before_the_median_is_taken():
    rounds = [
        cell("direct", 1, 1000, 1.0), cell("plain", 1, 100, 2.0, cpu_ms_per_request=0.2),
        cell("direct", 2, 100, 10.0), cell("plain", 2, 50, 12.0, cpu_ms_per_request=0.4),
        cell("direct", 3, 1000, 1.0), cell("plain", 3, 200, 1.5, cpu_ms_per_request=0.3),
    ]  # fmt: skip
    direct, plain = figures.summary(rounds, "direct", ("rps", "p50_ms", "cpu_ms_per_request"))
    assert (direct["rps_ratio"], direct["added_p50_ms"], direct["cpu_ms_per_request"]) == (1.0, 0.0, None)
    assert plain["rps_ratio"] == 0.2, "the median of 0.1, 0.5, 0.2; not 100 / 1000"
    assert plain["added_p50_ms"] == 1.0, "the median of 1, 2, 0.5"
    assert plain["cpu_ms_per_request_range"] == [0.2, 0.4]
    assert plain["rounds"] == 3


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


def test_a_result_with_a_failed_or_an_unrecorded_request_is_wrong():
    good = {"mode": "plain", "shape": "whole", "connections": 1, "round": 1, "sent": 5, "ok": 5}
    right = {"rounds": [good], "services": {"plain": {"sent": 5, "recorded": 5}}}
    assert gateway.wrong(right) == []
    assert "4 of 5" in gateway.wrong(right | {"rounds": [good | {"ok": 4}]})[0]
    assert "4 exchanges" in gateway.wrong(right | {"services": {"plain": {"sent": 5, "recorded": 4}}})[0]


def test_a_tiny_run_measures_every_mode_and_records_every_request(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "look", lambda: ["this is a test"])
    monkeypatch.setattr(gateway, "SHORT_CELLS", (gateway.Cell("whole", 4, 50), gateway.Cell("stream", 4, 50)))
    monkeypatch.setattr(gateway, "REST_S", 0.1)
    out = tmp_path / "result.json"
    assert (
        gateway.main(["--short", "--force", "--python", "--no-pin", "--rounds", "1", "--requests", "50", "--out", str(out)])
        == 0
    )
    result = json.loads(out.read_text())
    assert (result["loaded"], result["tools"]) == (True, "Python")
    assert {(m["mode"], m["shape"]) for m in result["rounds"]} == {
        (mode, shape) for mode in ("direct", "plain", "full") for shape in ("whole", "stream")
    }
    for m in result["rounds"]:
        assert (m["sent"], m["ok"]) == (50, 50)
        if m["mode"] != "full":
            assert m["frames"] == (50 * 66 if m["shape"] == "stream" else 0)
        if m["mode"] != "direct":
            assert m["recorded"] == 50
            assert m["cpu_ms_per_request"] > 0
    assert all(s["recorded"] == s["sent"] for s in result["services"].values())
    assert {p["role"] for p in result["services"]["full"]["memory"]} == {"supervisor", "keeper", "worker"}
    printed = capsys.readouterr().out
    assert "| stream | 4 | full |" in printed
    assert "THE MACHINE WAS LOADED" in printed
