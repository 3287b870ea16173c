"""The answer cache over several workers: what one has kept the other gives, also to those that come after both."""

from __future__ import annotations

import os
import signal
import time

import pytest

CONFIG = """
models:
  mirror: {provider: openai_compatible, url: "%s", model: mirror, price: {input: 1.0, output: 2.0}}
apps:
  kept: {model: mirror, cache: true}
  other: {model: mirror, cache: {scope: app}}
  alone: {model: mirror, cache: {shared_bytes: 0}}
"""


def until(what, within: float, why: str):
    end = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < end, why
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def noria(serve_once, mirror, caller):
    made = caller(serve_once(CONFIG % mirror.url, "--workers", "2"))
    return caller(made.service, made.new_key(name="ann"))


def shared(noria, app: str = "kept") -> int:
    """Answers of an app that lie in the shared cache."""
    return next(a["answers"] for a in noria.api("GET", "/api/cache").json["apps"] if a["app"] == app)


def asked_both(noria, text: str, app: str = "kept") -> dict[str, str]:
    """worker → what its first answer to `text` said of the cache; each request comes on a connection of its own."""
    first: dict[str, str] = {}
    for _ in range(4):
        for answer in [noria.chat(app, text) for _ in range(8)]:
            assert answer.status == 200
            first.setdefault(noria.row(answer.id)["worker"], answer.headers["x-noria-cache"])
        if len(first) == 2:
            return first
    raise AssertionError(f"32 connections went to {list(first)} alone")


def calls(mirror, text: str) -> int:
    return [m["messages"][-1]["content"] for m in mirror.seen].count(text)


def test_what_one_worker_has_kept_the_other_gives(noria, mirror):
    before = shared(noria)
    first = noria.chat("kept", "asked of one")
    assert first.headers["x-noria-cache"] == "miss"
    until(lambda: shared(noria) == before + 1, 5, "not written")
    assert set(asked_both(noria, "asked of one").values()) == {"hit"}
    assert calls(mirror, "asked of one") == 1
    again = noria.chat("kept", "asked of one", stream=True)
    assert (again.text(), noria.row(again.id)["cost_usd"]) == ("asked of one", 0)
    assert b'noria_cache_total{event="shared"}' in noria.send("GET", "/metrics").body


def test_another_key_and_another_app_do_not_get_it(noria, caller, mirror):
    noria.chat("kept", "mine alone")
    until(lambda: shared(noria), 5, "not written")
    bob = caller(noria.service, noria.new_key(name="bob"))
    assert bob.chat("kept", "mine alone").headers["x-noria-cache"] == "miss"
    assert noria.chat("other", "mine alone").headers["x-noria-cache"] == "miss"
    assert calls(mirror, "mine alone") == 3


def test_an_app_that_does_not_share_leaves_nothing_on_disk(noria):
    noria.chat("alone", "for this worker")
    noria.chat("kept", "written after it")
    until(lambda: shared(noria), 5, "not written")
    assert shared(noria, "alone") == 0


def test_nothing_readable_lies_on_disk(noria):
    noria.chat("kept", "a needle that nobody may find", user="ann@example.com")
    until(lambda: shared(noria), 5, "not written")
    for path in noria.service.home.glob("cache.db*"):
        data = path.read_bytes()
        assert b"needle" not in data
        assert b"ann@" not in data
        assert path.stat().st_mode & 0o077 == 0


def test_cache_control_binds_the_shared_answers_too(noria, mirror):
    text = "mind the header over there"
    noria.chat("kept", text)
    until(lambda: set(asked_both(noria, text).values()) == {"hit"}, 5, "not shared")
    before = calls(mirror, text)
    assert noria.chat("kept", text, headers={"cache-control": "no-store"}).headers["x-noria-cache"] == "bypass"
    assert noria.chat("kept", text, headers={"cache-control": "no-cache"}).headers["x-noria-cache"] == "miss"
    assert calls(mirror, text) == before + 2
    for _ in range(6):
        assert noria.chat("kept", text, headers={"cache-control": "only-if-cached"}).headers["x-noria-cache"] == "hit"


@pytest.mark.parametrize("scope", ["app", "user", "all"])
def test_a_purge_is_in_force_in_every_worker_within_a_second(noria, mirror, scope):
    text = f"to be purged by {scope}"
    noria.chat("other", text, user="ann")
    noria.chat("kept", text)
    until(lambda: shared(noria), 5, "not written")
    until(lambda: set(asked_both(noria, text, "other").values()) == {"hit"}, 5, "not shared")
    done = noria.service.json(
        "cache", "purge", *{"app": ["--app", "other"], "user": ["--user", "ann"], "all": ["--all"]}[scope]
    )
    assert done["dropped"] >= 1
    time.sleep(1.0)
    before = calls(mirror, text)
    assert "miss" in asked_both(noria, text, "other").values()
    assert calls(mirror, text) > before
    if scope == "all":
        assert noria.chat("kept", text).headers["x-noria-cache"] == "miss"
    else:
        assert shared(noria) > 0, "what it does not cover stays"


def test_a_purge_must_say_of_what(noria):
    done = noria.service.cli("cache", "purge", check=False)
    assert (done.returncode, "--all" in done.stderr) == (2, True)
    assert noria.api("DELETE", "/api/cache?app=nothing").json["dropped"] == 0
    table = noria.service.cli("cache", "show").stdout
    assert "kept" in table
    assert "In the memory of the workers" in table


def test_answers_outlive_a_rolling_replacement_and_a_kill(noria, mirror):
    """What workers with nothing in their memory give comes from the file. One lookup in three may be late on a busy machine."""
    texts = [f"older than its worker {n}" for n in range(6)]
    before = shared(noria)
    for text in texts:
        noria.chat("kept", text)
    until(lambda: shared(noria) == before + 6, 5, "not written")
    assert noria.service.json("reload")["state"] == "done"
    assert [noria.chat("kept", t).headers["x-noria-cache"] for t in texts[:3]].count("hit") >= 2
    for name, pid in noria.service.pids().items():
        if name.startswith("worker"):
            os.kill(pid, signal.SIGKILL)
    until(lambda: noria.knows(noria.key) and len(noria.api("GET", "/api/status").json["workers"]) >= 2, 20, "no workers")
    assert [noria.chat("kept", t).headers["x-noria-cache"] for t in texts[3:]].count("hit") >= 2
    assert sum(calls(mirror, t) for t in texts) <= 8


def test_a_file_that_is_damaged_or_taken_away_costs_misses_only(serve_once, mirror, caller):
    noria = caller(serve_once(CONFIG % mirror.url, "--workers", "2"))  # of its own: nothing is shared any more after it
    noria.chat("kept", "before the damage")
    until(lambda: shared(noria), 5, "not written")
    path = noria.service.home / "cache.db"
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)  # the header says whose it is, the rest is noise
    path.write_bytes(data)
    for n in range(8):
        assert noria.chat("kept", f"during the damage {n}").text() == f"during the damage {n}"
    for file in noria.service.home.glob("cache.db*"):
        file.unlink(missing_ok=True)
    assert noria.chat("kept", "after it was taken away").headers["x-noria-cache"] == "miss"
    until(lambda: shared(noria), 5, "not written into the new file")
    assert set(asked_both(noria, "after it was taken away").values()) == {"hit"}
