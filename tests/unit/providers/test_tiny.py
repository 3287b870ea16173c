"""The n-gram classifier as a model: OpenAI's form, whole and streamed; a wrong file is told, not served."""

import hashlib
import json

import msgspec
import numpy as np
import pytest

from noria.contracts.error import RequestError, Unavailable
from noria.contracts.exchange import ModelCall
from noria.contracts.release import Endpoint
from noria.dialects.openai_answer import read_text
from noria.dialects.openai_stream import assemble
from noria.kit.ngram import FORMAT, Ngram, encode, features, softmax_step
from noria.providers.tiny import Tiny


@pytest.fixture(scope="module")
def model():
    weights = np.zeros((257, 2), dtype=np.float32)
    rows = [features(text, 256) for text in ("pay my bill", "hello there")]
    for _ in range(50):
        softmax_step(weights, rows, [0, 1], 1.0)
    return encode(Ngram(FORMAT, ("billing question", "greeting"), 256, 1, 4, weights.tobytes()))


@pytest.fixture
def tiny(tmp_path, model):
    (tmp_path / "tiny.model").write_bytes(model)
    return lambda **options: Tiny(
        Endpoint("t", "tiny", "intents"), "", Tiny.Config(**({"file": str(tmp_path / "tiny.model")} | options))
    )


def call(kind="chat", *, stream=False, **more):
    prompt = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "?"},
        {"role": "user", "content": "my bill"},
    ]
    body = {"messages": prompt} if kind == "chat" else {"prompt": "hello"} if kind == "completion" else {"input": "x"}
    raw = {k: msgspec.Raw(json.dumps(v).encode()) for k, v in (body | more).items()}
    return ModelCall("x1", kind, stream, raw)


async def test_it_answers_the_last_user_turn_with_a_label_and_counts(tiny):
    answer = (await tiny().send(call(), lambda _: None)).body
    assert read_text(answer) == "billing question"
    assert json.loads(answer)["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


async def test_a_stream_says_the_same(tiny):
    pieces = []
    await tiny().send(call(stream=True), pieces.append)
    whole = assemble(b"".join(pieces))
    assert whole["choices"][0]["message"]["content"] == "billing question"
    assert whole["choices"][0]["finish_reason"] == "stop"


async def test_completions_and_several_choices_are_answered_and_embeddings_refused(tiny):
    answer = json.loads((await tiny().send(call("completion", n=2), lambda _: None)).body)
    assert [c["text"] for c in answer["choices"]] == ["greeting", "greeting"]
    with pytest.raises(RequestError, match="no embeddings"):
        await tiny().send(call("embedding"), lambda _: None)


async def test_a_file_that_is_not_the_one_pinned_is_not_served(tiny, tmp_path, model):
    assert tiny(sha256=hashlib.sha256(model).hexdigest()).ready is None
    for provider, words in [
        (tiny(sha256="0" * 64), "sha256"), (tiny(file=str(tmp_path / "none")), "cannot be loaded"), (tiny(file=__file__), "no noria-ngram-1"),
    ]:  # fmt: skip
        assert words in str(provider.ready)
        with pytest.raises(Unavailable, match=words):
            await provider.send(call(), lambda _: None)
