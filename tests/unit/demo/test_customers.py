"""Who writes in the demo: dealt out so that nobody is learned from and asked again."""

from __future__ import annotations

import pytest

from noria.contracts.error import ConfigError
from noria.demo.customers import Deal, Intent, Message, acts, intents, messages
from noria.demo.size import FAST, FULL

KNOWN = tuple(Intent(name, since, {}, {}) for name, since in (("old", "v1"), ("older", "v1"), ("new", "v2")))


def some(intent: str, count: int, each: int = 1) -> list[Message]:
    return [
        Message(f"{intent}-{n}-{k}", f"{intent} {n}", intent, "en", f"{intent}{n}") for n in range(count) for k in range(each)
    ]


def test_each_act_gets_its_share_and_new_intents_come_late() -> None:
    found = acts([*some("old", 20), *some("older", 20), *some("new", 20)], KNOWN, Deal(8, 3, 2, 5))
    assert [len(a) for a in found] == [16, 6, 9, 29]
    assert {m.intent for m in (*found.history, *found.before)} == {"old", "older"}
    assert sum(m.intent == "new" for m in found.after) == 5


def test_a_customer_is_in_one_act_with_all_that_they_wrote() -> None:
    found = acts(some("old", 20, each=3), KNOWN, Deal(9, 6, 6, 0))
    of = [{m.group for m in act} for act in found]
    assert sum(map(len, of)) == len(set().union(*of)) == 20
    assert [len(a) for a in found] == [9, 6, 6, 39]


def test_the_same_seed_deals_the_same_and_another_one_otherwise() -> None:
    said = [*some("old", 20), *some("new", 20)]
    assert acts(said, KNOWN, Deal(5, 5, 5, 5), seed=1) == acts(said, KNOWN, Deal(5, 5, 5, 5), seed=1)
    assert acts(said, KNOWN, Deal(5, 5, 5, 5), seed=1) != acts(said, KNOWN, Deal(5, 5, 5, 5), seed=2)


@pytest.mark.parametrize("size", [FULL, FAST], ids=["full", "fast"])
def test_the_help_desk_suffices_for_the_demo(size) -> None:
    known, said = intents(), messages()
    found = acts(said, known, size.deal)
    assert min(len(found.before), len(found.after)) >= 100, "drift needs enough of both"
    assert len(found.rest) >= 500, "two canaries"
    assert {i.id for i in known} == {m.intent for m in found.after} == {m.intent for m in found.rest}
    assert sorted(m.id for act in found for m in act) == sorted(m.id for m in said)


def test_a_folder_without_a_help_desk_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"intents\.json cannot be read"):
        intents(tmp_path)
    (tmp_path / "utterances_en.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"utterances_en\.jsonl cannot be read"):
        messages(folder=tmp_path)
