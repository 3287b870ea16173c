"""The console's pages as a browser gets them: straight, or through a worker that relays."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from noria.kit.http_head import CODING
from noria.web import console, pages

SCRIPT = b"export const water = 1;"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> httpx.AsyncClient:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "a-1.js").write_bytes(SCRIPT)
    (tmp_path / "assets" / "a-1.js.gz").write_bytes(gzip.compress(SCRIPT))
    whole = pages.page
    monkeypatch.setattr(pages, "page", lambda path, *, gzip: whole(path, gzip=gzip, root=tmp_path))
    app = FastAPI()
    console.mount(app, SimpleNamespace())  # type: ignore[arg-type]  # the keeper is asked for logins alone
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://keeper")


async def test_whoever_takes_gzip_gets_what_is_packed_already(client: httpx.AsyncClient) -> None:
    packed = await client.get("/assets/a-1.js", headers={"accept-encoding": "gzip"})
    assert (packed.headers["content-encoding"], packed.content) == ("gzip", SCRIPT)
    plain = await client.get("/assets/a-1.js", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == SCRIPT


async def test_through_a_worker_the_caller_decides_and_the_coding_travels_under_our_own_name(client: httpx.AsyncClient) -> None:
    packed = await client.get("/assets/a-1.js", headers={"accept-encoding": "identity", CODING: "br, gzip"})
    assert (packed.headers[CODING], gzip.decompress(packed.content)) == ("gzip", SCRIPT)
    assert "content-encoding" not in packed.headers, "a relay would refuse it"
    plain = await client.get("/assets/a-1.js", headers={"accept-encoding": "gzip", CODING: "identity"})
    assert plain.content == SCRIPT
