"""`data.row`: what a row's id is over, and how it is sealed."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from noria.contracts.dataset import Member, Row, Source, StoredRow
from noria.contracts.error import StoreError
from noria.data.row import Erased, Sealer, content_of, leaf, normal, prompt_key, prompt_of, version_id
from noria.kit.ids import canonical
from noria.kit.merkle import holds, proof

KEY, OTHER = b"k" * 32, b"o" * 32
ROW = Row(
    ({"role": "user", "content": "怎么重置密码？"},),
    "点“忘记密码”。",
    "reset",
    "zh",
    "g1",
    "ann",
    Source("file", "f:1"),
    {"a": "b"},
)

rows = st.builds(
    Row,
    messages=st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text(max_size=30)}), max_size=3).map(tuple),
    answer=st.text(max_size=20),
    label=st.text(max_size=5),
    group=st.text(max_size=5),
    tags=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
    source=st.builds(Source, origin=st.sampled_from(["file", "trace"]), ref=st.text(max_size=5), at_ns=st.integers(0, 2**62)),
)


@given(rows)
def test_the_content_is_canonical_json(row):
    assert content_of(row) == canonical(msgspec.json.decode(content_of(row)))


@given(rows, rows)
def test_equal_ids_mean_equal_content(one, other):
    plain = [replace(r, source=replace(r.source, ref="", at_ns=0)) if r.source.origin == "file" else r for r in (one, other)]
    assert (Sealer(KEY).name(one) == Sealer(KEY).name(other)) == (plain[0] == plain[1])


@pytest.mark.parametrize(
    "changed",
    [
        {"messages": ({"role": "user", "content": "怎么重置密码?"},)},
        {"messages": ({"role": "system", "content": "怎么重置密码？"},)},
        {"answer": "点“忘记密码”"},
        {"label": "Reset"},
        {"lang": ""},
        {"group": "g2"},
        {"subject": "bob"},
        {"tags": {"a": "c"}},
        {"source": Source("trace", "f:1")},
        {"source": Source("file", "f:1", release="r1:aa")},
    ],
    ids=str,
)
def test_any_change_changes_the_id(changed):
    assert Sealer(KEY).name(replace(ROW, **changed)) != Sealer(KEY).name(ROW)


def test_where_in_a_file_a_row_stood_does_not_matter_but_which_exchange_it_was_does():
    assert Sealer(KEY).name(replace(ROW, source=Source("file", "other:7", 5))) == Sealer(KEY).name(ROW)
    one, two = (replace(ROW, source=Source("trace", ref)) for ref in ("x1", "x2"))
    assert Sealer(KEY).name(one) != Sealer(KEY).name(two)


def test_a_number_in_a_message_is_written_as_the_standard_says():
    row = replace(ROW, messages=({"role": "user", "content": [{"type": "text", "text": "x", "n": 1e21}]},))
    assert b"1e+21" in content_of(row)


def test_an_id_tells_nothing_without_the_key():
    assert Sealer(OTHER).name(ROW) != Sealer(KEY).name(ROW)


@given(rows)
def test_what_is_sealed_comes_out_as_it_was(row):
    sealer = Sealer(KEY)
    assert sealer.open("a", sealer.seal("a", row)) == row


def test_equal_rows_do_not_look_equal_when_sealed():
    assert Sealer(KEY).seal("a", ROW).data != Sealer(KEY).seal("a", ROW).data


@pytest.mark.parametrize("at", [8, 20, 30, -1])
def test_a_changed_byte_is_damage(at):
    stored = Sealer(KEY).seal("a", ROW)
    data = bytearray(stored.data)
    data[at] ^= 1
    with pytest.raises(StoreError, match=stored.id[:12]):
        Sealer(KEY).open("a", StoredRow(stored.id, "ann", bytes(data)))


def test_a_row_under_another_id_or_of_another_tenant_is_damage():
    stored = Sealer(KEY).seal("a", ROW)
    with pytest.raises(StoreError):
        Sealer(KEY).open("b", stored)
    with pytest.raises(StoreError):
        Sealer(KEY).open("a", StoredRow("0" * 64, "ann", stored.data))


def test_a_row_that_does_not_have_the_content_of_its_id_is_damage():
    class Forger(Sealer):
        def name(self, row):
            return "0" * 64

    with pytest.raises(StoreError, match="content of its id"):
        Sealer(KEY).open("a", Forger(KEY).seal("a", ROW))


def test_a_row_whose_key_was_destroyed_is_erased_and_not_damaged():
    stored = Sealer(KEY).seal("a", ROW)
    with pytest.raises(Erased):
        Sealer(OTHER).open("a", stored)


members = st.dictionaries(
    st.binary(min_size=32, max_size=32).map(bytes.hex), st.sampled_from(["train", "test"]), min_size=1, max_size=30
)


def version(listed: dict[str, str]) -> str:
    return version_id(Member(row, listed[row]) for row in sorted(listed))


@given(members, st.randoms())
def test_the_order_of_rows_changes_nothing_and_any_change_of_one_does(listed, random):
    shuffled = list(listed.items())
    random.shuffle(shuffled)
    assert version(dict(shuffled)) == version(listed)
    row = random.choice(list(listed))
    moved = listed | {row: "train" if listed[row] == "test" else "test"}
    assert version(moved) != version(listed)
    changed = dict(listed)
    split = changed.pop(row)
    assert version(changed | {f"{int(row, 16) ^ 1 << random.randrange(256):064x}": split}) != version(listed)
    if changed:
        assert version(changed) != version(listed)


def test_that_a_row_is_in_a_version_can_be_proven_without_the_others():
    listed = [Member(f"{n:064x}", "train") for n in range(7)]
    leaves = [leaf(m) for m in listed]
    top = bytes.fromhex(version_id(listed).removeprefix("d1:"))
    assert holds(leaves[4], 4, 7, proof(leaves, 4), top)
    assert not holds(leaf(Member(f"{4:064x}", "test")), 4, 7, proof(leaves, 4), top)


def test_prompts_are_the_same_whatever_their_width_case_and_space():
    assert normal(" Ｒｅｓｅｔ\tmy  PASSWORD\n") == "reset my password"
    one, two = (Row(({"role": "user", "content": c},), label=name) for c, name in (("Hi  there", "a"), ("hi there", "b")))
    assert prompt_key(one) == prompt_key(two)
    parts = Row(
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]},)
    )
    assert prompt_of(parts) == "a\nb"
