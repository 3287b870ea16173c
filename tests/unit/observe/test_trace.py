import asyncio
import os

import msgspec
import pytest

from noria.contracts.error import StoreError
from noria.contracts.exchange import Usage
from noria.contracts.port import Body
from noria.contracts.trace import ExchangeRow, SpoolPosition
from noria.kit.spool import SpoolReader, SpoolWriter
from noria.observe.poison import PoisonBox
from noria.observe.trace import Recorder, cursor, decode, encode, read_bodies, store_again
from noria.observe.vault import Vault


def row(id: str, **changes) -> ExchangeRow:
    empty = dict.fromkeys(ExchangeRow.__struct_fields__[: -len(ExchangeRow.__struct_defaults__)], "")
    numbers = {"started_ns": 7, "status": 200, "duration_ns": 1, "overhead_ns": 1, "ttft_ns": None, "cost_nanousd": None}
    rest = {"stages": (), "attempts": (), "rulings": (), "request": b"", "answer": b"", "usage": Usage(), "cut_tokens": 0}
    words = {"tenant": "local", "id": id, "kind": "chat", "outcome": "ok", "cost_status": "unknown"}
    base = ExchangeRow(**{**empty, **numbers, **rest, **words, "stream": False, "answer_is_sse": False})
    return msgspec.structs.replace(base, **changes)


class Store:
    """A TraceStore in memory that can be told to refuse."""

    max_batch = 10

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[ExchangeRow, str, str]] = {}
        self.kept: dict[tuple[str, str], Body] = {}
        self.position: dict[str, SpoolPosition] = {}
        self.refuse: Exception | None = None
        self.appends = 0

    async def append(self, tenant, rows, bodies, position):
        self.appends += 1
        if self.refuse:
            raise self.refuse
        new = [r for r in rows if (tenant, r[0].id) not in self.rows]
        self.rows |= {(tenant, r[0].id): r for r in new}
        self.kept |= {(tenant, name): b for b in bodies for name in (b.id, *b.beside)}
        if position:
            self.position[position.spool] = position
        return len(new)

    async def positions(self):
        return list(self.position.values())

    async def bodies(self, tenant, ids):
        return list({b.id: b for i in ids if (b := self.kept.get((tenant, i))) is not None}.values())


class Keys:
    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], bytes | None] = {}

    async def __call__(self, tenant: str, subject: str) -> bytes | None:
        return self.keys.setdefault((tenant, subject), os.urandom(32))


@pytest.fixture
def writer(tmp_path):
    w = SpoolWriter(tmp_path, "w0", segment_bytes=2000)
    yield w
    w.close()


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def keys():
    return Keys()


@pytest.fixture
def recorder(tmp_path, store, keys):
    return Recorder(SpoolReader(tmp_path), "w0", store, keys)


async def drain(recorder) -> None:
    while await recorder.step():
        pass


def test_a_row_survives_the_spool():
    assert decode(encode(row("e1", request=b"\x00\xff"))) == row("e1", request=b"\x00\xff")


def test_rows_of_an_older_and_a_newer_version_are_read():
    fields = msgspec.msgpack.decode(encode(row("e1")))
    assert decode(msgspec.msgpack.encode(fields[:-1])) == row("e1")
    assert decode(msgspec.msgpack.encode([*fields, "new"])) == row("e1")


def test_the_cursor_names_time_and_id():
    assert cursor(row("e1")) == "7.e1"


async def test_rows_reach_the_store_with_bodies_that_can_be_read_back(writer, recorder, store, keys):
    writer.append(encode(row("e1", request=b"question" * 100, answer=b"short")))
    await drain(recorder)
    _, request, answer = store.rows["local", "e1"]
    found = await read_bodies(store, keys, "local", [answer, "none", "", request, answer])
    assert found == {request: b"question" * 100, answer: b"short"}
    assert b"question" not in store.kept["local", request].data


async def test_equal_bodies_share_an_id_within_a_subject_and_nowhere_else(writer, recorder, store):
    same = {"request": b"x" * 300}
    for name, subject, tenant in (("1", "s", "a"), ("2", "s", "a"), ("3", "t", "a"), ("4", "", "a"), ("5", "s", "b")):
        writer.append(encode(row(name, subject=subject, tenant=tenant, **same)))
    await drain(recorder)
    ids = {name: body for (_, name), (_, body, _) in store.rows.items()}
    assert ids["1"] == ids["2"]
    assert len(set(ids.values())) == 4
    assert len(store.kept) == 4


async def test_a_body_that_comes_again_is_not_stored_again_unless_it_was_not_stored(writer, recorder, store, keys):
    writer.append(encode(row("1", request=b"same")))
    store.refuse = StoreError("disk full")
    with pytest.raises(StoreError):
        await recorder.step()
    store.refuse = None
    writer.append(encode(row("2", request=b"same")))
    await drain(recorder)
    store.kept.clear()
    writer.append(encode(row("3", request=b"same", answer=b"other")))
    await drain(recorder)
    assert [name for _, name in store.kept] == [store.rows["local", "3"][2]]


