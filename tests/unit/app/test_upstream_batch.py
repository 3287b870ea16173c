"""Batches by an endpoint's own API, where a kill or the endpoint itself gets in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from noria.app import upstream_batch as module
from noria.app.line_house import Prepared, place
from noria.app.upstream_batch import MARK, UpstreamBatches
from noria.contracts.batch import Batch, Line, LineResult
from noria.contracts.exchange import RawCall
from noria.contracts.release import Endpoint
from noria.gateway.batch import Reply

ENDPOINT = Endpoint(name="up", provider="openai_compatible", model="m", url="http://u/v1", options={"batch": True})
BATCH = Batch("batch_1", "local", "key:ann", "ann", "/v1/chat/completions", "file-in", "24h", 0, 10**20, status="in_progress")
LINES = [Line(n, f"c{n}", msgspec.Raw(b'{"model":"chat"}')) for n in (1, 2, 3)]


class Calls:
    """Prepares every line but those in `refused`, and finishes all."""

    def __init__(self) -> None:
        self.refused: set[int] = set()

    async def ask(self, batch: Batch, line: Line, *, mode: str, body: bytes | None) -> Reply:
        if mode == "finish":
            return Reply(LineResult(line.number, 200, "r", b"{}"))
        if line.number in self.refused:
            return Reply(LineResult(line.number, 400, "r", b'{"error":1}'), final=True)
        prepared = Prepared(msgspec.Raw(b"{}"), False, place(ENDPOINT))
        return Reply(LineResult(line.number, 200, "r", msgspec.json.encode(prepared)))


class Api:
    """The endpoint's API: `batches` as it lists them, `refuses` what it answers to a new one."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.batches: dict[str, dict[str, Any]] = {}
        self.refuses = 0
        self.ends: tuple[str, tuple[int, ...]] = ("completed", (1, 2, 3))

    async def raw(self, call: RawCall) -> tuple[int, list[tuple[str, str]], bytes]:
        self.asked.append(f"{call.method} {call.path.partition('?')[0]}")
        status, answer = self._answer(call.method, call.path)
        return status, [], answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def _answer(self, method: str, path: str) -> tuple[int, Any]:
        if (method, path) == ("POST", "/files"):
            return 200, {"id": "file-up"}
        if (method, path) == ("POST", "/batches"):
            if self.refuses:
                return self.refuses, {"error": {"message": "no such model in a batch"}}
            self.batches["b"] = {"id": "b", "status": "in_progress", "metadata": {MARK: BATCH.id}}
            return 200, self.batches["b"]
        if path.startswith("/batches?"):
            return 200, {"data": list(self.batches.values())}
        if path.endswith("/cancel"):
            self.batches["b"]["status"] = "cancelled"
        elif path.endswith("/content"):
            lines = [{"id": "", "custom_id": str(n), "response": {"status_code": 200, "request_id": "", "body": {}}, "error": None}
                     for n in self.ends[1]]  # fmt: skip
            return 200, "\n".join(map(json.dumps, lines)).encode()
        elif path.startswith("/batches/"):
            if self.batches["b"]["status"] == "in_progress":
                self.batches["b"]["status"] = self.ends[0]
            return 200, {**self.batches["b"], "output_file_id": "file-out"}
        return 200, {}


class Told:
    """One run of a batch: its results and what became of its record."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.api, self.batch = Calls(), Api(), BATCH
        self.results: dict[int, LineResult] = {}
        self.ended = False
        self.whole = UpstreamBatches(tmp_path, self.calls, lambda: None, poll=0.01)  # type: ignore[arg-type]
        monkeypatch.setattr(self.whole, "_endpoint", lambda batch, lines: ENDPOINT)
        monkeypatch.setattr(self.whole, "_provider", lambda endpoint: self.api)
        monkeypatch.setattr(module, "LOOK", 0.01)

    async def change(self, edit: Any) -> Batch:
        self.batch = edit(self.batch)
        return self.batch

    async def run(self) -> dict[int, LineResult]:
        def take(result: LineResult) -> None:
            self.results[result.line] = result

        await self.whole.run(self.batch, LINES, take, change=self.change, stopped=lambda: self.ended)
        return self.results


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(tmp_path, monkeypatch)


async def test_a_batch_that_was_cancelled_after_a_kill_is_cancelled_at_the_endpoint_too(told: Told) -> None:
    """Killed between making it there and writing down its id: it runs, and costs money."""
    told.batch = msgspec.structs.replace(BATCH, upstream_endpoint="up")
    told.api.batches["b"] = {"id": "b", "status": "in_progress", "metadata": {MARK: BATCH.id}}
    told.api.ends = ("in_progress", (2,))
    told.ended = True
    assert {n: r.ok for n, r in (await told.run()).items()} == {2: True}
    assert "POST /batches/b/cancel" in told.api.asked
    assert "POST /batches" not in told.api.asked


async def test_a_batch_that_is_cancelled_before_anything_was_made_asks_the_endpoint_nothing(told: Told) -> None:
    told.ended = True
    assert await told.run() == {}
    assert told.api.asked == []


async def test_what_the_journey_refused_stays_refused_where_the_batch_is_found_again(told: Told) -> None:
    told.calls.refused = {2}
    told.batch = msgspec.structs.replace(BATCH, upstream_endpoint="up")
    told.api.batches["b"] = {"id": "b", "status": "in_progress", "metadata": {MARK: BATCH.id}}
    told.api.ends = ("completed", (1, 3))
    assert {n: r.status for n, r in (await told.run()).items()} == {1: 200, 2: 400, 3: 200}
    assert "POST /batches" not in told.api.asked


async def test_a_batch_that_somebody_cancels_at_the_endpoint_fails_in_words(told: Told) -> None:
    told.api.ends = ("cancelled", (1,))
    results = await told.run()
    assert results[1].ok
    assert "ended as cancelled" in results[3].message


@pytest.mark.parametrize("status", [400, 413])
async def test_a_batch_that_the_endpoint_will_never_take_fails_at_once(told: Told, status: int) -> None:
    told.api.refuses = status
    results = await told.run()
    assert {n: r.code for n, r in results.items()} == dict.fromkeys((1, 2, 3), "upstream_batch_failed")
    assert "no such model in a batch" in results[1].message
    assert told.api.asked.count("POST /batches") == 1
    assert "DELETE /files/file-up" in told.api.asked


async def test_an_endpoint_that_is_out_of_order_is_asked_again_later(told: Told) -> None:
    told.api.refuses = 500
    with pytest.raises(module.UpstreamError):
        await told.run()
    assert told.results == {}
    assert told.batch.upstream_endpoint == "up", "it may have been made all the same: the next run looks for it"
