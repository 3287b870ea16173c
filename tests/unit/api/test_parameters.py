"""Unknown query parameters of the management API, in one place for every route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, Query
from fastapi.testclient import TestClient

from noria.api import refusal
from noria.api.parameters import known


def window(since: str = "", until: str = "") -> str:
    return since + until


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI(dependencies=[Depends(known)])
    refusal.install(app)
    router = APIRouter(prefix="/api/things")

    @router.get("")
    def things(filter: str = "", limit: int = 50, by: Annotated[list[str] | None, Query()] = None) -> str:
        return f"{filter} {limit} {by}"

    @router.get("/none")
    def none(within: str = Depends(window)) -> str:
        return within

    @app.get("/api/bare")
    def bare() -> str:
        return "bare"

    @app.get("/v1/files")
    def files() -> str:
        return "files"

    app.include_router(router)
    with TestClient(app) as made:
        yield made


@pytest.mark.parametrize(
    "path", ["/api/things?filter=a&limit=2&by=x&by=y", "/api/things", "/api/things/none?since=1", "/v1/files?anything=1"]
)
def test_what_a_path_takes_is_taken(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("path", "name", "hint"),
    [
        ("/api/things?filtr=app%3Dx", "filtr", "Did you mean 'filter'?"),
        ("/api/things?limit=x&limt=5", "limt", "Did you mean 'limit'?"),
        ("/api/things?zzzzzz=1", "zzzzzz", "Known: by, filter, limit."),
        ("/api/things/none?untill=1", "untill", "Did you mean 'until'?"),
        ("/api/bare?x=1", "x", "This path takes none."),
    ],
)
def test_what_it_does_not_take_is_named_with_the_nearest(client: TestClient, path: str, name: str, hint: str) -> None:
    answer = client.get(path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unknown_parameter", name)
    assert error["message"] == f"The query parameter {name!r} does not exist. {hint}"
