"""Stored Responses at the keeper: sealed, found by their own key only, forgotten on demand and in time."""

from __future__ import annotations

import pytest

from noria.app.responses import DAY_NS, MAX_BYTES, MAX_CHAIN, RESPONSE, KeptResponses
from noria.engines.memory import MemoryRecords
from noria.ground.responses import Kept
from noria.kit.ids import uuid7

DAY = 86_400


def kept(number: int, previous: int | None = None, *, key: str = "k", subject: str = "", ms: int = 0) -> Kept:
    return Kept(
        name(number, ms), key, subject, "" if previous is None else name(previous, ms), b"[1]", b"[2]", b'{"secret": 1}'
    )


def name(number: int, ms: int = 0) -> str:
    return f"{ms:012x}7{number:019x}"


@pytest.fixture
def keys() -> dict[str, bytes]:
    return {}


@pytest.fixture
def records() -> MemoryRecords:
    return MemoryRecords("memory://")


@pytest.fixture
def responses(records: MemoryRecords, keys: dict[str, bytes]) -> KeptResponses:
    async def secret(tenant: str, subject: str) -> bytes | None:
        return keys.setdefault(f"{tenant}/{subject}", (tenant + subject).encode().ljust(32, b"x"))

    return KeptResponses(records, secret)


async def test_what_was_retained_is_recalled_by_its_key_alone(responses: KeptResponses) -> None:
    assert await responses.retain("local", kept(1))
    assert await responses.recall("local", "k", (name(1), name(2))) == (kept(1),)
    assert await responses.recall("local", "other", (name(1),)) == ()
    assert await responses.recall("other", "k", (name(1),)) == ()


async def test_a_chain_comes_oldest_first_without_the_responses(responses: KeptResponses) -> None:
    for n in range(4):
        await responses.retain("local", kept(n, n - 1 if n else None))
    chain = await responses.recall("local", "k", (name(3),), chain=True)
    assert [c.id for c in chain] == [name(n) for n in range(4)]
    assert all(c.response == b"" for c in chain)
    await responses.forget("local", "k", name(1))
    chain = await responses.recall("local", "k", (name(3),), chain=True)
    assert ([c.id for c in chain], chain[0].previous) == ([name(2), name(3)], name(1))
    assert await responses.recall("local", "k", (name(9),), chain=True) == ()


async def test_a_chain_does_not_cross_keys_and_is_bounded(responses: KeptResponses) -> None:
    await responses.retain("local", kept(0, key="other"))
    await responses.retain("local", kept(1, 0))
    chain = await responses.recall("local", "k", (name(1),), chain=True)
    assert [c.id for c in chain] == [name(1)]
    await responses.retain("local", kept(5, 5))
    assert len(await responses.recall("local", "k", (name(5),), chain=True)) == MAX_CHAIN


async def test_what_one_question_brings_back_is_bounded(responses: KeptResponses) -> None:
    big = b"x" * (MAX_BYTES // 3)
    for n in range(6):
        await responses.retain("local", Kept(name(n), "k", "", name(n - 1) if n else "", big, b""))
    assert len(await responses.recall("local", "k", tuple(name(n) for n in range(6)))) == 4
    assert len(await responses.recall("local", "k", (name(5),), chain=True)) == 4


async def test_nothing_lies_in_the_clear_and_an_erased_subject_takes_it_along(
    responses: KeptResponses, records: MemoryRecords, keys: dict[str, bytes]
) -> None:
    await responses.retain("local", kept(1, subject="ada"))
    record = await records.get("local", RESPONSE, name(1))
    assert record is not None
    assert b"secret" not in record.value
    for gone in (b"", b"another key of thirty-two bytes!"):
        keys["local/ada"] = gone
        assert await responses.recall("local", "k", (name(1),)) == ()


async def test_only_the_owner_forgets(responses: KeptResponses) -> None:
    await responses.retain("local", kept(1))
    assert not await responses.forget("local", "other", name(1))
    assert await responses.forget("local", "k", name(1))
    assert not await responses.forget("local", "k", name(1))


async def test_what_is_over_its_time_goes(responses: KeptResponses, records: MemoryRecords) -> None:
    for n in range(120):
        await responses.retain("local", kept(n, ms=n * DAY * 1000 // 2))
    now = 60 * DAY_NS
    assert await responses.expire("local", now) == 60
    left = await records.scan("local", RESPONSE)
    assert [r.id for r in left] == [name(n, n * DAY * 1000 // 2) for n in range(60, 120)]
    assert await responses.expire("local", now) == 0


async def test_an_id_made_now_is_not_over_its_time(responses: KeptResponses) -> None:
    now = 1_800_000_000 * 10**9
    made = uuid7(now).replace("-", "")
    await responses.retain("local", Kept(made, "k", "", "", b"", b""))
    assert await responses.expire("local", now + 29 * DAY_NS) == 0
    assert await responses.expire("local", now + 31 * DAY_NS) == 1


async def test_where_nothing_is_to_be_kept_nothing_is(responses: KeptResponses, records: MemoryRecords) -> None:
    responses.days = 0
    assert not await responses.retain("local", kept(1))
    assert await records.scan("local", RESPONSE) == []
