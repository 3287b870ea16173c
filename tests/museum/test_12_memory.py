"""Museum 12: a gateway that grows until it is killed.

litellm#12685, #27954, #38193 (40 GiB), and the vendor's advice to restart workers every 10,000 requests. Here everything is
bounded, also what callers make up: app names, users, conversations, tags, ids. The soak sends all of these and looks at
the worker's resident memory; 1/100 in `make test`, more with `make test-slow` (a million in the benchmark).
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

CONFIG = """
models:
  fake: {provider: scripted, model: fake}
guards:
  all: [pii, secrets]
apps:
  echo: {model: fake, guard: all}
"""


def resident(pid: int) -> int:
    """Bytes of a process in memory, its own pages only."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


async def send(port: int, first: int, last: int) -> None:
    """Requests `first` to `last`, each with names of its own; one in ten for an app that is not there, one a stream left early."""
    reader = writer = None
    for n in range(first, last):
        if writer is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = {
            "model": "echo" if n % 10 else f"made-up-{n}",
            "user": f"user-{n}",
            "stream": n % 10 == 5,
            "messages": [{"role": "user", "content": f"hello {n}, write to mail{n}@example.com"}],
        }
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nx-noria-tags: n={n}\r\nx-request-id: r{n}\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        if "chunked" in answer:
            writer.transport.abort()
            writer = None
            continue
        length = next(line for line in answer.split("\r\n") if line.startswith("content-length"))
        await reader.readexactly(int(length.split()[1]))
    if writer is not None:
        writer.close()


@pytest.mark.parametrize(
    "requests", [8_000, pytest.param(200_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["short", "full"]
)
def test_memory_does_not_grow_with_the_requests(serve, requests) -> None:
    noria = serve(CONFIG)
    port, worker = int(noria.url.rpartition(":")[2]), noria.pids()["worker-0"]
    part = requests // 8
    seen = []

    async def soak() -> None:
        for n in range(8):
            await asyncio.gather(*(send(port, part * n + i * part // 8, part * n + (i + 1) * part // 8) for i in range(8)))
            seen.append(resident(worker))

    asyncio.run(soak())
    shown = ", ".join(f"{s / 1e6:.1f}" for s in seen)
    grown = (seen[-1] - seen[3]) / (requests / 2)
    print(f"resident MB after each eighth: {shown}; {grown:.0f} bytes a request over the second half")
    # caches fill and the allocator keeps pages: growth must stay below a page for ten requests, and end
    assert seen[-1] - seen[3] < max(6e6, 40 * requests / 2), shown