async def test_small_bodies_of_a_batch_are_stored_together(writer, recorder, store, keys):
    for i in range(5):
        writer.append(encode(row(str(i), request=b"asked %d" % i, answer=b"told %d" % i)))
    await drain(recorder)
    assert len(set(store.kept.values())) == 1
    names = [n for _, *names in store.rows.values() for n in names]
    found = await read_bodies(store, keys, "local", names[:3])
    assert found == dict(zip(names[:3], (b"asked 0", b"told 0", b"asked 1"), strict=True))


async def test_a_hurried_recorder_does_not_wait_for_its_next_look(writer, recorder, store):
    running = asyncio.create_task(recorder.run(poll=3600))
    async with asyncio.timeout(10):
        while not recorder.looks:
            await asyncio.sleep(0.002)
        writer.append(encode(row("1")))
        recorder.hurry()
        while not store.rows:
            await asyncio.sleep(0.002)
    running.cancel()


async def test_destroying_a_subjects_key_makes_its_bodies_unreadable(writer, recorder, store, keys):
    writer.append(encode(row("1", subject="s", request=b"x")))
    await drain(recorder)
    keys.keys["local", "s"] = None
    assert await read_bodies(store, keys, "local", [store.rows["local", "1"][1]]) == {}
    writer.append(encode(row("2", subject="s", request=b"x")))
    await drain(recorder)
    assert store.rows["local", "2"][1] == ""


@pytest.mark.parametrize(("tenant", "id"), [("other", "id"), ("local", "other")])
def test_a_body_opens_only_under_its_own_tenant_and_id(tenant, id):
    vault = Vault(b"k" * 32)
    data = vault.seal("local", "id", b"x" * 1000)
    assert vault.open("local", "id", data) == b"x" * 1000
    with pytest.raises(StoreError, match="cannot be decrypted"):
        vault.open(tenant, id, data)
    with pytest.raises(StoreError, match="cannot be decrypted"):
        Vault(b"j" * 32).open("local", "id", data)
    with pytest.raises(StoreError):
        vault.open("local", "id", b"")


async def test_a_new_recorder_goes_on_where_the_store_stands(tmp_path, writer, recorder, store, keys):
    for i in range(25):
        writer.append(encode(row(f"e{i}")))
    await recorder.step()
    again = Recorder(SpoolReader(tmp_path), "w0", store, keys)
    await drain(again)
    assert len(store.rows) == 25
    assert again.stored == 15
    assert again.lag == (0, 0, 0.0)


async def test_only_the_last_tenants_append_carries_the_position(writer, recorder, store):
    for i, tenant in enumerate("aab"):
        writer.append(encode(row(str(i), tenant=tenant)))
    real = store.append

    async def fail_for_b(tenant, *rest):
        if tenant == "b":
            raise StoreError("no")
        return await real(tenant, *rest)

    store.append = fail_for_b
    with pytest.raises(StoreError):
        await recorder.step()
    assert len(store.rows) == 2
    assert store.position == {}
    store.append = real
    await drain(recorder)
    assert len(store.rows) == 3
    assert store.position["w0"].offset > 0


async def test_a_payload_that_is_no_row_is_counted_and_passed_over(writer, recorder, store):
    writer.append(b"\xc1 garbage")
    await drain(recorder)
    assert store.position["w0"].offset > 0
    writer.append(msgspec.msgpack.encode(["too", "short"]))
    writer.append(encode(row("e1")))
    await drain(recorder)
    assert recorder.undecodable == 2
    assert list(store.rows) == [("local", "e1")]


async def test_consumed_segments_are_deleted(tmp_path, writer, recorder):
    for i in range(40):
        writer.append(encode(row(f"e{i}", request=b"x" * 200)))
    before = len(list((tmp_path / "w0").iterdir()))
    await drain(recorder)
    assert before > 3
    assert len(list((tmp_path / "w0").iterdir())) == 1


@pytest.mark.parametrize("error", [StoreError("disk full"), RuntimeError("a bug in an engine")])
async def test_a_store_that_fails_raises_an_alarm_and_is_caught_up_with(writer, recorder, store, error, monkeypatch):
    monkeypatch.setattr("noria.observe.trace.FIRST_RETRY_S", 0.01)
    monkeypatch.setattr("noria.observe.trace.LAST_RETRY_S", 0.02)
    store.refuse = error
    for i in range(12):
        writer.append(encode(row(f"e{i}")))
    running = asyncio.create_task(recorder.run(poll=0.005))
    async with asyncio.timeout(10):
        while recorder.failures < 3:
            await asyncio.sleep(0.005)
        assert str(error) in recorder.alarm
        assert "w0" in recorder.alarm
        assert recorder.lag.records >= 10
        assert recorder.lag.bytes > 0
        assert recorder.lag.seconds > 0
        store.refuse = None
        while len(store.rows) < 12:
            await asyncio.sleep(0.005)
        while recorder.lag.records:
            await asyncio.sleep(0.005)
    assert recorder.alarm is None
    running.cancel()


async def test_an_idle_spool_costs_the_store_nothing(writer, recorder, store):
    for _ in range(3):
        assert await recorder.step() == 0
    assert store.appends == 0


