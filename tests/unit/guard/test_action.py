import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.release import GuardRule
from noria.contracts.verdict import Finding, Verdict
from noria.guard.action import Vault, findings_of, merge, refusal, replace, scrub, word_of

SPANS = st.lists(
    st.builds(lambda a, n, label: Finding(label, a, a + n), st.integers(0, 40), st.integers(0, 12), st.sampled_from("abc")),
    max_size=10,
)


def test_overlapping_findings_are_one_under_the_label_of_the_longest():
    assert merge([Finding("phone", 5, 12), Finding("card", 0, 10), Finding("ip", 20, 22)]) == [
        Finding("card", 0, 12),
        Finding("ip", 20, 22),
    ]


def test_of_equally_long_findings_the_strongest_names_the_span():
    assert merge([Finding("a", 0, 4, 0.5), Finding("b", 0, 4, 0.9)])[0].label == "b"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(SPANS)
def test_merged_findings_are_disjoint_and_cover_exactly_what_was_found(spans):
    merged = merge(spans)
    covered = [i for f in merged for i in range(f.start, f.end)]
    assert len(covered) == len(set(covered))
    assert set(covered) == {i for f in spans for i in range(f.start, f.end)}
    assert merged == merge(reversed(spans))


def test_scrubbing_leaves_the_label_only():
    assert scrub("a bob@x.io b", [Finding("email", 2, 10)]) == "a [EMAIL] b"


def test_the_same_original_gets_the_same_placeholder():
    vault = Vault(lambda: ["text"])
    assert [vault.placeholder(*p) for p in [("email", "a@b"), ("email", "c@d"), ("phone", "a@b")]] == [
        "[EMAIL_1]",
        "[EMAIL_2]",
        "[EMAIL_1]",
    ]
    assert vault.pairs == (("[EMAIL_1]", "a@b"), ("[EMAIL_2]", "c@d"))


def test_a_placeholder_that_stands_in_the_text_already_is_never_given_out():
    vault = Vault(lambda: ["see [EMAIL_1] and", "[EMAIL_3]"])
    assert [vault.placeholder("email", o) for o in "abc"] == ["[EMAIL_2]", "[EMAIL_4]", "[EMAIL_5]"]


def test_a_vault_goes_on_where_an_earlier_one_ended():
    vault = Vault(list, (("[EMAIL_1]", "a"),))
    assert vault.placeholder("email", "a") == "[EMAIL_1]"
    assert vault.placeholder("email", "b") == "[EMAIL_2]"


def test_a_refusal_names_check_and_labels_but_never_the_text():
    verdict = Verdict.of("pii", (Finding("email", 0, 3), Finding("card", 4, 6)))
    error = refusal(GuardRule("pii", "block"), verdict, "prompt")
    assert error.message == "The prompt was refused by the guard 'pii' (card, email)."
    assert (error.code, error.status, error.check, error.side) == ("content_filter", 400, "pii", "prompt")
    assert refusal(GuardRule("pii", "block", message="No."), verdict, "prompt").message == "No."


def test_a_failed_verdict_without_spans_means_the_whole_text():
    assert findings_of(Verdict("toxic", False, 0.9), 5) == (Finding("toxic", 0, 5, 0.9),)
    assert findings_of(Verdict("toxic", True, 0.1, (Finding("x", 0, 1),)), 5) == ()


@pytest.mark.parametrize(("label", "word"), [("openai_key", "OPENAI_KEY"), ("a b]c", "A_B_C"), ("姓名", "MASKED")])
def test_placeholders_hold_only_letters_digits_and_underscores(label, word):
    assert word_of(label) == word


def test_replace_gives_label_and_original():
    assert replace("abcd", [Finding("x", 1, 3)], lambda label, original: f"<{label}:{original}>") == "a<x:bc>d"
