"""LangChain, `llm` and curl against a running Noria."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")


class Weather(BaseModel):
    """The weather somewhere."""

    city: str
    degrees: int


def get_weather(city: str) -> str:
    """The weather in a city."""
    return city


@pytest.fixture
def chat(noria: Any) -> Any:
    def make(model: str = "echo", **more: Any) -> Any:
        return langchain.ChatOpenAI(model=model, base_url=noria.url, api_key=noria.key, max_retries=0, **more)

    return make


# -- LangChain ----------------------------------------------------------------------------------------------


def test_langchain_invokes(chat: Any) -> None:
    said = chat().invoke("hello 世界")
    assert said.content == "hello 世界"
    assert said.usage_metadata["output_tokens"] > 0


def test_langchain_streams(chat: Any) -> None:
    pieces = list(chat("up").stream("hello"))
    assert "".join(p.content for p in pieces) == "Hello, 世界! How are you?"
    assert len(pieces) > 5


def test_langchain_streams_usage_when_asked(chat: Any) -> None:
    whole = None
    for piece in chat("up", stream_usage=True).stream("hello"):
        whole = piece if whole is None else whole + piece
    assert whole.usage_metadata["output_tokens"] == 10


def test_langchain_calls_a_tool(chat: Any) -> None:
    said = chat("caller").bind_tools([get_weather]).invoke("weather?")
    assert [(c["name"], c["args"]) for c in said.tool_calls] == [("get_weather", {"city": "Chengdu"})]


def test_langchain_streams_a_tool_call(chat: Any) -> None:
    whole = None
    for piece in chat("caller").bind_tools([get_weather]).stream("weather?"):
        whole = piece if whole is None else whole + piece
    assert whole.tool_calls[0]["args"] == {"city": "Chengdu"}


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_langchain_gives_structured_output(chat: Any, method: str) -> None:
    assert chat("json").with_structured_output(Weather, method=method).invoke("as JSON, please") == Weather(
        city="Chengdu", degrees=21
    )


async def test_langchain_asks_async(chat: Any) -> None:
    assert (await chat().ainvoke("hello")).content == "hello"
    assert "".join([p.content async for p in chat().astream("hello there")]) == "hello there"


def test_langchain_sends_a_batch(chat: Any) -> None:
    assert [m.content for m in chat().batch(["a", "b", "c"])] == ["a", "b", "c"]


def test_langchain_embeds(noria: Any) -> None:
    # check_embedding_ctx_length would fetch OpenAI's own tokenizer from the network; other servers take text
    embedder = langchain.OpenAIEmbeddings(
        model="vectors", base_url=noria.url, api_key=noria.key, check_embedding_ctx_length=False
    )
    vectors = embedder.embed_documents(["one", "two"])
    assert [len(v) for v in vectors] == [8, 8]
    assert embedder.embed_query("one") == pytest.approx(vectors[0])


def test_langchain_sees_our_errors(chat: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="'echo'"):
        chat("ecko").invoke("hello")


# -- llm ----------------------------------------------------------------------------------------------------


@pytest.fixture
def llm(noria: Any, tmp_path: Path) -> Any:
    pytest.importorskip("llm", reason="llm is not installed")
    models = [
        {
            "model_id": f"noria-{name}",
            "model_name": name,
            "api_base": noria.url,
            "api_key_name": "noria",
            "supports_schema": name == "json",
        }
        for name in ("echo", "up", "json", "strict")
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    (tmp_path / "keys.json").write_text(json.dumps({"noria": noria.key}))

    def ask(*args: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
        argv = [sys.executable, "-m", "llm", "prompt", "--no-log", *args]
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)

    return ask


@pytest.mark.parametrize("flags", [(), ("--no-stream",)])
def test_llm_answers_on_the_command_line(llm: Any, flags: tuple[str, ...]) -> None:
    done = llm("-m", "noria-up", *flags, "hello")
    assert done.stdout.strip() == "Hello, 世界! How are you?", done.stderr


def test_llm_takes_a_schema(llm: Any) -> None:
    done = llm("-m", "noria-json", "--schema", "city, degrees int", "weather?")
    assert json.loads(done.stdout) == {"city": "Chengdu", "degrees": 21}, done.stderr


def test_llm_shows_why_it_was_refused(llm: Any) -> None:
    done = llm("-m", "noria-strict", "tell me of falcon")
    assert done.returncode != 0
    assert "denylist" in done.stderr


# -- curl ---------------------------------------------------------------------------------------------------


@pytest.fixture
def curl(noria: Any) -> Any:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def send(path: str, body: dict[str, Any] | None = None, *flags: str) -> str:
        sent = ["-H", "content-type: application/json", "-d", json.dumps(body)] if body is not None else []
        argv = ["curl", "-sS", "-m", "30", "-H", f"Authorization: Bearer {noria.key}", *sent, *flags, noria.url + path]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout

    return send


CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}


def test_curl_gets_an_answer(curl: Any) -> None:
    assert json.loads(curl("/chat/completions", CHAT))["choices"][0]["message"]["content"] == "hello there"


def test_curl_gets_a_stream_line_by_line(curl: Any) -> None:
    lines = curl("/chat/completions", {**CHAT, "stream": True}, "-N").split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: {") for line in lines[:-2])


def test_curl_waits_for_a_100_continue_before_a_large_body(curl: Any, tmp_path: Path) -> None:
    big = {**CHAT, "messages": [{"role": "user", "content": "x" * 2_000_000}]}
    (tmp_path / "body").write_text(json.dumps(big))
    out = curl(
        "/chat/completions",
        None,
        "-H",
        "content-type: application/json",
        "-H",
        "Expect: 100-continue",
        "-d",
        f"@{tmp_path / 'body'}",
    )
    assert len(json.loads(out)["choices"][0]["message"]["content"]) == 2_000_000


def test_curl_sees_status_and_headers(curl: Any) -> None:
    head = curl("/chat/completions", {**CHAT, "model": "nope"}, "-i", "--http1.1")
    assert head.startswith("HTTP/1.1 404")
    assert "x-request-id: " in head.lower()


def test_curl_sends_chunked_bodies(curl: Any) -> None:
    out = curl("/chat/completions", CHAT, "-H", "Transfer-Encoding: chunked")
    assert json.loads(out)["choices"][0]["message"]["content"] == "hello there"
