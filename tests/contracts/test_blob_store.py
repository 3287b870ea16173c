"""The guarantees of `BlobStore`, on every engine that serves it."""

import asyncio
from contextlib import suppress

import pytest

from noria.contracts.error import Conflict, NoriaError
from noria.contracts.port import BlobStore

PORT = BlobStore


@pytest.fixture
async def store(make):
    return make(BlobStore)


async def test_a_blob_is_absent_until_put_and_then_read_back_whole(store):
    assert await store.get("a", "model.bin") is None
    data = bytes(range(256)) * 5000
    await store.put("a", "model.bin", data)
    assert await store.get("a", "model.bin") == data


async def test_an_empty_blob_is_a_blob(store):
    await store.put("a", "empty", b"")
    assert await store.get("a", "empty") == b""
    assert await store.list("a") == ["empty"]


async def test_putting_the_same_content_again_is_no_error(store):
    await store.put("a", "x", b"same")
    await store.put("a", "x", b"same")
    assert await store.list("a") == ["x"]


async def test_overwriting_with_other_content_is_a_conflict_and_changes_nothing(store):
    await store.put("a", "x", b"first")
    for other in (b"second", b"", b"first "):
        with pytest.raises(Conflict):
            await store.put("a", "x", other)
    assert await store.get("a", "x") == b"first"


async def test_a_deleted_name_is_absent_and_free_again(store):
    await store.put("a", "x", b"first")
    assert await store.delete("a", "x") is True
    assert await store.delete("a", "x") is False
    assert await store.get("a", "x") is None
    assert await store.list("a") == []
    await store.put("a", "x", b"second")
    assert await store.get("a", "x") == b"second"


async def test_list_gives_the_names_with_a_prefix_in_byte_order(store):
    names = ["a.txt", "runs/1/adapter.bin", "runs/1/result.json", "runs/10/x", "runs/2/x", "Z", "z", "é", "一", "run"]
    for n in names:
        await store.put("a", n, n.encode())
    assert await store.list("a") == sorted(names, key=str.encode)
    assert await store.list("a", "runs/1") == ["runs/1/adapter.bin", "runs/1/result.json", "runs/10/x"]
    assert await store.list("a", "runs/1/") == ["runs/1/adapter.bin", "runs/1/result.json"]
    assert await store.list("a", "run") == ["run", "runs/1/adapter.bin", "runs/1/result.json", "runs/10/x", "runs/2/x"]
    assert await store.list("a", "none") == []
    for n in names:
        assert await store.get("a", n) == n.encode()


async def test_a_name_and_names_below_it_may_both_exist(store):
    await store.put("a", "runs", b"1")
    await store.put("a", "runs/x", b"2")
    assert await store.list("a") == ["runs", "runs/x"]
    assert await store.get("a", "runs") == b"1"


async def test_of_concurrent_puts_with_other_content_one_wins_whole(crowd):
    stores = crowd(BlobStore, 4)
    values = [bytes([n]) * 200_000 for n in range(8)]
    puts = [s.put("a", "x", v) for s, v in zip(stores * 2, values, strict=True)]
    ends = await asyncio.gather(*puts, return_exceptions=True)
    assert [type(e) for e in ends if e is not None] == [Conflict] * 7
    assert await stores[0].get("a", "x") == values[ends.index(None)]


async def test_another_instance_reads_what_was_put(make, shared):
    await make(BlobStore).put("a", "x", b"1")
    other = make(BlobStore)
    assert await other.get("a", "x") == b"1"
    assert await other.list("a") == ["x"]


async def test_after_kill_9_every_blob_is_there_whole_or_not_at_all(make, spawn):
    writer = spawn("""
        from noria.contracts.port import BlobStore
        async def main():
            store, n = make(BlobStore), 0
            while True:
                n += 1
                await store.put("a", f"b{n:05}", bytes([n % 256]) * 300_000)
                say(n)
        asyncio.run(main())
    """)
    answered = [int(writer.line()) for _ in range(10)]
    answered += [int(line) for line in writer.kill() if line]
    store = make(BlobStore)
    names = await store.list("a")
    assert {f"b{n:05}" for n in answered} <= set(names)
    assert len(names) - len(answered) <= 1
    for name in names:
        assert await store.get("a", name) == bytes([int(name[1:]) % 256]) * 300_000


async def test_tenant_b_cannot_read_list_change_or_infer_the_blobs_of_a(store):
    await store.put("a", "dir/x", b"secret")
    for other in ("b", "A", "a ", "a%", "_", "ab"):
        assert await store.get(other, "dir/x") is None
        assert await store.list(other) == []
        assert await store.list(other, "dir") == []
        assert await store.delete(other, "dir/x") is False
    # The same names are free to B, with other content, and deleting B's leaves A's alone.
    await store.put("b", "dir/x", b"b")
    assert await store.get("b", "dir/x") == b"b"
    assert await store.delete("b", "dir/x") is True
    assert await store.get("a", "dir/x") == b"secret"


@pytest.mark.parametrize("name", ["../a/dir/x", "dir/../../a/dir/x", "/a/dir/x", "..", ".", "a/../../a/dir/x", "\\..\\a"])
async def test_no_name_leads_out_of_its_tenant(store, name):
    await store.put("a", "dir/x", b"secret")
    with suppress(NoriaError):  # refusing such a name is as good as keeping it
        assert await store.get("b", name) is None
    with suppress(NoriaError):
        await store.put("b", name, b"b")
    with suppress(NoriaError):
        await store.list("b", name)
    with suppress(NoriaError):
        await store.delete("b", name)
    assert await store.get("a", "dir/x") == b"secret"
    assert await store.list("a") == ["dir/x"]
