"""Who may call what of the management API, and the one body of its refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from noria.api.manage import build
from noria.api.permission import FAMILIES, family, needed
from noria.app.definition import Definition
from noria.app.keeper import Keeper, Stores
from noria.engines.memory import MemoryCounter, MemoryRecords
from noria.govern.access import Sessions

RELAYED = {"x-noria-relayed": "1"}


class NoTraces:
    max_batch = 100

    async def positions(self) -> list[Any]:
        return []

    async def seal(self, tenant: str, before_day: str) -> int:
        return 0

    async def drop(self, tenant: str, before_day: str) -> int:
        return 0

    async def close(self) -> None:
        return


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Any]:
    keeper = Keeper(tmp_path, Stores(MemoryRecords("memory://"), NoTraces(), MemoryCounter("memory://")), Sessions("na-token"))
    await keeper.start(Definition("s", {}))
    yield build(keeper)
    await keeper.stop()


@pytest.fixture
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://keeper") as made:
        yield made


def routes(app: Any) -> list[tuple[str, str]]:
    return [(m, r.path) for r in app.routes if isinstance(r, APIRoute) for m in sorted(r.methods)]


async def test_every_route_has_an_entry(app: Any) -> None:
    api = {path for _, path in routes(app) if not path.startswith("/internal/")}
    assert {p for p in api if family(p) not in FAMILIES} == set(), "add the family to noria.api.permission"
    assert len(api) > 10
    assert [n for n, p in FAMILIES.items() if p == "open"] == ["login", "openapi.json"]


async def test_every_route_refuses_a_stranger_and_an_app_key(app: Any, client: httpx.AsyncClient) -> None:
    asked = 0
    for method, path in routes(app):
        if needed(path) == "open":
            continue
        for bearer in ({}, {"authorization": "Bearer nk-something"}, {"cookie": "noria_session=v1.9.x"}):
            address = path.replace("{id}", "x").replace("{name}", "x")
            answer = await client.request(method, address, headers=RELAYED | bearer)
            assert answer.status_code == (404 if path.startswith("/internal") else 401), (method, path)
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            asked += 1
    assert asked > 30


async def test_what_nobody_listed_is_for_operators(client: httpx.AsyncClient) -> None:
    assert needed("/api/anything") == "operator"
    assert (await client.get("/api/anything", headers=RELAYED)).status_code == 401
    assert (await client.get("/api/%6beys", headers=RELAYED)).status_code == 401
    assert (await client.get("/api//keys", headers=RELAYED)).status_code in (401, 404)
    good = await client.get("/api/keys", headers=RELAYED | {"authorization": "Bearer na-token"})
    assert good.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("POST", "/api/keys", b"{", 400, "invalid_json", None),
        ("POST", "/api/keys", b'{"rpm": 0}', 400, "invalid_value", "rpm"),
        ("POST", "/api/keys", b'{"rmp": 5}', 400, "unknown_parameter", "rmp"),
        ("POST", "/api/keys", b'{"budget_usd": "much"}', 400, "invalid_value", "budget_usd"),
        ("POST", "/api/keys", b'{"expires_in": "soon"}', 400, "invalid_value", "expires_in"),
        ("POST", "/api/keys", b'{"expires_in": "1d", "expires_at": "2099-01-01"}', 400, "invalid_value", "expires_at"),
        ("POST", "/api/keys", b'{"expires_at": "2001-01-01T00:00:00Z"}', 400, "invalid_value", "expires_at"),
        ("POST", "/api/keys", b'{"tags": {"a b": "x"}}', 400, "invalid_tags", "tags"),
        ("POST", "/api/keys", b'{"endpoints": ["/api/keys"]}', 400, "invalid_endpoint", "endpoints"),
        ("POST", "/api/keys", '{"name": "nk-abc…wxyz"}'.encode(), 400, "masked_value", "name"),
        ("POST", "/api/keys", b'{"hash": "x"}', 400, "unknown_parameter", "hash"),
        ("PATCH", "/api/keys/key_1", b'{"hint": "nk-x"}', 400, "unknown_parameter", "hint"),
        ("PATCH", "/api/keys/key_1", b"{}", 404, "key_not_found", "key"),
        ("POST", "/api/keys/key_1/rotate", b'{"overlap": -1}', 400, "invalid_value", "overlap"),
        ("POST", "/api/orgs", b"{}", 400, "missing_parameter", "name"),
        ("POST", "/api/orgs", b'{"name": "a b"}', 400, "invalid_name", "name"),
        ("DELETE", "/api/teams/x", b"", 404, "team_not_found", "team"),
        ("GET", "/api/traces?limit=0", b"", 400, "invalid_value", "limit"),
        ("GET", "/api/nothing", b"", 404, "unknown_url", None),
        ("PUT", "/api/keys", b"{}", 405, "method_not_allowed", None),
        ("PUT", "/api/access", b'{"keys_required": true}', 400, "invalid_value", "keys_required"),
    ],
)
async def test_every_refusal_has_the_one_body(
    client: httpx.AsyncClient, method: str, path: str, body: bytes, status: int, code: str, param: str | None
) -> None:
    answer = await client.request(method, path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")


async def test_a_mistake_of_ours_has_it_too_and_tells_nothing(app: Any, client: httpx.AsyncClient) -> None:
    @app.get("/api/status/broken")
    async def broken() -> None:
        raise RuntimeError("secret inside")

    answer = await client.get("/api/status/broken")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text


async def test_a_refused_value_is_not_repeated(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/login", json={"token": ["na-secret"]})
    assert answer.status_code == 400
    assert "na-secret" not in answer.text


async def test_a_new_key_tells_all_of_itself_once(client: httpx.AsyncClient) -> None:
    made = (await client.post("/api/keys", json={"name": "ci", "expires_in": "30d", "endpoints": ["/v1/models*"]})).json()
    assert made["key"].startswith("nk-")
    assert (made["state"], made["endpoints"], made["overlap_until_ns"]) == ("active", ["/v1/models*"], None)
    rotated = (await client.post(f"/api/keys/{made['id']}/rotate", json={"overlap": "2h"})).json()
    assert rotated["id"] == made["id"]
    assert int(rotated["overlap_until_ns"]) > 0
    off = (await client.patch(f"/api/keys/{made['id']}", json={"disabled": True, "expires_in": None})).json()
    assert (off["state"], off["expires_ns"], off["name"]) == ("disabled", None, "ci")
    listed = (await client.get("/api/keys")).text
    assert made["key"] not in listed
    assert rotated["key"] not in listed
    assert "hash" not in listed


async def test_the_schema_says_what_refusals_look_like(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/api/openapi.json")).json()
    assert "HTTPValidationError" not in str(schema["paths"])
    assert schema["components"]["schemas"]["ErrorBody"]["properties"]["error"] == {"$ref": "#/components/schemas/ErrorDetail"}
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    told = [
        call["responses"][code]["content"]
        for path in schema["paths"].values()
        for call in path.values()
        for code in ("4XX", "422")
    ]
    assert len(told) > 100
    assert all(content == body for content in told)
