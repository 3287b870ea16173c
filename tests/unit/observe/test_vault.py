import msgspec
import pytest

from noria.contracts.error import StoreError
from noria.contracts.exchange import Usage
from noria.contracts.trace import ExchangeRow
from noria.observe.vault import TOGETHER, Packing, Remembered, Vault

DAY = 86_400_000_000_000


def row(id: str, **changes) -> ExchangeRow:
    empty = dict.fromkeys(ExchangeRow.__struct_fields__[: -len(ExchangeRow.__struct_defaults__)], "")
    numbers = {"started_ns": 7, "status": 200, "duration_ns": 1, "overhead_ns": 1, "ttft_ns": None, "cost_nanousd": None}
    rest = {"stages": (), "attempts": (), "rulings": (), "request": b"", "answer": b"", "usage": Usage()}
    words = {"tenant": "local", "id": id, "kind": "chat", "outcome": "ok", "cost_status": "unknown"}
    base = ExchangeRow(**{**empty, **numbers, **rest, **words, "stream": False, "answer_is_sse": False})
    return msgspec.structs.replace(base, **changes)


def vaults(*subjects: str) -> dict[str, Vault]:
    return {s: Vault(s.encode().ljust(32, b"k")) for s in ("", *subjects)}


def pack(rows, stored=None, of=None):
    packing = Packing("local", of or vaults(), stored or Remembered())
    return packing.take(rows), packing.close(), packing.names


def test_bodies_sealed_together_open_only_together_and_in_their_order():
    vault = Vault(b"k" * 32)
    data = vault.seal_all("local", ["a", "b"], [b"first", b"x" * 5000])
    assert vault.open_all("local", ["a", "b"], data) == [b"first", b"x" * 5000]
    assert len(data) < 200
    for ids in (["b", "a"], ["a"], ["a", "b", "c"]):
        with pytest.raises(StoreError, match="cannot be decrypted"):
            vault.open_all("local", ids, data)
    with pytest.raises(StoreError, match="cannot be decrypted"):
        vault.open_all("other", ["a", "b"], data)


def test_one_body_is_sealed_as_it_always_was():
    vault = Vault(b"k" * 32)
    assert vault.open("local", "a", vault.seal_all("local", ["a"], [b"x" * 900])) == b"x" * 900


def test_small_bodies_of_a_subject_are_one_and_never_two_subjects():
    of = vaults("s")
    rows = [row(f"e{i}", subject="s" * (i % 2), request=b"asked %d" % i, answer=b"told %d" % i) for i in range(6)]
    named, bodies, _ = pack(rows, of=of)
    assert sorted((b.subject, 1 + len(b.beside)) for b in bodies) == [("", 6), ("s", 6)]
    there = {}
    for b in bodies:
        ids = (b.id, *b.beside)
        there |= zip(ids, of[b.subject].open_all("local", ids, b.data), strict=True)
    assert [(there[asked], there[told]) for _, asked, told in named] == [(r.request, r.answer) for r in rows]


def test_bodies_are_sealed_in_pieces_and_large_ones_alone():
    large = row("large", request=b"L" * TOGETHER)
    rows = [large, *(row(f"e{i}", request=b"%05d" % i * 2000) for i in range(20))]
    _, bodies, _ = pack(rows)
    assert [len(b.beside) for b in bodies] == [0, 6, 6, 5]


def test_what_is_stored_under_its_day_is_not_sealed_again():
    stored = Remembered()
    _, bodies, names = pack([row("1", request=b"same"), row("2", request=b"same")], stored)
    assert len(bodies) == 1
    stored.add(names)
    named, again, _ = pack([row("3", request=b"same")], stored)
    assert again == []
    assert named[0][1] == bodies[0].id
    _, tomorrow, _ = pack([row("4", request=b"same", started_ns=DAY)], stored)
    assert [b.id for b in tomorrow] == [bodies[0].id]


def test_the_names_asked_for_last_are_remembered():
    stored = Remembered(2)
    a, b, c = (("t", 0, x) for x in "abc")
    stored.add([a, b])
    stored.add([a])
    stored.add([c])
    assert [x in stored for x in (a, b, c)] == [True, False, True]


def test_a_body_without_its_key_is_not_kept():
    named, bodies, names = pack([row("1", subject="gone", request=b"x")], of={**vaults(), "gone": None})
    assert (named[0][1:], bodies, names) == (("", ""), [], [])
    assert named[0][0].id == "1"
