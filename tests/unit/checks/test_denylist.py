import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.checks.denylist import Denylist, DenylistOptions, fold
from noria.contracts.error import ConfigError
from noria.contracts.stage import Sample


def found(text, *terms):
    check = Denylist(DenylistOptions(terms=list(terms)))
    return [text[f.start : f.end] for f in check.judge(Sample(input=text)).findings]


@pytest.mark.parametrize(
    ("text", "term", "value"),
    [
        ("this BadWord here", "badword", "BadWord"),
        ("badwords", "badword", None),
        ("绝机密件", "机密", "机密"),
        ("买iPhone手机", "iphone", "iPhone"),
        ("myiPhone手机", "iphone手机", None),
        ("Project\n   Falcon!", "project falcon", "Project\n   Falcon"),
        ("ＢＡＤ word", "bad", "ＢＡＤ"),
        ("bad\u200bword", "badword", "bad\u200bword"),
        ("cafe\u0301 au lait", "café", "cafe\u0301"),
        ("STRASSE", "straße", "STRASSE"),
        ("плохое слово", "ПЛОХОЕ", "плохое"),
        ("неплохое", "плохое", None),
        ("C++ is", "c++", "C++"),
        ("ﬁre", "fire", "ﬁre"),
    ],
)
def test_terms_are_found_folded_and_whole(text, term, value):
    assert found(text, term) == ([value] if value else [])


def test_the_longest_of_overlapping_terms_is_one_finding():
    assert found("top secret plan", "secret", "top secret") == ["top secret"]
    assert found("abc 甲乙丙", "甲乙", "乙丙") == ["甲乙丙"]


def test_terms_of_a_file_count_too_and_comments_do_not(tmp_path):
    file = tmp_path / "terms.txt"
    file.write_text("# list\nalpha\n\n机密\n", encoding="utf-8")
    check = Denylist(DenylistOptions(terms=["beta"], file=str(file)))
    assert len(check.judge(Sample(input="alpha beta list 机密")).findings) == 3


def test_a_missing_file_and_a_term_without_end_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.txt"):
        Denylist(DenylistOptions(file=str(tmp_path / "none.txt")))
    with pytest.raises(ConfigError, match="129 characters"):
        Denylist(DenylistOptions(terms=["x" * 129]))


def test_an_empty_list_finds_nothing():
    assert found("anything") == []


def test_the_label_never_repeats_the_term():
    check = Denylist(DenylistOptions(terms=["falcon"]))
    assert check.judge(Sample(input="falcon")).findings[0].label == "term"


def test_only_a_beginning_of_a_term_is_unsettled():
    check = Denylist(DenylistOptions(terms=["project falcon", "机密文件"]))
    assert check.settled("the project ") == 4
    assert check.settled("the weather ") == 12
    assert check.settled("这是机") == 2
    assert check.settled("这是天") == 3


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.text(alphabet="aA\u0301é  \n\u200bﬁß机密İΣ가\u1100\u1161\u11a8", max_size=30),
    st.text(alphabet="aéﬁs机密 ", min_size=1, max_size=4),
)
def test_folded_offsets_rise_and_findings_lie_in_the_text(text, term):
    _, at = fold(text)
    assert at is None or (at == sorted(at) and at[-1] == len(text))
    check = Denylist(DenylistOptions(terms=[term]))
    for f in check.judge(Sample(input=text)).findings:
        assert 0 <= f.start < f.end <= len(text)
    assert 0 <= check.settled(text) <= len(text)


def test_a_release_pins_the_terms_of_a_file_and_not_its_path(tmp_path) -> None:
    path = tmp_path / "terms.txt"
    path.write_text("# a comment\nforbidden\n机密\n")
    pinned = Denylist.pin({"file": str(path), "terms": ["secret"]})
    assert pinned == {"terms": ["secret", "forbidden", "机密"]}
    assert Denylist.pin({"terms": ["a"]}) == {"terms": ["a"]}
