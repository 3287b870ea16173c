import asyncio
import json

import msgspec
import pytest

from noria.contracts.error import UpstreamError
from noria.contracts.exchange import ModelCall
from noria.contracts.release import Endpoint
from noria.dialects.openai_answer import decode_vector
from noria.dialects.openai_stream import assemble, is_content, is_usage_only
from noria.dialects.sse import FrameSplitter
from noria.providers.scripted import Scripted


def made(**options):
    return Scripted(Endpoint("fake", "scripted", "script-1"), "", msgspec.convert(options, Scripted.Config))


def call(text="Hello, 世界 again", kind="chat", **fields):
    prompt = (
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]}
        if kind == "chat"
        else {"prompt": text, "input": text}
    )
    body = {"model": "app"} | prompt | fields
    return ModelCall(
        "x", kind, bool(fields.get("stream")), msgspec.json.decode(json.dumps(body).encode(), type=dict[str, msgspec.Raw])
    )


async def whole(provider, *args, **fields):
    return json.loads((await provider.send(call(*args, **fields), lambda data: None)).body)


async def streamed(provider, *args, **fields):
    got = bytearray()
    await provider.send(call(*args, stream=True, **fields), got.extend)
    return bytes(got)


def said(answer):
    return [c["message"]["content"] if "message" in c else c["text"] for c in answer["choices"]]


async def test_without_a_script_the_last_user_message_is_echoed():
    assert said(await whole(made())) == ["Hello, 世界 again"]


async def test_replies_come_from_a_text_a_list_or_a_mapping():
    assert said(await whole(made(reply="yes"))) == ["yes"]
    listed = made(reply=["one", "two"])
    assert [said(await whole(listed))[0] for _ in range(3)] == ["one", "two", "one"]
    mapped = made(reply={"weather": "sunny", "*": "what?"})
    assert said(await whole(mapped, "the weather?")) == ["sunny"]
    assert said(await whole(mapped, "else")) == ["what?"]
    assert said(await whole(made(reply={"x": "y"}), "else")) == ["else"]


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"stop": "again"}, {"stop": ["zzz", " 世"]}, {"max_tokens": 2}])
async def test_a_stream_says_what_the_whole_answer_says(kind, fields):
    answer = await whole(made(), kind=kind, **fields)
    joined = assemble(await streamed(made(), kind=kind, **fields, stream_options={"include_usage": True}))
    assert said(joined) == said(answer)
    assert [c["finish_reason"] for c in joined["choices"]] == [c["finish_reason"] for c in answer["choices"]]
    assert (joined["usage"], joined["id"], joined["model"]) == (answer["usage"], answer["id"], "script-1")


async def test_stop_and_limit_end_an_answer():
    assert said(await whole(made(), stop=[" again"])) == ["Hello, 世界"]
    limited = await whole(made(), max_tokens=2)
    assert said(limited) == ["Hello, 世"]
    assert limited["choices"][0]["finish_reason"] == "length"


async def test_tokens_are_counted_as_words_and_cjk_characters():
    provider = made()
    assert [await provider.count(t) for t in ("", "two words", "你好 world", "  ")] == [0, 2, 3, 0]
    usage = (await whole(provider, "你好 world"))["usage"]
    assert usage == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


async def test_an_exact_number_of_tokens_is_said():
    answer = await whole(made(tokens=50))
    assert answer["usage"]["completion_tokens"] == 50
    frames = FrameSplitter().feed(await streamed(made(tokens=50)))
    assert sum(map(is_content, frames)) == 51, "50 words and the end"


async def test_usage_is_always_streamed_because_noria_bills_by_it_and_can_be_withheld():
    asked = {"stream_options": {"include_usage": True}}
    assert sum(map(is_usage_only, FrameSplitter().feed(await streamed(made(), **asked)))) == 1
    assert sum(map(is_usage_only, FrameSplitter().feed(await streamed(made())))) == 1
    assert b"usage" not in await streamed(made(usage=False), **asked)
    assert "usage" not in await whole(made(usage=False))


async def test_a_tool_is_called():
    provider = made(tool={"name": "f", "arguments": '{"city": "Paris"}'})
    answer = await whole(provider)
    [call_made] = answer["choices"][0]["message"]["tool_calls"]
    assert (call_made["function"], answer["choices"][0]["finish_reason"]) == (
        {"name": "f", "arguments": '{"city": "Paris"}'},
        "tool_calls",
    )
    joined = assemble(await streamed(provider))
    assert joined["choices"][0]["message"]["tool_calls"] == [call_made]


async def test_logprobs_come_where_they_are_asked_for():
    answer = await whole(made(logprobs=True), "a b", logprobs=True)
    assert [t["token"] for t in answer["choices"][0]["logprobs"]["content"]] == ["a", " b"]
    assert (await whole(made(logprobs=True)))["choices"][0]["logprobs"] is None
    legacy = (await whole(made(logprobs=True), "a b", kind="completion", logprobs=1))["choices"][0]["logprobs"]
    assert (legacy["tokens"], legacy["text_offset"]) == (["a", " b"], [0, 1])


async def test_embeddings_are_deterministic_unit_vectors():
    one, two = (await whole(made(dimensions=4), kind="embedding", input=["a", "b"]))["data"]
    again = (await whole(made(dimensions=4), "a", kind="embedding", encoding_format="base64"))["data"][0]
    assert decode_vector(again["embedding"]) == pytest.approx(one["embedding"], abs=1e-6)
    assert one["embedding"] != two["embedding"]
    assert sum(v * v for v in one["embedding"]) == pytest.approx(1)


async def test_faults_are_reproducible_by_seed():
    async def outcomes(seed):
        provider = made(fail_rate=0.5, seed=seed)
        got = []
        for _ in range(20):
            try:
                await whole(provider)
                got.append(True)
            except UpstreamError:
                got.append(False)
        return got

    first = await outcomes(1)
    assert first == await outcomes(1)
    assert first != await outcomes(2)
    assert {True, False} == set(first)


@pytest.mark.parametrize(("after", "started"), [(0, False), (2, True)])
async def test_a_stream_is_cut_where_the_script_says(after, started):
    got = []
    with pytest.raises(UpstreamError) as e:
        await made(cut_after=after).send(call(stream=True), got.append)
    assert (e.value.code, e.value.started) == ("upstream_cut", started)
    assert sum(map(is_content, got)) == after


async def test_a_hanging_model_hangs_until_it_is_cancelled():
    task = asyncio.create_task(made(hang_after=0).send(call(), lambda data: None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_latency_is_spent_before_the_first_and_between_the_tokens(monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await made(first_ms=100, token_ms=10).send(call("a b c", stream=True), lambda data: None)
    assert waited == [0.1, 0.01, 0.01]
    waited.clear()
    await whole(made(first_ms=100, token_ms=10), "a b c")
    assert waited == [pytest.approx(0.12)]


def test_an_unknown_option_is_refused():
    with pytest.raises(msgspec.ValidationError, match="repply"):
        made(repply="x")
