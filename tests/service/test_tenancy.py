"""Organisations, teams, users and their keys, over two workers: in force within a second, and through an outage."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

SOON = 1.0
"""Seconds within which a change is in force everywhere."""


@pytest.fixture(scope="module")
def config(mirror):
    model = {"provider": "openai_compatible", "url": mirror.url, "model": "echo", "price": {"input": 1, "output": 1}}
    guards = {
        "strict": [{"denylist": {"terms": ["tulip"], "action": "block", "on": "both"}}],
        "veil": [{"pii": {"action": "mask", "on": "input"}}],
        "base": [{"denylist": {"terms": ["orchid"], "action": "block"}}],
    }
    apps = {"echo": {"model": "echo"}, "guarded": {"model": "echo", "guard": "base"}}
    return json.dumps({"models": {"echo": model}, "guards": guards, "apps": apps, "serve": {"keys_required": "always"}})


@pytest.fixture(scope="module")
def noria(serve_once, caller, config):
    """Two workers; acme has the team search, and ann is in it."""
    made = caller(serve_once(config, "--workers", "2"))
    for path, body in (
        ("/api/orgs", {"name": "acme"}),
        ("/api/teams", {"name": "search", "org": "acme"}),
        ("/api/users", {"name": "ann", "org": "acme", "teams": ["search"]}),
    ):
        assert made.api("POST", path, body).status == 201
    return made


def with_key(noria, caller, **what):
    return caller(noria.service, noria.new_key(**what))


def key_id(noria, name: str) -> str:
    return next(k["id"] for k in noria.api("GET", "/api/keys").json if k["name"] == name)


def everywhere(ask, want, within: float = SOON) -> float:
    """Ask until each of 12 connections in a row (over both workers) says `want`; seconds until the last other answer."""
    began, last = time.monotonic(), 0.0
    run = 0
    while run < 12:
        if ask() == want:
            run += 1
        else:
            run, last = 0, time.monotonic() - began
            assert last < within, f"still not {want} after {last:.2f} s"
    return last


def test_an_exchange_is_recorded_under_all_that_its_key_belongs_to(noria, caller) -> None:
    client = with_key(noria, caller, user="ann", tags={"env": "prod"}, metadata={"ticket": "7"})
    answer = client.chat("echo", headers={"x-noria-tags": "feature=search, env=test"})
    assert answer.status == 200
    row = noria.row(answer.id)
    assert (row["org"], row["team"], row["user"]) == ("acme", "search", "ann")
    assert row["tags"] == {"env": "prod", "feature": "search"}, "a key's own tags cannot be overridden"
    assert "env is set by the API key" in row["warnings"][0]


@pytest.mark.parametrize("tags", ["", "env", "a b=c", "a=" + "x" * 65, ",".join(f"t{i}=x" for i in range(17))])
def test_tags_out_of_bounds_are_refused_and_recorded(noria, caller, tags) -> None:
    client = with_key(noria, caller)
    answer = client.chat("echo", headers={"x-noria-tags": tags})
    answer.refuses(400, "invalid_tags", param="x-noria-tags")
    assert noria.row(answer.id)["outcome"] == "refused"


def test_a_revoked_key_is_401_at_every_worker_within_a_second(noria, caller) -> None:
    client = with_key(noria, caller, name="doomed")
    assert client.chat("echo").status == 200
    assert noria.api("DELETE", f"/api/keys/{key_id(noria, 'doomed')}").status == 204
    everywhere(lambda: client.chat("echo").status, 401)


def test_a_disabled_key_says_so_and_works_again_when_enabled(noria, caller) -> None:
    client = with_key(noria, caller, name="paused")
    known = key_id(noria, "paused")
    assert noria.api("PATCH", f"/api/keys/{known}", {"disabled": True}).json["state"] == "disabled"
    everywhere(lambda: client.chat("echo").status, 401)
    client.chat("echo").refuses(401, "key_disabled")
    noria.api("PATCH", f"/api/keys/{known}", {"disabled": False})
    everywhere(lambda: client.chat("echo").status, 200)


def test_both_texts_of_a_rotated_key_work_and_count_as_one_key(noria, caller) -> None:
    old = with_key(noria, caller, name="turning")
    known = key_id(noria, "turning")
    made = noria.api("POST", f"/api/keys/{known}/rotate", {"overlap": "1h"}).json
    new = caller(noria.service, made["key"])
    everywhere(lambda: new.chat("echo").status, 200)
    first, second = old.chat("echo"), new.chat("echo")
    assert (first.status, second.status) == (200, 200)
    assert {noria.row(a.id)["key"] for a in (first, second)} == {known}
    noria.api("POST", f"/api/keys/{known}/rotate", {"overlap": 0})
    everywhere(lambda: (old.chat("echo").status, new.chat("echo").status), (401, 401))


def test_an_overlap_ends_by_itself(noria, caller) -> None:
    old = with_key(noria, caller, name="short")
    made = noria.api("POST", f"/api/keys/{key_id(noria, 'short')}/rotate", {"overlap": 1.5}).json
    new = caller(noria.service, made["key"])
    everywhere(lambda: new.chat("echo").status, 200)
    everywhere(lambda: old.chat("echo").status, 401, within=2.5)
    assert new.chat("echo").status == 200


def test_a_key_calls_its_endpoints_only(noria, caller) -> None:
    what = {"endpoints": ["/v1/chat/*"], "apps": ["echo"]}
    text = noria.api("POST", "/api/keys", what).json["key"]
    client = caller(noria.service, text)
    everywhere(lambda: client.chat("echo").status, 200)
    client.chat("guarded").refuses(403, "model_not_allowed", param="model")
    error = client.post("/v1/completions", {"model": "echo", "prompt": "x"}).refuses(403, "endpoint_not_allowed")
    assert "/v1/chat/*" in error["message"]
    listing = client.send("GET", "/v1/models", headers={"authorization": f"Bearer {text}"})
    listing.refuses(403, "endpoint_not_allowed")


def test_a_keys_guard_acts_besides_the_releases_both_ways(noria, caller, mirror) -> None:
    plain, strict = with_key(noria, caller), with_key(noria, caller, guard="strict")
    for stream in (False, True):
        assert plain.chat("echo", "a tulip", stream=stream).status == 200
        assert strict.chat("echo", "a rose", stream=stream).status == 200
        strict.chat("echo", "a tulip", stream=stream).refuses(400, "content_filter")
        strict.chat("guarded", "an orchid", stream=stream).refuses(400, "content_filter")
        strict.chat("guarded", "a tulip", stream=stream).refuses(400, "content_filter")
        plain.chat("guarded", "an orchid", stream=stream).refuses(400, "content_filter")
        assert plain.chat("guarded", "a tulip", stream=stream).status == 200
    veil = with_key(noria, caller, guard="veil")
    answer = veil.chat("echo", "write to ann@example.com")
    assert answer.text() == "write to ann@example.com", "restored on the way out"
    assert "ann@example.com" not in json.dumps(mirror.last)
    checks = {r["verdict"]["check"] for r in noria.row(strict.chat("guarded", "a rose").id)["rulings"]}
    assert checks == {"denylist"}


def test_names_are_validated_found_and_taken_once(noria) -> None:
    noria.api("POST", "/api/orgs", {"name": "acme"}).refuses(409, "org_exists", param="name")
    noria.api("POST", "/api/teams", {"name": "x", "org": "acne"}).refuses(404, "org_not_found", param="org")
    noria.api("POST", "/api/keys", {"team": "serch"}).refuses(404, "team_not_found", param="team")
    noria.api("POST", "/api/users", {"name": "a b"}).refuses(400, "invalid_name", param="name")


def test_a_team_with_live_keys_goes_only_by_cascade_and_takes_them_along(noria, caller) -> None:
    noria.service.cli("teams", "add", "fleeting", "--org", "acme")
    client = with_key(noria, caller, team="fleeting")
    noria.api("DELETE", "/api/teams/fleeting").refuses(409, "keys_exist")
    assert client.chat("echo").status == 200
    gone = noria.service.json("teams", "remove", "fleeting", "--cascade")
    assert len(gone["revoked"]) == 1
    everywhere(lambda: client.chat("echo").status, 401)


def test_the_command_line_does_all_of_it(noria, caller) -> None:
    s = noria.service
    s.cli("orgs", "add", "globex", "--title", "Globex Inc.")
    s.cli("teams", "add", "ops", "--org", "globex")
    s.cli("teams", "add", "lab", "--org", "globex")
    s.cli("users", "add", "hank", "--org", "globex", "--team", "ops", "--team", "lab")
    done = s.cli("keys", "create", "--user", "hank", check=False)
    assert done.returncode == 1
    assert "Say for which team" in done.stderr
    made = s.json(
        "keys", "create", "--user", "hank", "--team", "ops", "--endpoint", "/v1/*", "--tag", "env=x", "--expires", "12h"
    )
    assert (made["org"], made["team"], made["user"], made["tags"]) == ("globex", "ops", "hank", {"env": "x"})
    assert s.json("keys", "update", made["id"], "--rpm", "5", "--disable")["state"] == "disabled"
    assert s.json("keys", "update", made["id"], "--clear", "rpm", "--clear", "expires", "--enable")["expires_ns"] is None
    assert s.json("keys", "show", made["id"])["rpm"] is None
    assert s.json("keys", "rotate", made["id"], "--overlap", "1h")["key"] != made["key"]
    assert "old text until" in s.cli("keys", "show", made["id"]).stdout
    assert s.cli("users", "update", "hank", "--remove-team", "ops", check=False).returncode == 1
    s.cli("users", "update", "hank", "--remove-team", "ops", "--cascade")
    assert next(u for u in s.json("users", "list") if u["name"] == "hank")["teams"] == ["lab"]
    s.cli("orgs", "remove", "globex", "--cascade")
    assert "globex" not in [o["name"] for o in s.json("orgs", "list")]
    for command in ("orgs", "teams", "users", "keys"):
        s.cli(command, "list")
    assert s.cli("keys", "show", "nope", check=False).returncode == 1


def test_last_use_is_told_soon(noria, caller) -> None:
    client = with_key(noria, caller, name="used")
    known = key_id(noria, "used")
    assert noria.api("GET", f"/api/keys/{known}").json["last_used_ns"] is None
    before = time.time_ns()
    noria.row(client.chat("echo").id)
    assert int(noria.api("GET", f"/api/keys/{known}").json["last_used_ns"]) >= before


def test_the_text_of_a_used_key_is_nowhere_on_disk_nor_in_the_log(serve, caller, config) -> None:
    service = serve(config)
    noria = caller(service)
    noria.key = noria.new_key(name="s3")
    known = key_id(noria, "s3")
    noria.row(noria.chat("echo").id)
    noria.chat("echo", headers={"authorization": f"Bearer {noria.key}x"})
    second = noria.api("POST", f"/api/keys/{known}/rotate", {"overlap": 0}).json["key"]
    service.stop()
    texts = [noria.key.encode(), second.encode()]
    found = 0
    for path in service.home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            assert not [t for t in texts if t in data], path
            found += known.encode() in data
    assert found, "the search finds what is there"
    assert noria.key not in "\n".join(service.lines)


def test_keys_go_on_while_the_keeper_is_dead_also_in_a_new_worker(serve, caller, config) -> None:
    service = serve(config, "--workers", "2")
    noria = caller(service)
    noria.key = noria.new_key(name="through")
    keeper = service.pids()["keeper"]
    os.kill(keeper, signal.SIGSTOP)
    try:
        time.sleep(3.5)  # the workers notice
        with ThreadPoolExecutor(4) as pool:
            assert {a.status for a in pool.map(lambda _: noria.chat("echo"), range(24))} == {200}
        old = service.pids()
        for name in ("worker-0", "worker-1"):
            os.kill(old[name], signal.SIGKILL)
        end = time.monotonic() + 20
        while any(service.pids().get(n) in (None, old[n]) for n in ("worker-0", "worker-1")):
            assert time.monotonic() < end
            time.sleep(0.05)
        seen = set()
        with ThreadPoolExecutor(4) as pool:
            for answer in pool.map(lambda _: noria.chat("echo"), range(24)):
                seen.add(answer.status)
        assert seen == {200}, "never 401 for our own outage"
        stopped = service.pids().get("keeper") == keeper
        away = noria.api("GET", "/api/keys").status
        assert (stopped, away) == (True, 503), "the outage lasted all the while"
        stranger = caller(service, "nk-stranger")
        stranger.chat("echo").refuses(401, "invalid_api_key")
    finally:
        os.kill(keeper, signal.SIGCONT)


def test_revoking_the_last_key_does_not_open_the_door(serve, caller) -> None:
    service = serve()
    noria = caller(service)
    assert noria.chat("echo").status == 200
    noria.new_key(name="only")
    everywhere(lambda: noria.chat("echo").status, 401)
    assert service.cli("keys", "open", check=False).returncode == 1
    noria.api("DELETE", f"/api/keys/{key_id(noria, 'only')}")
    time.sleep(SOON)
    noria.chat("echo").refuses(401, "missing_api_key")
    assert "asks for one" in service.cli("keys", "list").stdout
    service.cli("keys", "open")
    everywhere(lambda: noria.chat("echo").status, 200)


def test_a_command_without_a_service_uses_the_configuration_of_its_folder(serve, caller, config) -> None:
    service = serve(config)
    service.stop()
    for record in (service.home).glob("records.db*"):
        record.unlink()
    made = service.json("keys", "create", "--app", "guarded", "--guard", "strict")
    assert made["guard"] == "strict"
    (service.home.parent / "noria.yaml").write_text("modles: {}")
    done = service.cli("keys", "list", check=False)
    assert done.returncode == 2
    assert "noria.yaml" in done.stderr
