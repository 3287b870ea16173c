"""Out of the box, Noria answers this machine alone, its operator alone manages it, and secrets stay where they are."""

from __future__ import annotations

import json
import time
from urllib.parse import parse_qs, urlsplit

import pytest

UPSTREAM_SECRET = "sk-upstream-0123456789abcdefghijkl"
PERSON = "jane.q.public@person.example"


@pytest.fixture(scope="module")
def noria(serve_once, caller):
    """A service without keys. Tests must not make one: it would change what the others see."""
    return caller(serve_once())


@pytest.fixture(scope="module")
def keyed(serve_once, caller, upstream):
    """A service with a key, and an upstream that has a secret too."""
    model = {"provider": "openai_compatible", "url": upstream.url, "key": "env:UPSTREAM_SECRET"}
    config = {
        "models": {"ok": model | {"model": "ok"}, "bad": model | {"model": "status-401"}},
        "apps": {"ok": {"model": "ok"}, "bad": {"model": "bad"}},
    }
    made = caller(serve_once(json.dumps(config), env={"UPSTREAM_SECRET": UPSTREAM_SECRET}))
    made.key = made.new_key(name="first")
    return made


def code_of(noria) -> str:
    line = next(line for line in noria.service.lines if "this link works once" in line)
    return parse_qs(urlsplit(line.split()[-1]).query)["code"][0]


# -- names and pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/api/status", "/", "/metrics", "/internal/snapshot"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:{port}", "localhost.evil.example", "169.254.169.254"])
def test_a_foreign_host_is_refused_everywhere(noria, path, host) -> None:
    """A page that rebinds its name to 127.0.0.1 still sends its own name."""
    host = host.format(port=urlsplit(noria.service.url).port)
    answer = noria.send("GET", path, headers={"host": host, "authorization": f"Bearer {noria.token}"})
    answer.refuses(403, "foreign_host")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost", "file://"])
def test_a_foreign_origin_is_refused(noria, origin) -> None:
    noria.chat("echo", headers={"origin": origin}).refuses(403, "foreign_host")


def test_the_same_origin_is_served(noria) -> None:
    assert noria.chat("echo", headers={"origin": noria.service.url}).status == 200
    port = urlsplit(noria.service.url).port
    named = {"host": f"localhost:{port}", "origin": f"http://localhost:{port}"}
    assert noria.chat("echo", headers=named).status == 200


def test_the_answer_allows_no_other_origin(noria) -> None:
    answer = noria.chat("echo", headers={"origin": noria.service.url})
    assert not [h for h in answer.headers if h.startswith("access-control")]


# -- the operator ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/status"), ("GET", "/api/traces"), ("GET", "/api/keys"), ("POST", "/api/keys"), ("GET", "/api/nothing"),
     ("GET", "/%61pi/status"), ("GET", "/api/traces/live")],
)  # fmt: skip
def test_management_needs_the_operator(noria, method, path) -> None:
    for headers in ({}, {"authorization": "Bearer na-wrong"}, {"cookie": "noria_session=v1.99999999999999999999.00"}):
        answer = noria.send(method, path, b"{}" if method == "POST" else None, headers)
        answer.refuses(401, "admin_required")


def test_the_admin_token_opens_management(noria) -> None:
    status = noria.api("GET", "/api/status")
    assert status.status == 200
    assert [a["name"] for a in status.json["apps"]] == ["echo"]
    assert status.json["keys_required"] is False


def test_the_admin_token_is_for_its_owner_alone(noria) -> None:
    home = noria.service.home
    assert (home / "admin.token").stat().st_mode & 0o777 == 0o600
    assert (home / "run" / "keeper.sock").stat().st_mode & 0o777 == 0o600
    assert (home / "records.db").stat().st_mode & 0o777 == 0o600


def test_a_login_link_works_once_and_its_session_opens_management(noria) -> None:
    code = code_of(noria)
    first = noria.send("GET", f"/login?code={code}")
    assert (first.status, first.headers["location"]) == (303, "/")
    cookie = first.headers["set-cookie"]
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    session = {"cookie": cookie.split(";")[0]}
    assert noria.send("GET", "/api/status", headers=session).status == 200
    again = noria.send("GET", f"/login?code={code}")
    assert (again.status, again.headers["location"]) == (303, "/login?used=1")
    assert "set-cookie" not in again.headers


def test_the_admin_token_can_be_exchanged_for_a_session(noria) -> None:
    noria.send("POST", "/api/login", {"token": "na-wrong"}).refuses(401, "invalid_token")
    answer = noria.send("POST", "/api/login", {"token": noria.token})
    assert answer.status == 200
    session = {"cookie": answer.headers["set-cookie"].split(";")[0]}
    assert noria.send("GET", "/api/status", headers=session).status == 200


@pytest.mark.parametrize(
    "path", ["/internal/snapshot", "/%69nternal/snapshot", "/internal/../internal/snapshot", "/internal/x"]
)
@pytest.mark.parametrize("relayed", [None, "0", ""])
def test_internal_calls_are_unreachable_from_the_network(noria, path, relayed) -> None:
    headers = {"authorization": f"Bearer {noria.token}"} | ({"x-noria-relayed": relayed} if relayed is not None else {})
    answer = noria.send("GET", path, headers=headers)
    assert answer.status == 404, answer.body
    assert b"subject_key" not in answer.body


