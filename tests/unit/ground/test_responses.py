"""Session state of the Responses API: what the model gets to see of it, and what is kept."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from noria.contracts.error import NotFound, RequestError, StoreError
from noria.contracts.exchange import Exchange
from noria.contracts.message import Message
from noria.contracts.release import Key, Prompt, Release
from noria.dialects.openai import read_messages, write_messages
from noria.dialects.responses_request import read_response_request
from noria.ground.responses import MAX_BYTES, Kept, ResponseState

IDS = [f"0199000{n}-0000-7000-8000-000000000000" for n in range(6)]


class Store:
    """In memory; `away` makes it fail, `off` keep nothing."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str], Kept] = {}
        self.away = self.off = False
        self.asked = 0

    async def recall(self, tenant: str, key_id: str, ids: tuple[str, ...], *, chain: bool = False) -> tuple[Kept, ...]:
        self.asked += 1
        if not chain:
            return tuple(k for i in ids if (k := self.kept.get((tenant, key_id, i))))
        found: list[Kept] = []
        name = ids[0]
        while name and (kept := self.kept.get((tenant, key_id, name))):
            found.insert(0, kept)
            name = kept.previous
        return tuple(found)

    async def retain(self, tenant: str, kept: Kept) -> bool:
        if self.away:
            raise StoreError("The keeper is away.", code="keeper_away")
        if not self.off:
            self.kept[tenant, kept.key, kept.id] = kept
        return not self.off


class Out:
    """An outlet that is told whether its answer was kept."""

    backlog = 0

    def __init__(self) -> None:
        self.stored = True

    def kept(self, *, stored: bool) -> None:
        self.stored = stored

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None: ...

    def data(self, data: bytes) -> None: ...

    def end(self) -> None: ...


def exchange(number: int = 0, *, key: str = "k", tenant: str = "local", prompt: str = "", **fields: Any) -> Exchange:
    native = msgspec.json.decode(json.dumps({"model": "app", "input": "hi"} | fields).encode(), type=dict[str, msgspec.Raw])
    chat, _ = read_response_request(native)
    release = Release(app="app", name="a", id="r1", route=(), prompt=Prompt("p", prompt, "d") if prompt else None)
    return Exchange(
        id=IDS[number], trace="0" * 32, span="0" * 16, tenant=tenant, kind="chat", model="app", stream=False, body=chat,
        started_ns=10**9, key=Key(key, "h"), release=release, dialect="responses", native=native,
    )  # fmt: skip


def said(text: str = "fine", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text} | message, "finish_reason": "stop"}
    return json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode()


def seen(x: Exchange) -> list[tuple[str, str]]:
    messages = x.messages if x.messages is not None else read_messages(x.body["messages"])
    return [(m.role, m.text) for m in messages]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def state(store: Store) -> ResponseState:
    return ResponseState(store)


async def turn(state: ResponseState, x: Exchange, answer: bytes | None = None) -> Exchange:
    x = await state(x)
    assert await state.keep(x, lambda: answer or said(), Out()) == ()
    return x


async def test_earlier_turns_stand_between_the_instructions_and_what_is_said_now(state: ResponseState) -> None:
    await turn(state, exchange(0, input="one", instructions="old rules"))
    await turn(state, exchange(1, input=[{"role": "developer", "content": "be 简短"}, {"role": "user", "content": "two"}],
                               previous_response_id="resp_" + IDS[0].replace("-", "")))  # fmt: skip
    x = await state(
        exchange(2, input="three", instructions="new rules", previous_response_id="resp_" + IDS[1].replace("-", ""))
    )
    assert seen(x) == [
        ("system", "new rules"), ("user", "one"), ("assistant", "fine"), ("system", "be 简短"), ("user", "two"),
        ("assistant", "fine"), ("user", "three"),
    ]  # fmt: skip
    assert x.edited


async def test_the_prompt_of_the_release_stays_first(state: ResponseState) -> None:
    await turn(state, exchange(0, input="one"))
    x = exchange(1, input="two", instructions="mine", prompt="house", previous_response_id="resp_" + IDS[0].replace("-", ""))
    template = (Message.of("system", "house"), *read_messages(x.body["messages"]))
    x = await state(msgspec.structs.replace(x, messages=template, edited=True))
    assert [text for _, text in seen(x)] == ["house", "mine", "one", "fine", "two"]


async def test_calls_and_their_results_come_back_as_they_were(state: ResponseState) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    more = {"tool_calls": [call], "reasoning_content": "hm", "thinking_blocks": [{"signature": "s"}]}
    await turn(state, exchange(0, input="one"), said("", **more))
    result = [{"type": "function_call_output", "call_id": "c1", "output": "1"}]
    x = await state(exchange(1, input=result, previous_response_id="resp_" + IDS[0].replace("-", "")))
    assert x.messages is not None
    told = json.loads(bytes(write_messages(x.messages)))
    assert [m["role"] for m in told] == ["user", "assistant", "tool"]
    assert told[1]["tool_calls"] == [call]
    assert told[1]["thinking_blocks"] == [{"signature": "s"}]
    assert "reasoning_content" not in told[1]


async def test_a_call_that_came_without_an_id_has_the_one_that_the_caller_was_given(state: ResponseState, store: Store) -> None:
    await turn(state, exchange(0), said("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": "{}"}}]))
    kept = next(iter(store.kept.values()))
    given = json.loads(kept.response)["output"][0]["call_id"]
    assert json.loads(kept.answer)[0]["tool_calls"][0]["id"] == given != ""


