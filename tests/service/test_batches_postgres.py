"""Files, batches and their queue where records and jobs are in a real Postgres: kept, parted, resumed."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from openai import OpenAI
from tests.conftest import start_service

SERVER = os.environ.get("NORIA_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
CHAT = "/v1/chat/completions"
CONFIG = """
models:
  slow: {{provider: openai_compatible, model: slow-0.1, url: "{url}", price: {{input: 1000, output: 0}}}}
apps:
  slow: {{model: slow}}
stores: {{records: '{store}', queue: '{store}'}}
batches: {{in_flight: 4}}
"""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URL of a database of its own, dropped afterwards."""
    try:
        admin = psycopg.connect(SERVER, autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as e:
        if os.environ.get("CI"):
            pytest.fail(f"no Postgres: {e}")
        pytest.skip(f"no Postgres (set NORIA_TEST_POSTGRES): {e}")
    name = f"noria_{uuid.uuid4().hex}"
    with admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        server, _, query = SERVER.partition("?")
        yield f"{server.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def begin(client: OpenAI, many: int) -> Any:
    lines = [
        {
            "custom_id": f"行-{i}",
            "method": "POST",
            "url": CHAT,
            "body": {"model": "slow", "messages": [{"role": "user", "content": f"pg {many} {i}"}]},
        }
        for i in range(many)
    ]
    data = "\n".join(json.dumps(x, ensure_ascii=False) for x in lines).encode()
    file = client.files.create(file=("输入.jsonl", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


def until(client: OpenAI, batch: Any, done: Callable[[Any], bool]) -> Any:
    end = time.monotonic() + 60
    while not done(batch := client.with_options(max_retries=20).batches.retrieve(batch.id)):
        assert time.monotonic() < end, batch
        time.sleep(0.05)
    return batch


def over(batch: Any) -> bool:
    return batch.status not in ("validating", "in_progress", "finalizing", "cancelling")


def test_a_batch_survives_a_kill_a_restart_and_a_cancel_on_postgres(
    serve: Callable[..., Any], upstream: Any, database: str, request: pytest.FixtureRequest
) -> None:
    config = CONFIG.format(url=upstream.url, store=database)
    service, before = serve(config), len(upstream.seen)
    with OpenAI(base_url=service.url + "/v1", api_key="none", max_retries=20) as client:
        batch, second = begin(client, 40), begin(client, 300)
        until(client, batch, lambda b: b.request_counts.completed >= 10)
        os.kill(service.pids()["keeper"], signal.SIGKILL)
        until(client, batch, lambda b: b.request_counts.completed >= 20)
    service.stop()
    with psycopg.connect(database) as db:
        (kept,) = db.execute("SELECT count(*) FROM noria.records WHERE kind = 'batch'").fetchone() or (0,)
    assert kept == 2, "it is in Postgres that they are"
    service = restarted = start_service(service.home.parent, config)
    request.addfinalizer(restarted.stop)
    with OpenAI(base_url=service.url + "/v1", api_key="none", max_retries=20) as client:
        assert client.batches.cancel(second.id).status == "cancelling"
        second, batch = until(client, second, over), until(client, batch, over)
        assert (batch.status, batch.request_counts.completed) == ("completed", 40)
        rows = [json.loads(x) for x in client.files.content(batch.output_file_id).text.splitlines()]
        assert [r["custom_id"] for r in rows] == [f"行-{i}" for i in range(40)]
        assert second.status == "cancelled"
        assert second.request_counts.completed + second.request_counts.failed == 300
        assert client.batches.list(limit=1).data[0].id == second.id
        client.files.delete(batch.output_file_id)
    asked = Counter(s["body"]["messages"][0]["content"] for s in upstream.seen[before:])
    assert max(asked.values()) == 1, "a restart in the middle charges no line twice"
    with psycopg.connect(database) as db:
        (jobs,) = db.execute("SELECT count(*) FROM noria.jobs").fetchone() or (1,)
    assert jobs == 0
