"""What the default model really does through llama.cpp, the status file and the local provider."""

import asyncio

import msgspec
import pytest

from noria.app.model_process import command
from noria.contracts.error import RequestError, UpstreamError
from noria.contracts.exchange import ModelCall
from noria.contracts.release import Endpoint
from noria.kit.supervise import Backoff, Child, Supervisor
from noria.providers.local import Local, LocalOptions
from noria.release import catalogue

pytestmark = pytest.mark.model


@pytest.fixture
async def local(models_home, smollm2):
    made = Local(Endpoint("small", "local", "smollm2-135m"), "", LocalOptions(home=str(models_home)))
    yield made
    await made.close()


def call(kind="chat", stream=False, **body):
    if kind == "chat":
        body = {
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 8,
            "temperature": 0,
            **body,
        }
    return ModelCall(
        "x1", kind, stream, {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in {**body, "stream": stream}.items()}
    )


async def ask(local, kind="chat", **body):
    return msgspec.json.decode((await local.send(call(kind, **body), print)).body)


async def test_it_answers_in_openais_form(local):
    answer = await ask(local, max_completion_tokens=8)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "smollm2-135m"
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_it_streams_the_same_text(local):
    whole = await ask(local)
    out = bytearray()
    await local.send(call(stream=True, stream_options={"include_usage": True}), out.extend)
    frames = [f.removeprefix(b"data: ") for f in bytes(out).split(b"\n\n") if f]
    chunks = [msgspec.json.decode(f) for f in frames[:-1]]
    assert frames[-1] == b"[DONE]"
    assert (
        "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        == whole["choices"][0]["message"]["content"]
    )
    assert [c["usage"]["completion_tokens"] for c in chunks if c.get("usage")] == [8]


async def test_n_gives_n_answers_and_counts_all_of_them(local):
    answer = await ask(local, n=6, temperature=1, seed=3)
    assert [c["index"] for c in answer["choices"]] == list(range(6))
    assert len({c["message"]["content"] for c in answer["choices"]}) > 1
    assert answer["usage"]["completion_tokens"] > 8


async def test_the_same_seed_gives_the_same_answer(local):
    first, second = [await ask(local, temperature=1, seed=5) for _ in range(2)]
    assert first["choices"][0]["message"] == second["choices"][0]["message"]


async def test_stop_ends_before_the_word(local):
    text = (await ask(local, max_tokens=20))["choices"][0]["message"]["content"]
    word = text.split()[3]
    answer = await ask(local, max_tokens=20, stop=[word])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["content"] == text[: text.index(word)]


async def test_logprobs_come_a_token(local):
    answer = await ask(local, logprobs=True, top_logprobs=2)
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert "".join(t["token"] for t in tokens) == answer["choices"][0]["message"]["content"]
    assert all(t["logprob"] <= 0 and len(t["top_logprobs"]) == 2 for t in tokens)


async def test_a_json_schema_is_kept(local):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    asked = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}}
    messages = [{"role": "user", "content": "Alice is 30 years old. Give JSON."}]
    answer = await ask(local, messages=messages, max_tokens=80, response_format=asked)
    person = msgspec.json.decode(answer["choices"][0]["message"]["content"])
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)


async def test_completions_take_lists_of_prompts(local):
    answer = await ask(local, "completion", prompt=["The sky is", "One plus one is"], max_tokens=4, temperature=0)
    assert [c["index"] for c in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 8


async def test_tools_are_refused_because_the_template_has_no_place_for_them(local):
    with pytest.raises(RequestError, match="cannot call tools"):
        await ask(local, tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])


async def test_a_prompt_beyond_the_window_is_refused_with_openais_code(local):
    with pytest.raises(UpstreamError) as refused:
        await ask(local, messages=[{"role": "user", "content": "word " * 8300}])
    assert msgspec.json.decode(refused.value.body)["error"]["code"] == "context_length_exceeded"


async def test_an_image_is_refused_as_the_callers_mistake(local):
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(UpstreamError) as refused:
        await ask(local, messages=[{"role": "user", "content": image}])
    assert refused.value.upstream_status == 400


