"""The serving benchmark: its arithmetic, what it takes for a whole answer, its refusal."""

from __future__ import annotations

import json

import pytest

import machine
import serving
from tools import Failed


def row(number, target, pace, cpu, texts=("a",)):
    return {
        "round": number, "cell": "whole-1", "target": target, "tokens_per_s": pace, "cpu_ms_per_token": cpu, "texts": list(texts)
    }  # fmt: skip


def test_shares_are_taken_within_a_round_of_the_faster_floor():
    rows = [
        row(1, "noria", 90.0, 20.0), row(1, "bare", 100.0, 19.0), row(1, "spinning", 50.0, 30.0),
        row(2, "noria", 45.0, 22.0, ["b"]), row(2, "bare", 30.0, 19.8), row(2, "spinning", 50.0, 30.0),
        row(3, "noria", 99.0, 20.0), row(3, "bare", 100.0, 19.0), row(3, "spinning", 90.0, 30.0),
    ]  # fmt: skip
    (told,) = serving.summary(rows)
    assert (told["ratio"], told["ratio_least"], told["ratio_most"]) == (0.9, 0.9, 0.99)
    assert told["cpu_ratio"] == pytest.approx(0.95)
    assert told["same_texts"] == pytest.approx(2 / 3)
    assert told["noria tokens_per_s"] == 90.0


def stream(*frames):
    return b"".join(b"data: " + (f if isinstance(f, bytes) else json.dumps(f).encode()) + b"\n\n" for f in frames)


def test_a_stream_counts_by_its_usage_and_only_whole():
    said = [{"choices": [{"delta": {"content": part}}]} for part in ("Hel", "lo")]
    usage = {"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens": 9}}
    assert serving.streamed(stream(*said, usage, b"[DONE]")).text == "Hello"
    assert serving.streamed(b": keep-alive\n\n" + stream(*said, usage, b"[DONE]")).usage == usage["usage"]
    with pytest.raises(Failed, match="no end"):
        serving.streamed(stream(*said, usage))
    with pytest.raises(Failed, match="no usage"):
        serving.streamed(stream(*said, b"[DONE]"))


def test_it_refuses_a_loaded_machine(monkeypatch, capsys):
    monkeypatch.setattr(machine, "look", lambda: ["Somebody compiles."])
    assert serving.main([]) == 2
    assert "Somebody compiles." in capsys.readouterr().err


def test_everything_is_on():
    text = serving.config()
    for part in ("budgets:", "limits:", "price:", "pii", "secrets", "denylist", "prompt: desk", "guard: all"):
        assert part in text
    assert "record_bodies: false" not in text