async def test_another_key_or_tenant_or_name_is_not_found(state: ResponseState) -> None:
    await turn(state, exchange(0))
    mine = "resp_" + IDS[0].replace("-", "")
    for x in (
        exchange(1, previous_response_id=mine, key="other"),
        exchange(1, previous_response_id=mine, tenant="other"),
        exchange(1, previous_response_id="resp_" + IDS[3].replace("-", "")),
        exchange(1, previous_response_id="nonsense"),
    ):
        with pytest.raises(NotFound) as e:
            await state(x)
        assert (e.value.code, e.value.param, e.value.status) == ("previous_response_not_found", "previous_response_id", 404)


async def test_a_chain_with_a_link_gone_is_not_followed_half(state: ResponseState, store: Store) -> None:
    await turn(state, exchange(0))
    first, second = ("resp_" + i.replace("-", "") for i in IDS[:2])
    await turn(state, exchange(1, previous_response_id=first))
    del store.kept["local", "k", first[5:]]
    with pytest.raises(NotFound, match=first):
        await state(exchange(2, previous_response_id=second))


async def test_a_request_that_names_nothing_asks_nothing(state: ResponseState, store: Store) -> None:
    x = exchange(0, input='the words "item_reference" alone')
    assert seen(await state(x)) == seen(x)
    assert await state(exchange(0)) is not None
    assert store.asked == 0


async def test_references_are_followed_and_joined_to_their_turn(state: ResponseState, store: Store) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    await turn(state, exchange(0), said("A moment.", tool_calls=[call]))
    output = json.loads(next(iter(store.kept.values())).response)["output"]
    items = [
        {"role": "user", "content": "hi"}, *({"type": "item_reference", "id": o["id"]} for o in output),
        {"type": "item_reference", "id": output[0]["id"][:-2] + "01"}, {"type": "function_call_output", "call_id": "c1", "output": "1"},
    ]  # fmt: skip
    x = await state(exchange(1, input=items, instructions="rules"))
    assert [role for role, _ in seen(x)] == ["system", "user", "assistant", "tool"]
    assert seen(x)[2] == ("assistant", "A moment.")
    assert await state.keep(x, said, Out()) == ()
    kept = store.kept["local", "k", IDS[1].replace("-", "")]
    assert [m["role"] for m in json.loads(kept.input)] == ["user", "assistant", "tool"]


async def test_references_to_nothing_are_refused(state: ResponseState) -> None:
    for name in ("msg_1", "msg_" + IDS[0].replace("-", "") + "00"):
        with pytest.raises(NotFound) as e:
            await state(exchange(1, input=[{"type": "item_reference", "id": name}]))
        assert e.value.param == "input"
    many = [{"type": "item_reference", "id": f"msg_{n:032x}00"} for n in range(300)]
    with pytest.raises(RequestError, match="256"):
        await state(exchange(1, input=many))


async def test_kept_is_what_the_guards_left(state: ResponseState, store: Store) -> None:
    x = await state(
        exchange(0, input="I am a@b.io", instructions="Write to a@b.io", user="ada-l", safety_identifier="ada-l", prompt="p")
    )
    masked = (Message.of("system", "p"), Message.of("system", "Write to [EMAIL_1]"), Message.of("user", "I am [EMAIL_1]"))
    x = msgspec.structs.replace(x, messages=masked, edited=True)
    await state.keep(x, lambda: said("to [EMAIL_1]"), Out())
    kept = next(iter(store.kept.values()))
    whole = kept.input + kept.answer + kept.response
    assert b"a@b.io" not in whole
    assert b"ada-l" not in whole
    assert json.loads(kept.response)["instructions"] == "Write to [EMAIL_1]"
    assert [m["content"] for m in json.loads(kept.input)] == ["I am [EMAIL_1]"]


async def test_kept_is_the_new_turn_alone_though_a_window_dropped_the_old_ones(state: ResponseState, store: Store) -> None:
    await turn(state, exchange(0, input="one"))
    x = await state(exchange(1, input=[{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
                             previous_response_id="resp_" + IDS[0].replace("-", "")))  # fmt: skip
    assert x.messages is not None
    cut = msgspec.structs.replace(x, messages=x.messages[2:])
    await state.keep(cut, said, Out())
    kept = store.kept["local", "k", IDS[1].replace("-", "")]
    assert [m["content"] for m in json.loads(kept.input)] == ["s", "a", "b"]
    assert kept.previous == IDS[0].replace("-", "")


async def test_what_cannot_be_stored_is_said_and_fails_nothing(state: ResponseState, store: Store) -> None:
    cases = (("away", said(), "away"), ("off", said(), "responses_days"), ("", said("x" * MAX_BYTES), "larger"))
    for what, answer, word in cases:
        store.away, store.off = what == "away", what == "off"
        out = Out()
        (told,) = await state.keep(exchange(0), lambda answer=answer: answer, out)
        assert word in told
        assert out.stored is False
    assert not store.kept


async def test_what_is_not_to_be_stored_never_reaches_the_store(state: ResponseState, store: Store) -> None:
    out = Out()
    assert await state.keep(exchange(0, store=False), said, out) == ()
    assert not store.kept
    assert out.stored, "the shape knows it from the request"