async def test_its_tokenizer_counts_without_special_tokens(local):
    assert await local.count("Hello world") == 2
    assert await local.count("") == 0


async def test_a_request_is_counted_as_it_is_served(local):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello there 世界"}]
    answer = await ask(local, messages=messages, max_tokens=1)
    assert await local.count_request(call(messages=messages)) == answer["usage"]["prompt_tokens"]


async def test_every_slot_has_the_whole_window(smollm2):
    assert smollm2.service.facts["context"] == 8192
    assert smollm2.service.facts["slots"] == 4


async def test_a_cancelled_answer_frees_its_slot(local):
    async def flood():
        out = bytearray()
        await local.send(call(stream=True, max_tokens=4000, ignore_eos=True), out.extend)

    floods = [asyncio.ensure_future(flood()) for _ in range(4)]
    await asyncio.sleep(0.5)
    for f in floods:
        f.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
    async with asyncio.timeout(10):  # four answers of 4000 tokens would take minutes
        await ask(local, max_tokens=1)


async def test_without_the_key_of_the_status_file_nobody_is_served(smollm2, models_home):
    from noria.kit.http_client import HttpClient

    client = HttpClient("http://localhost", uds=smollm2.service.uds)
    status, _, _ = await client.send("POST", "/v1/completions", [("content-type", "application/json")], b'{"prompt":"a"}')
    await client.close()
    assert status == 401


async def test_sigterm_ends_it_cleanly_and_takes_its_traces_along(start, models_home, smollm2):
    # a second server under the same name: the status file goes to the newer one, and comes back never
    second = start("noria.app.model_server", "smollm2-135m")
    assert second.service.pid == second.process.pid
    assert second.stop() == 0
    assert not (models_home / "run" / "models" / f"smollm2-135m.{second.process.pid}.sock").exists()
    from noria.app.model_process import status_path
    from noria.kit.service import publish

    assert not status_path(models_home, "smollm2-135m").exists()
    publish(status_path(models_home, "smollm2-135m"), smollm2.service)  # for the tests that follow


async def test_a_tampered_model_is_refused_with_its_reason(tmp_path):
    home = tmp_path / "h"
    path = tmp_path / "evil.gguf"
    path.write_bytes(b"GGUF good")
    catalogue.add_file(home, "evil", path)
    path.write_bytes(b"GGUF evil")
    argv = command(home, catalogue.manifest_of(home, "evil"))
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"is refused" in said
    local = Local(Endpoint("e", "local", "evil"), "", LocalOptions(home=str(home)))
    assert "is refused" in local.ready.message


async def test_a_killed_server_is_restarted_and_found_again(models_home, smollm2, tmp_path):
    from noria.kit.atomic import alive

    manifest = catalogue.manifest_of(models_home, "smollm2-135m")
    other = models_home / "other"
    other.mkdir(exist_ok=True)
    if not (other / "models").exists():
        (other / "models").symlink_to(models_home / "models")
    local = Local(Endpoint("small", "local", manifest.id), "", LocalOptions(home=str(other)))

    async def ready(_pid):
        local._watch.forget()
        return local.ready is None

    supervisor = Supervisor(tmp_path / "logs", backoff=Backoff(first=0.05))
    supervisor.start(Child("small", command(other, manifest, threads=2), ready=ready))
    try:
        assert await supervisor.running("small", 60)
        pid = supervisor.pid("small")
        out = bytearray()
        streaming = asyncio.ensure_future(local.send(call(stream=True, max_tokens=2000, ignore_eos=True), out.extend))
        async with asyncio.timeout(20):
            while b"content" not in out:
                await asyncio.sleep(0.01)
        import os
        import signal

        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UpstreamError) as cut:
            await streaming
        assert (cut.value.code, cut.value.started) == ("upstream_cut", True)
        async with asyncio.timeout(60):
            while local.ready is not None:
                await asyncio.sleep(0.05)
        assert not alive(pid)
        assert (await local.send(call(max_tokens=1), print)).status == 200
    finally:
        await local.close()
        await supervisor.close()
