import json

import msgspec
import pytest

from noria.contracts.exchange import Exchange
from noria.contracts.message import Message
from noria.contracts.release import Key, Release
from noria.ground.memory import Memory


class Kept:
    """Sessions in a dictionary."""

    def __init__(self):
        self.rows = {}

    async def load(self, tenant, key_id, conversation):
        return self.rows.get((tenant, key_id, conversation), ())

    async def append(self, tenant, key_id, conversation, new):
        at = (tenant, key_id, conversation)
        self.rows[at] = self.rows.get(at, ()) + tuple(new)


def exchange(*messages, memory=10, conversation="c", tenant="local", key="k"):
    raw = json.dumps([{"role": r, "content": t} for r, t in messages]).encode()
    return Exchange(
        id="x", trace="0" * 32, span="0" * 16, tenant=tenant, kind="chat", model="a", stream=False, body={"messages": msgspec.Raw(raw)},
        started_ns=0, conversation=conversation, key=Key(key, "h") if key else None, release=Release("r1:x", "a", "app", (), memory=memory),
    )  # fmt: skip


@pytest.fixture
def sessions():
    return Kept()


def said(x):
    return [(m.role, m.text) for m in x.messages]


async def talk(memory, x, answer):
    x = await memory(x)
    await memory.remember(x, answer)
    return x


async def test_what_was_said_comes_back_after_the_system_messages(sessions):
    memory = Memory(sessions)
    await talk(memory, exchange(("system", "s"), ("user", "I am Ann")), "Hello Ann")
    x = await memory(exchange(("system", "s"), ("user", "Who am I?")))
    assert said(x) == [("system", "s"), ("user", "I am Ann"), ("assistant", "Hello Ann"), ("user", "Who am I?")]
    assert x.edited


async def test_only_what_is_new_is_stored(sessions):
    memory = Memory(sessions)
    for i in range(3):
        await talk(memory, exchange(("system", "s"), ("user", f"q{i}")), f"a{i}")
    assert [m.text for m in sessions.rows["local", "k", "c"]] == ["q0", "a0", "q1", "a1", "q2", "a2"]


async def test_the_text_after_masking_is_what_is_stored(sessions):
    memory = Memory(sessions)
    x = await memory(exchange(("user", "bob@example.com")))
    await memory.remember(msgspec.structs.replace(x, messages=(Message.of("user", "[EMAIL_1]"),)), "to [EMAIL_1]")
    assert [m.text for m in sessions.rows["local", "k", "c"]] == ["[EMAIL_1]", "to [EMAIL_1]"]


async def test_the_last_messages_are_kept_from_a_user_message_on(sessions):
    memory = Memory(sessions)
    for i in range(4):
        await talk(memory, exchange(("user", f"q{i}"), memory=3), f"a{i}")
    x = await memory(exchange(("user", "now"), memory=3))
    assert said(x) == [("user", "q3"), ("assistant", "a3"), ("user", "now")]


async def test_conversations_of_other_tenants_keys_and_names_stay_apart(sessions):
    memory = Memory(sessions)
    await talk(memory, exchange(("user", "secret")), "ok")
    for other in ({"tenant": "b"}, {"key": "k2"}, {"key": ""}, {"conversation": "d"}):
        x = exchange(("user", "hi"), **other)
        assert await memory(x) is x


@pytest.mark.parametrize("off", [{"memory": 0}, {"conversation": ""}])
async def test_without_memory_or_conversation_nothing_is_loaded_or_stored(sessions, off):
    x = exchange(("user", "hi"), **off)
    assert await talk(Memory(sessions), x, "a") is x
    assert sessions.rows == {}


async def test_an_answer_without_text_is_not_stored(sessions):
    await talk(Memory(sessions), exchange(("user", "q")), "")
    assert [m.role for m in sessions.rows["local", "k", "c"]] == ["user"]