def refusing(store, *bad, also=lambda rows: None):
    """Lets the store refuse every append that has one of these rows."""
    real = store.append

    async def append(tenant, rows, bodies, position):
        also(rows)
        if any(r.id in bad for r, _, _ in rows):
            raise RuntimeError(f"cannot store one of {len(rows)}")
        return await real(tenant, rows, bodies, position)

    store.append = append


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("noria.observe.trace.FIRST_RETRY_S", 0.001)
    monkeypatch.setattr("noria.observe.trace.LAST_RETRY_S", 0.002)


async def until(recorder, holds):
    running = asyncio.create_task(recorder.run(poll=0.002))
    try:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.002)
    finally:
        running.cancel()


async def test_a_row_that_the_store_refuses_is_put_aside_whole_and_all_others_are_stored(
    tmp_path, writer, recorder, store, keys, quick
):
    told = []
    recorder._told = told.extend
    payloads = {f"e{i}": encode(row(f"e{i}", tenant="ab"[i % 2], request=b"asked %d" % i)) for i in range(25)}
    for payload in payloads.values():
        writer.append(payload)
    refusing(store, "e3", "e8", "e17")
    await until(recorder, lambda: len(store.rows) == 22 and recorder.lag.records == 0)
    assert {name for _, name in store.rows} == set(payloads) - {"e3", "e8", "e17"}
    assert recorder.poisoned == 3
    assert recorder.alarm is None
    box = PoisonBox(tmp_path)
    assert sorted(box.take(name) for name in box.names()) == sorted(payloads[i] for i in ("e3", "e8", "e17"))
    assert {(box.folder / name).stat().st_mode & 0o777 for name in box.names()} == {0o600}
    assert all(name.startswith("w0-") for name in box.names())
    assert sorted(r.id for r in told) == sorted(set(payloads) - {"e3", "e8", "e17"}), "each is told once"
    assert recorder.passed(SpoolReader(tmp_path).tail("w0"))
    assert SpoolReader(tmp_path).spools() == ["w0"]


async def test_a_store_that_takes_nothing_is_waited_for_and_nothing_is_put_aside(tmp_path, writer, recorder, store, quick):
    for i in range(12):
        writer.append(encode(row(f"e{i}")))
    store.refuse = StoreError("disk full")
    await until(recorder, lambda: recorder.failures > 20)
    assert PoisonBox(tmp_path).names() == []
    assert recorder.poisoned == 0
    assert store.position == {}
    store.refuse = None
    await drain(recorder)
    assert len(store.rows) == 12


async def test_a_store_that_goes_away_while_a_culprit_is_looked_for_makes_no_other_row_one(
    tmp_path, writer, recorder, store, quick
):
    for i in range(10):
        writer.append(encode(row(f"e{i}")))
    seen = []

    def leave(rows):
        seen.append(len(rows))
        if len(rows) == 5:
            store.refuse = StoreError("gone")

    refusing(store, "e7", also=leave)
    await until(recorder, lambda: 5 in seen and recorder.failures > 15)
    assert PoisonBox(tmp_path).names() == []
    store.append = type(store).append.__get__(store)
    refusing(store, "e7")
    store.refuse = None
    await until(recorder, lambda: len(store.rows) == 9)
    assert recorder.poisoned == 1


async def test_keys_that_cannot_be_had_put_nothing_aside(tmp_path, writer, store, quick):
    async def away(tenant, subject):
        raise StoreError("the records are away")

    recorder = Recorder(SpoolReader(tmp_path), "w0", store, away)
    writer.append(encode(row("e1", request=b"x")))
    await until(recorder, lambda: recorder.failures > 20)
    assert PoisonBox(tmp_path).names() == []
    assert store.rows == {}


async def test_what_was_put_aside_is_stored_once_the_store_takes_it(tmp_path, writer, recorder, store, keys, quick):
    writer.append(b"\xc1 garbage")
    writer.append(encode(row("e1", request=b"asked")))
    taking = store.append
    refusing(store, "e1")
    await until(recorder, lambda: recorder.poisoned == 1 and store.position)
    box = PoisonBox(tmp_path)
    assert await store_again(box, store, keys) == 0
    assert len(box.names()) == 2
    store.append = taking
    assert await store_again(box, store, keys) == 1
    assert [box.take(name) for name in box.names()] == [b"\xc1 garbage"], "what is no row stays, whole"
    assert await read_bodies(store, keys, "local", [store.rows["local", "e1"][1]]) == {store.rows["local", "e1"][1]: b"asked"}


async def test_more_than_a_bounded_number_of_records_is_not_put_aside_but_waited_with(
    tmp_path, writer, recorder, store, quick, monkeypatch
):
    monkeypatch.setattr("noria.observe.poison.MOST", 2)
    for i in range(4):
        writer.append(b"\xc1 garbage %d" % i)
    await until(recorder, lambda: recorder.failures > 3)
    assert len(PoisonBox(tmp_path).names()) == 2
    assert "holds 2 records" in recorder.alarm
    assert store.position == {}
