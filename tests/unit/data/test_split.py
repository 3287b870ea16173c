"""`data.split`: a row stays where it was, and a group is on one side."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noria.contracts.error import ConfigError
from noria.data.split import Placed, assign, read_ratios

RATIOS = read_ratios("train=0.8,validation=0.1,test=0.1")
placed_ = st.lists(st.tuples(st.integers(0, 60), st.sampled_from("abc")), max_size=120).map(
    lambda pairs: [Placed(f"r{n}", f"u{unit}", label) for n, (unit, label) in enumerate(pairs)]
)
many = [Placed(f"r{n}", f"u{n}", "rare" if n % 50 == 0 else "common") for n in range(5000)]


@given(placed_, st.booleans(), st.randoms())
def test_no_group_is_on_both_sides_and_order_does_not_matter(placed, stratify, random):
    ratios = read_ratios("train=0.5,test=0.5", stratify=stratify)
    of = assign(placed, ratios)
    assert of.keys() == {p.row for p in placed}
    assert all(len({of[p.row] for p in placed if p.unit == u}) == 1 for u in {p.unit for p in placed})
    shuffled = list(placed)
    random.shuffle(shuffled)
    assert assign(shuffled, ratios) == of


@given(placed_, placed_)
def test_rows_that_come_later_move_nobody(before, after):
    later = [Placed(f"new-{p.row}", p.unit, p.label) for p in after]
    of = assign(before, RATIOS)
    assert {r: s for r, s in assign([*before, *later], RATIOS).items() if r in of} == of


def test_shares_are_kept_and_another_seed_splits_otherwise():
    of = assign(many, RATIOS)
    counts = Counter(of.values())
    assert counts["train"] == pytest.approx(4000, abs=120)
    assert counts["test"] == pytest.approx(500, abs=90)
    other = assign(many, read_ratios("train=0.8,validation=0.1,test=0.1", seed="2"))
    assert sum(of[r] != other[r] for r in of) > 1000


def test_the_split_is_the_same_for_ever():
    assert [assign([Placed("r", f"u{n}", "")], RATIOS)["r"] for n in range(12)] == [
        "train", "train", "train", "train", "train", "train", "train", "test", "train", "train", "train", "train",
    ]  # fmt: skip


def test_stratified_gives_each_label_its_shares():
    of = assign(many, read_ratios("train=0.8,test=0.2", stratify=True))
    rare = Counter(of[p.row] for p in many if p.label == "rare")
    assert rare == {"train": 80, "test": 20}


def test_what_has_a_split_keeps_it_and_takes_its_group_along():
    kept = {"u1": "test", "u2": "train"}
    of = assign([Placed("a", "u1", ""), Placed("b", "u1", ""), Placed("c", "u2", ""), Placed("d", "u3", "")], RATIOS, kept=kept)
    assert (of["a"], of["b"], of["c"]) == ("test", "test", "train")


@pytest.mark.parametrize(
    "text", ["", "train", "train=x", "train=0.5", "train=0.5,train=0.5", "a/b=1", "train=1.2", "train=0.5,test=0.6", "=1"]
)
def test_shares_that_cannot_be_meant_are_refused(text):
    with pytest.raises(ConfigError):
        read_ratios(text)
