"""Files and batches on the product's own lane: formats, mistakes, strangers, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

CHAT = "/v1/chat/completions"
CONFIG = """
models:
  fake: {{provider: scripted, model: fake, price: {{input: 1, output: 2}}}}
  slow: {{provider: openai_compatible, model: slow-0.1, url: "{url}", price: {{input: 1000, output: 0}}}}
  busy: {{provider: openai_compatible, model: status-429, url: "{url}"}}
apps:
  echo: {{model: fake}}
  slow: {{model: slow}}
  busy: {{model: busy}}
files: {{quota: 4MB}}
batches: {{in_flight: 4}}
"""


def line(custom_id: str, text: str, model: str = "echo", url: str = CHAT, **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **more}


def jsonl(lines: list[Any]) -> bytes:
    return "\n".join(x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in lines).encode()


def begin(client: OpenAI, data: bytes, endpoint: str = CHAT, window: str = "24h") -> Any:
    file = client.files.create(file=("输入.jsonl", data), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window=window,
        metadata={"来源": "测试"},  # type: ignore[arg-type]
    )


def ended(client: OpenAI, batch: Any, within: float = 60.0) -> Any:
    end = time.monotonic() + within
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.monotonic() < end, batch
        time.sleep(0.1)
        batch = client.with_options(max_retries=20).batches.retrieve(batch.id)
    return batch


def results(client: OpenAI, file: str | None) -> list[dict[str, Any]]:
    return [json.loads(x) for x in client.files.content(file).text.splitlines()] if file else []


@pytest.fixture(scope="module")
def service(serve_once: Callable[..., Any], upstream: Any) -> Any:
    return serve_once(CONFIG.format(url=upstream.url))


@pytest.fixture(scope="module")
def client(service: Any, caller: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=service.url + "/v1", api_key=caller(service).new_key(name="first"), max_retries=0) as made:
        yield made


def test_a_thousand_lines_are_answered_each_once_in_order(client: OpenAI, service: Any, caller: Any, http: Any) -> None:
    lines = [line(f"行-{i}", f"你好 {i}") for i in range(1000)]
    batch = begin(client, jsonl(lines))
    assert (batch.status, batch.metadata) == ("validating", {"来源": "测试"})
    slowest = 0.0
    while client.batches.retrieve(batch.id).status == "in_progress" or not slowest:
        began = time.monotonic()
        assert caller(service).api("GET", "/api/status").status == 200
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1.0, "the keeper does not answer while it works on a batch"
    batch = ended(client, batch)
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (1000, 1000, 0)
    assert batch.error_file_id is None
    rows = results(client, batch.output_file_id)
    assert [r["custom_id"] for r in rows] == [x["custom_id"] for x in lines]
    assert set(rows[0]) == {"id", "custom_id", "response", "error"}
    assert set(rows[0]["response"]) == {"status_code", "request_id", "body"}
    assert rows[5]["response"]["body"]["choices"][0]["message"]["content"] == "你好 5"
    row = caller(service).row(rows[5]["response"]["request_id"])
    assert row["key"].startswith("key_")
    assert row["cost_usd"] is not None


def test_mistakes_of_a_file_are_told_by_line(client: OpenAI) -> None:
    lines = [
        line("a", "x"), "{not json", line("a", "again"), {**line("b", "x"), "method": "GET"}, line("c", "x", url="/v1/other"),
        {"custom_id": "d", "method": "POST", "url": CHAT}, {**line("e", "x"), "custom_id": 5}, "", "[1]",
        {**line("f", "x"), "body": {"model": "echo", "messages": [], "stream": True}},
    ]  # fmt: skip
    batch = ended(client, begin(client, jsonl(lines)))
    assert batch.status == "failed"
    assert batch.failed_at
    found = [(e.line, e.code) for e in batch.errors.data]
    assert found == [
        (2, "invalid_json_line"), (3, "duplicate_custom_id"), (4, "invalid_method"), (5, "invalid_url"),
        (6, "missing_required_parameter"), (7, "invalid_value"), (9, "invalid_json_line"), (10, "invalid_value"),
    ]  # fmt: skip
    assert ended(client, begin(client, b"\n\n")).errors.data[0].code == "empty_file"


def test_a_line_that_is_refused_is_in_the_error_file(client: OpenAI) -> None:
    batch = ended(client, begin(client, jsonl([line("good", "x"), line("bad", "x", model="nobody")])))
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 1, 1)
    (bad,) = results(client, batch.error_file_id)
    assert (bad["custom_id"], bad["response"]["status_code"], bad["error"]) == ("bad", 404, None)
    assert bad["response"]["body"]["error"]["code"] == "model_not_found"


def test_moderations_run_in_batches_too(client: OpenAI) -> None:
    url = "/v1/moderations"
    one = {"custom_id": "m", "method": "POST", "url": url, "body": {"input": "mail ann@example.com"}}
    batch = ended(client, begin(client, jsonl([one]), url))
    assert results(client, batch.output_file_id)[0]["response"]["body"]["results"][0]["flagged"]


def test_nobody_reads_what_another_key_has(client: OpenAI, service: Any, caller: Any) -> None:
    batch = ended(client, begin(client, jsonl([line("a", "geheim")])))
    other = OpenAI(base_url=service.url + "/v1", api_key=caller(service).new_key(name="other"), max_retries=0)
    with other:
        for ask in (
            lambda: other.files.retrieve(batch.input_file_id), lambda: other.files.content(batch.output_file_id),
            lambda: other.files.delete(batch.input_file_id), lambda: other.batches.retrieve(batch.id),
            lambda: other.batches.cancel(batch.id),
            lambda: other.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"),
        ):  # fmt: skip
            with pytest.raises(NotFoundError):
                ask()
        assert other.files.list().data == []
        assert other.batches.list().data == []
    assert caller(service).send("GET", "/v1/files").status == 401
    wrong = {"authorization": "Bearer nk-wrong"}
    assert caller(service).send("GET", f"/v1/batches/{batch.id}", headers=wrong).status == 401


def test_nobody_claims_an_owner_or_a_ticket_from_outside(client: OpenAI, service: Any, caller: Any) -> None:
    key = client.batches.list().data and client.api_key
    forged = {"x-noria-owner": f"tenant=local&scope=key%3Aany&key={key}", "x-noria-ticket": "AAAA.bbbb"}
    assert caller(service).send("GET", "/v1/files", headers=forged).status == 401
    assert caller(service).send("GET", "/%761/files", headers=forged).status in (401, 404)
    assert caller(service).chat("echo", headers=forged).status == 401


def test_the_command_line_hands_in_a_batch_and_takes_its_results(service: Any, tmp_path: Path) -> None:
    file = tmp_path / "批量.jsonl"
    file.write_bytes(jsonl([line("一", "你好"), line("二", "再见", model="nobody")]))
    batch = service.json("batch", "create", str(file), "--wait")
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    (one,) = service.cli("batch", "results", batch["id"]).stdout.splitlines()
    assert json.loads(one)["custom_id"] == "一"
    assert json.loads(service.cli("batch", "results", batch["id"], "--errors").stdout)["custom_id"] == "二"
    assert [b["id"] for b in service.json("batch", "list")] == [batch["id"]]
    assert "1 of 2 answered" in service.cli("batch", "show", batch["id"]).stdout
    assert service.cli("batch", "cancel", batch["id"], check=False).returncode == 1
    file.write_text("nonsense")
    failed = service.cli("batch", "create", str(file), "--wait", check=False)
    assert failed.returncode == 1
    assert "line 1: This line is not parseable" in failed.stdout


def test_files_keep_names_bytes_and_lists(client: OpenAI) -> None:
    data = bytes(range(256)) * 100
    client.files.create(file=("before.txt", b"x"), purpose="user_data")
    kept = client.files.create(
        file=("../目录/数据.bin", data), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (kept.filename, kept.bytes, kept.status, kept.object) == ("数据.bin", len(data), "processed", "file")
    assert kept.expires_at is not None
    assert kept.expires_at - kept.created_at == 3600
    assert client.files.content(kept.id).read() == data
    first = client.files.list(purpose="user_data", limit=1)
    assert (first.data[0].id, first.has_more) == (kept.id, True)
    assert kept.id not in [f.id for f in client.files.list(after=kept.id, order="desc", limit=100).data]
    assert client.files.delete(kept.id).deleted
    with pytest.raises(NotFoundError):
        client.files.content(kept.id)
    with pytest.raises(BadRequestError, match="purpose"):
        client.files.create(file=("a", b"x"), purpose="nonsense")  # type: ignore[arg-type]


def test_a_quota_is_kept(client: OpenAI) -> None:
    one = client.files.create(file=("a", bytes(3 * 1024 * 1024)), purpose="user_data")
    with pytest.raises(Exception, match="No room for"):
        client.files.create(file=("b", bytes(2 * 1024 * 1024)), purpose="user_data")
    client.files.delete(one.id)


def test_a_cancelled_batch_delivers_what_was_done(client: OpenAI) -> None:
    batch = begin(client, jsonl([line(f"{i}", "x", model="slow") for i in range(200)]))
    while client.batches.retrieve(batch.id).request_counts.completed == 0:
        time.sleep(0.1)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    good, bad = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert 0 < len(good) < 200
    assert len(good) + len(bad) == 200
    assert {b["error"]["code"] for b in bad} == {"batch_cancelled"}


def test_a_window_that_closes_expires_the_rest_and_a_busy_endpoint_is_backed_off_from(client: OpenAI, upstream: Any) -> None:
    before = len(upstream.seen)
    batch = ended(
        client, begin(client, jsonl([line("a", "x"), *(line(f"b{i}", "x", model="busy") for i in range(8))]), window="3s")
    )
    assert batch.status == "expired"
    assert [r["custom_id"] for r in results(client, batch.output_file_id)] == ["a"]
    assert {r["error"]["code"] for r in results(client, batch.error_file_id)} == {"batch_expired"}
    assert len(upstream.seen) - before < 60, "an endpoint that says 429 is not hammered"


@pytest.mark.parametrize(
    ("victims", "many"),
    [
        pytest.param(["keeper"], 60, id="keeper"),
        pytest.param(["worker-0"], 60, id="worker"),
        pytest.param(
            ["keeper", "worker-0"] * 5, 1000, id="both, ten times", marks=[pytest.mark.slow, pytest.mark.timeout(600)]
        ),
    ],
)
def test_a_kill_in_the_middle_charges_no_line_twice(
    serve: Callable[..., Any], upstream: Any, caller: Any, victims: list[str], many: int
) -> None:
    service = serve(CONFIG.format(url=upstream.url))
    before = len(upstream.seen)
    with OpenAI(base_url=service.url + "/v1", api_key="none", max_retries=20) as client:
        batch = begin(client, jsonl([line(f"{i}", f"{victims} {i}", model="slow") for i in range(many)]))
        for number, victim in enumerate(victims):
            while client.batches.retrieve(batch.id).request_counts.completed < 10 + number * many // (len(victims) + 1):
                time.sleep(0.05)
            os.kill(service.pids()[victim], signal.SIGKILL)
        batch = ended(client, batch, 300.0)
        assert (batch.status, batch.request_counts.completed) == ("completed", many)
        rows = results(client, batch.output_file_id)
    assert [r["custom_id"] for r in rows] == [str(i) for i in range(many)]
    asked = Counter(s["body"]["messages"][0]["content"] for s in upstream.seen[before:])
    assert len(asked) == many
    workers = sum(v != "keeper" for v in victims)
    assert sum(asked.values()) - many <= 4 * workers, "only what died with its worker may be asked again"
    paid = {r["response"]["request_id"] for r in rows}
    assert len(paid) == many
    end = time.monotonic() + 15
    while time.monotonic() < end:
        found = caller(service).api("GET", "/api/traces?limit=1000&previews=false&filter=app%3Dslow").json["rows"]
        charged = [r for r in found if r["status"] == 200]
        if len(charged) >= many:
            break
        time.sleep(0.2)
    assert {r["id"] for r in charged} == paid
    assert sum(r["cost_usd"] for r in charged) == pytest.approx(many * 12 * 1000 / 1e6)
