"""Jobs that were given up: listed and revived by an operator, in the queue that the keeper owns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from noria.contracts.port import Queue
from noria.engines.sqlite import ENGINE


async def bury(url: str) -> None:
    queue = ENGINE.serves[Queue](url)
    await queue.put("local", "night shift", "job/1", b"what to do", now_ns=1_000_000_000)
    (job,) = await queue.lease("local", "night shift", now_ns=2_000_000_000, lease_ns=1_000_000_000)
    await queue.retry("local", job, ready_ns=0, dead=True)
    await queue.close()


def test_a_dead_job_is_listed_and_revived_by_the_command_line(serve: Callable[..., Any], caller: Any) -> None:
    service = serve()
    assert "No job was given up." in service.cli("jobs", "dead").stdout
    asyncio.run(bury(f"sqlite:///{service.home}/records.db"))
    assert service.json("jobs", "dead") == [
        {"queue": "night shift", "id": "job/1", "attempts": 1, "bytes": 10, "put": "1970-01-01T00:00:01Z"}
    ]
    wrong = service.cli("jobs", "revive", "night shift", "job/2", check=False)
    assert wrong.returncode == 1
    assert "no dead job 'job/2'" in wrong.stderr
    service.cli("jobs", "revive", "night shift", "job/1")
    assert service.json("jobs", "dead") == []
    unknown = caller(service).api("GET", "/api/jobs/dead?limt=3")
    assert unknown.refuses(400, "unknown_parameter", param="limt")["message"].endswith("Did you mean 'limit'?")