def test_internal_posts_are_unreachable_too(noria) -> None:
    for path in ("/internal/login-code", "/internal/take", "//internal/login-code"):
        answer = noria.send("POST", path, b"", {"authorization": f"Bearer {noria.token}"})
        assert answer.status in (404, 405), (path, answer.body)


# -- keys -----------------------------------------------------------------------------------------------


def test_without_keys_this_machine_is_served_and_told_so_in_one_line(noria) -> None:
    assert noria.chat("echo").status == 200
    said = [line for line in noria.service.lines if "No API key is configured" in line]
    assert len(said) == 1
    assert "this machine only" in said[0]


def test_a_key_that_nobody_made_does_not_disturb_a_keyless_service(noria) -> None:
    """SDKs insist on a key; any will do while none is configured."""
    assert noria.chat("echo", headers={"authorization": "Bearer sk-anything"}).status == 200


def test_the_first_key_makes_keys_mandatory_within_a_second(serve, caller) -> None:
    service = serve()
    open_ = caller(service)
    assert open_.chat("echo").status == 200
    made = service.json("keys", "create", "--app", "echo")
    end = time.monotonic() + 1
    while open_.chat("echo").status == 200:
        assert time.monotonic() < end
    open_.chat("echo").refuses(401, "missing_api_key")
    assert caller(service, made["key"]).chat("echo").status == 200
    assert open_.api("GET", "/api/status").json["keys_required"] is True


def test_an_address_beyond_this_machine_makes_keys_mandatory(serve_once, caller) -> None:
    config = {
        "models": {"fake": {"provider": "scripted", "model": "fake"}},
        "apps": {"echo": {"model": "fake"}},
        "serve": {"host": "0.0.0.0", "hosts": ["noria.example"]},
    }
    noria = caller(serve_once(json.dumps(config)))
    noria.chat("echo").refuses(401, "missing_api_key")
    noria.chat("echo", headers={"host": "other.example"}).refuses(403, "foreign_host")
    key = noria.new_key()
    assert noria.chat("echo", headers={"host": "noria.example", "authorization": f"Bearer {key}"}).status == 200
    end = time.monotonic() + 5
    while not any("API keys are required" in line for line in noria.service.lines):
        assert time.monotonic() < end, noria.service.lines
        time.sleep(0.02)


def test_app_keys_never_open_management(keyed) -> None:
    for name, value in (
        ("authorization", f"Bearer {keyed.key}"),
        ("x-api-key", keyed.key),
        ("cookie", f"noria_session={keyed.key}"),
    ):
        keyed.send("GET", "/api/keys", headers={name: value}).refuses(401, "admin_required")


def test_the_admin_token_is_no_app_key(keyed) -> None:
    keyed.chat("ok", headers={"authorization": f"Bearer {keyed.token}"}).refuses(401, "invalid_api_key")


def test_a_console_session_may_ask_but_not_from_another_site(keyed) -> None:
    session = keyed.send("POST", "/api/login", {"token": keyed.token}).headers["set-cookie"].split(";")[0]
    body = {"model": "ok", "messages": [{"role": "user", "content": "hi"}]}
    ask = lambda site: keyed.send("POST", "/v1/chat/completions", body, {"cookie": session, "sec-fetch-site": site})  # noqa: E731  two calls
    assert ask("same-origin").status == 200
    ask("cross-site").refuses(401, "missing_api_key")


def test_no_secret_is_on_disk_in_logs_or_in_answers(keyed, upstream) -> None:
    """Raw keys, the upstream's secret and the caller's user are looked for in every byte under NORIA_HOME."""
    answers = [
        keyed.chat("ok", user=PERSON),
        keyed.chat("ok", user=PERSON, stream=True),
        keyed.chat("ok", safety_identifier=PERSON, user=PERSON),
        keyed.chat("bad", user=PERSON),
        keyed.post("/v1/chat/completions", {"model": "ok", "user": PERSON, "messages": 1}),
        keyed.chat("nothing", user=PERSON),
    ]
    assert [a.status for a in answers] == [200, 200, 200, 502, 400, 404]
    assert f"Bearer {UPSTREAM_SECRET}" in upstream.seen[-1]["headers"]["authorization"], "the upstream does get its key"
    traces = [keyed.trace(a.id) for a in answers]
    assert traces[0]["row"]["subject"] == traces[1]["row"]["subject"] != ""
    assert traces[0]["request"]["user"] == traces[0]["row"]["subject"]
    session = keyed.send("POST", "/api/login", {"token": keyed.token}).headers["set-cookie"].split(";")[0].partition("=")[2]
    keyed.send("GET", "/api/status", headers={"cookie": f"noria_session={session}"})
    secrets = {"key": keyed.key, "upstream": UPSTREAM_SECRET, "user": PERSON, "session": session, "admin": keyed.token}
    shown = json.dumps([traces, keyed.api("GET", "/api/keys").json, keyed.api("GET", "/api/status").json])
    shown += "\n".join(keyed.service.lines) + "".join(a.body.decode() + json.dumps(a.headers) for a in answers)
    assert [name for name, text in secrets.items() if text in shown] == []
    assert leaks(keyed.service.home, secrets) == []


def leaks(home, secrets):
    files = [p for p in home.rglob("*") if p.is_file() and p.name != "admin.token"]
    assert len(files) > 5
    return [(p, what) for p in files for data in (p.read_bytes(),) for what, text in secrets.items() if text.encode() in data]
