import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.error import RequestError
from noria.contracts.release import Release
from noria.dialects.openai import read_messages
from noria.transform.window import MESSAGE_OVERHEAD, Window

ROLES = st.sampled_from(["system", "user", "assistant", "tool"])


def window(context, count=None, cuts=None, **rest):
    async def each_word(text):
        return len(text.split())

    return Window(
        context, count or each_word, report=lambda x, tokens, n: None if cuts is None else cuts.append((tokens, n)), **rest
    )


async def test_what_fits_in_bytes_is_never_counted(chat):
    async def never(text):
        raise AssertionError(text)

    x = chat(("user", "short"), max_tokens=10)
    assert await window(100, never)(x) is x


async def test_the_oldest_turns_go_first_whole_and_are_reported(chat):
    cuts = []
    x = chat(
        ("system", "be brief"),
        ("user", "one " * 30),
        ("assistant", "two " * 30),
        ("user", "three " * 30),
        ("assistant", "ok"),
        ("user", "last"),
        max_tokens=10,
    )
    fitted = await window(110, cuts=cuts)(x)
    assert [m.text.split()[0] for m in fitted.messages] == ["be", "three", "ok", "last"]
    assert fitted.edited
    assert cuts == [(60 + 2 * MESSAGE_OVERHEAD, 2)]


async def test_the_system_prompt_and_the_last_question_are_never_dropped(chat):
    x = chat(("system", "rule " * 40), ("user", "old " * 40), ("user", "question " * 40), max_tokens=10)
    fitted = await window(120)(x)
    assert [m.role for m in fitted.messages] == ["system", "user"]
    assert fitted.messages[-1].text.startswith("question")


async def test_what_cannot_fit_is_refused_with_the_counts(chat):
    with pytest.raises(RequestError) as refused:
        await window(50)(chat(("user", "word " * 100), max_tokens=10))
    assert refused.value.code == "context_length_exceeded"
    assert "116 tokens" in refused.value.message
    assert "50 tokens" in refused.value.message


async def test_a_call_and_its_result_go_together_and_the_last_round_stays(chat):
    def call(i):
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": str(i), "function": {"name": "f", "arguments": "x " * 30}}],
        }

    def result(i):
        return {"role": "tool", "tool_call_id": str(i), "content": "y " * 30}

    x = chat(("user", "go"), call(1), result(1), call(2), result(2), max_tokens=10)
    fitted = await window(130)(x)
    assert [m.role for m in fitted.messages] == ["user", "assistant", "tool"]
    assert bytes(fitted.messages[2].rest["tool_call_id"]) == b'"2"'


async def test_the_last_tool_round_is_never_dropped_even_where_it_does_not_fit(chat):
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "x " * 60}}],
    }
    with pytest.raises(RequestError):
        await window(80)(chat(("user", "go"), call, {"role": "tool", "tool_call_id": "1", "content": "y"}, max_tokens=10))


async def test_tools_and_images_take_room(chat):
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}
    with pytest.raises(RequestError):
        await window(500)(chat(image, max_tokens=10))
    assert (await window(500, part_tokens=100)(chat(image, max_tokens=10))).messages is None
    with pytest.raises(RequestError):
        await window(60)(chat(("user", "hi"), tools=["w " * 50], max_tokens=10))


async def test_the_room_for_the_answer_is_the_callers_the_releases_or_a_share(chat):
    words = ("user", "word " * 60)
    release = Release("r1:x", "a", "app", (), params={"max_tokens": 20})
    with pytest.raises(RequestError):
        await window(100)(chat(words, max_completion_tokens=40))
    assert (await window(100)(chat(words, release=release))).messages is None
    with pytest.raises(RequestError):
        await window(100)(chat(words, max_tokens=None))


async def test_a_release_that_does_not_fit_prompts_is_left_alone(chat):
    x = chat(("user", "word " * 100), release=Release("r1:x", "a", "app", (), fit=False))
    assert await window(10)(x) is x


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.tuples(ROLES, st.text(alphabet="ab 中é", max_size=40)), min_size=1, max_size=12),
    context=st.integers(10, 400),
    every=st.integers(1, 4),
)
async def test_no_result_ever_exceeds_the_window(chat, rows, context, every):
    async def count(text):
        return (len(text.encode()) + every - 1) // every

    x = chat(*({"role": r, "content": t, **({"tool_call_id": "1"} if r == "tool" else {})} for r, t in rows), max_tokens=10)
    stage = window(context, count)
    given_messages = read_messages(x.body["messages"])
    try:
        fitted = await stage(x)
    except RequestError:
        return  # refused instead: what it keeps always does not fit
    messages = fitted.messages or given_messages
    assert sum([await stage.size(m) for m in messages]) + MESSAGE_OVERHEAD + 10 <= context
    kept = iter(given_messages)
    assert all(any(m == k for k in kept) for m in messages)
    assert [m for m in messages if m.role == "system"] == [m for m in given_messages if m.role == "system"]
    users = [m for m in given_messages if m.role == "user"]
    assert not users or users[-1] in messages
