"""Two hundred real prompts, English and Chinese, by the OpenAI client through an app with every kind of policy on."""

from __future__ import annotations

import gzip
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai import OpenAI

FILES = {"en": "instruct/alpaca_en.jsonl.gz", "zh": "instruct/zh_alpaca.jsonl.gz"}
EACH = 100
CONFIG = """
models:
  fake: {provider: scripted, model: fake, price: {input: 1, output: 2}}
guards:
  all: [secrets, {pii: {action: flag}}, {denylist: {terms: [falcon-nine-nine], action: block, on: [input, output]}}]
apps:
  governed: {model: fake, guard: all}
budgets:
  all: {scope: "app:governed", usd: 50, window: month}
limits:
  all: {scope: "app:governed", requests_per_minute: 100000, concurrent: 100}
serve: {keys_required: always}
"""


@pytest.fixture(scope="module")
def prompts(shared_data: Path) -> list[str]:
    found = []
    for name in FILES.values():
        path = shared_data / name
        if not path.is_file():
            pytest.skip(f"{name} is not in {shared_data}")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = (json.loads(line) for line in itertools.islice(lines, EACH))
            found += [f"{row['instruction']}\n{row.get('input') or ''}".strip() for row in rows]
    assert len(found) == 2 * EACH
    return found


@pytest.fixture(scope="module")
def governed(start_service: Any) -> Iterator[SimpleNamespace]:
    with tempfile.TemporaryDirectory(prefix="noria-") as folder:
        service = start_service(Path(folder), CONFIG, "--workers", "2")
        try:
            key = service.json("keys", "create", "--name", "real", "--app", "governed", "--budget", "20", "--rpm", "10000")[
                "key"
            ]
            yield SimpleNamespace(url=service.url + "/v1", key=key, service=service)
        finally:
            service.stop()


def test_every_prompt_comes_back_as_it_was_and_is_recorded_priced_and_counted(governed: Any, prompts: list[str]) -> None:
    words = [p.split() for p in prompts]
    with OpenAI(base_url=governed.url, api_key=governed.key, max_retries=3) as client:

        def ask(n: int) -> tuple[str, str, int]:
            messages: Any = [{"role": "user", "content": prompts[n]}]
            if n % 2:
                options: Any = {"include_usage": True}
                text, usage, name = "", 0, ""
                with client.chat.completions.with_raw_response.create(
                    model="governed", messages=messages, stream=True, stream_options=options
                ).parse() as stream:
                    name = stream.response.headers["x-request-id"]
                    for chunk in stream:
                        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                        usage = chunk.usage.total_tokens if chunk.usage else usage
                return name, text, usage
            done = client.chat.completions.create(model="governed", messages=messages)
            assert done.usage is not None
            return str(done._request_id), done.choices[0].message.content or "", done.usage.total_tokens

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(len(prompts))))
    for said, (_, text, usage) in zip(words, answers, strict=True):
        assert text.split() == said
        assert usage >= 2
    wanted = {name for name, _, _ in answers}
    assert len(wanted) == len(prompts)
    end = time.monotonic() + 15
    while True:
        rows = governed.service.json("trace", "list", "app=governed", "--limit", "1000")
        found = {r["id"]: r for r in (rows["rows"] if isinstance(rows, dict) else rows)}
        if wanted <= set(found):
            break
        assert time.monotonic() < end, f"{len(wanted - set(found))} were not recorded"
        time.sleep(0.2)
    for name, _, usage in answers:
        row = found[name]
        assert (row["outcome"], row["status"]) == ("ok", 200)
        assert row["tokens_in"] + row["tokens_out"] == usage
        assert row["cost_status"] == "exact"
