"""`data.dedup` and `data.leak`: what counts as the same, and who stays."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from noria.contracts.dataset import Row, Source
from noria.contracts.error import ConfigError
from noria.data.dedup import Likeness, check, duplicates, shingles
from noria.data.leak import leaks

LIKE = Likeness()


def row(text: str, label: str = "", answer: str = "", release: str = "") -> Row:
    return Row(({"role": "user", "content": text},), answer, label, source=Source("file", "", release=release))


def gone(*rows: tuple[str, Row], likeness: Likeness = LIKE):
    return {r.row: r for r in duplicates(rows, likeness)}


LONG = "please tell me how i can change the delivery address of an order that has been sent out already this morning by post"
WORDS = LONG.split()


def test_exact_duplicates_go_whatever_their_width_case_and_space():
    found = gone(("b", row("Where is my ORDER?")), ("a", row("where  is my order?")), ("c", row("where is my other order?")))
    assert found.keys() == {"b"}
    assert (found["b"].stage, found["b"].rule, found["b"].survivor, found["b"].value) == ("dedup", "exact", "a", 1.0)


def test_near_duplicates_go_with_their_similarity():
    found = gone(
        ("a", row(LONG)), ("b", row(LONG + " please")), ("c", row("something else entirely, said in as many words as that"))
    )
    assert found.keys() == {"b"}
    assert found["b"].rule == "near"
    assert found["b"].value == pytest.approx(21 / 22, abs=1e-4)
    assert found["b"].threshold == 0.8


def test_chinese_is_compared_by_characters():
    text = "请问我昨天下的订单什么时候可以送到北京市海淀区"
    assert shingles("重置密码", LIKE) == ["重置密", "置密码"]
    found = gone(("a", row(text)), ("b", row(text + "呢")), ("c", row("苹果手机充电很慢而且很容易发热怎么处理")))
    assert found.keys() == {"b"}
    assert found["b"].rule == "near"


def test_only_exact_where_near_is_not_asked_for():
    assert gone(("a", row(LONG)), ("b", row(LONG + " please")), likeness=Likeness(near=None)) == {}


def test_answers_and_labels_count_where_they_are_asked_for():
    one, two = ("a", row(LONG, answer="Yes, of course, at any time.")), ("b", row(LONG, answer="That is not possible."))
    assert gone(one, two).keys() == {"b"}
    assert gone(one, two, likeness=Likeness(near=None, whole=True)) == {}


def test_the_row_that_is_worth_more_stays():
    labelled, bare, said = row(LONG, "move"), row(LONG), row(LONG, "move", release="r1:aa")
    assert gone(("a", bare), ("b", labelled)).keys() == {"a"}
    assert gone(("a", said), ("b", labelled)).keys() == {"a"}, "what a person wrote goes before what a model said"
    assert gone(("a", labelled), ("b", labelled)).keys() == {"b"}


def test_labels_that_differ_are_told():
    assert gone(("a", row(LONG, "x")), ("b", row(LONG, "y")))["b"].detail == "labels differ: y here, x there"


def test_a_chain_of_near_rows_loses_only_what_is_near_a_row_that_stays():
    texts = [WORDS[n : n + 18] for n in range(5)]
    found = gone(*((f"{n}", row(" ".join(t))) for n, t in enumerate(texts)))
    assert all(r.survivor not in found and r.value >= 0.8 for r in found.values())


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rng: random.Random):
    vocabulary = WORDS[:8]
    rows = [(f"{n:03}", row(" ".join(rng.choices(vocabulary, k=rng.randint(1, 8))))) for n in range(60)]
    before = list(duplicates(rows, LIKE))
    rng.shuffle(rows)
    assert list(duplicates(rows, LIKE)) == before


def test_planted_near_duplicates_are_found():
    rng = random.Random(1)
    vocabulary = [f"w{n}" for n in range(2000)]
    originals = [rng.choices(vocabulary, k=40) for _ in range(300)]
    copies = [[*o[:20], "changed", *o[21:]] for o in originals]  # 35 of 41 shingles are shared: .854
    rows = [(f"a{n}", row(" ".join(o))) for n, o in enumerate(originals)] + [
        (f"b{n}", row(" ".join(c))) for n, c in enumerate(copies)
    ]
    found = gone(*rows)
    assert sum(f"b{n}" in found and found[f"b{n}"].survivor == f"a{n}" for n in range(300)) >= 297
    assert not any(f"a{n}" in found for n in range(300))


def test_empty_and_tiny_texts_do_no_harm():
    found = gone(("a", row("")), ("b", row("")), ("c", row("!!!")), ("d", row("ok")), ("e", row("ok")))
    assert found.keys() == {"b", "e"}


@pytest.mark.parametrize("likeness", [Likeness(near=0.1), Likeness(near=1.5), Likeness(words=0), Likeness(chars=99)])
def test_settings_that_cannot_be_meant_are_refused(likeness):
    with pytest.raises(ConfigError):
        check(likeness)


def test_the_gate_names_each_pair():
    train = [("t1", row(LONG)), ("t2", row("how do i cancel")), ("t3", row("nothing of the kind"))]
    judged = [
        ("e1", row("How do I cancel")),
        ("e2", row(LONG + " please")),
        ("e3", row("is there a shop in my town that is open on sundays")),
    ]
    found = leaks(train, judged, LIKE)
    assert not found.passed
    assert [(p.evaluation, p.train, p.rule) for p in found.pairs] == [("e1", "t2", "exact"), ("e2", "t1", "near")]
    assert (found.train, found.evaluation, found.exact, found.near) == (3, 3, 1, 1)
    assert found.share == pytest.approx(2 / 3, abs=1e-6)
    assert leaks(train, judged, LIKE, allowed=0.7).passed
    assert leaks(train, judged[2:], LIKE).passed


def test_an_answer_that_differs_is_no_excuse():
    assert not leaks([("t", row(LONG, "a"))], [("e", replace(row(LONG), answer="other"))], LIKE).passed


def test_nothing_to_judge_by_proves_nothing():
    assert not leaks([("t", row(LONG))], [], LIKE).passed
