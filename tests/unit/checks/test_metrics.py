"""Metrics against hand-computed values, and against what sacrebleu 2.6.0 and rouge-score 0.1.2 said of the same texts."""

from __future__ import annotations

import pytest

from noria.checks.bleu import Bleu, BleuOptions, split_13a, split_zh
from noria.checks.contains import Contains, ContainsOptions
from noria.checks.exact import Exact, ExactOptions
from noria.checks.f1 import F1, F1Options
from noria.checks.label import Label, LabelOptions
from noria.checks.length import Length, LengthOptions
from noria.checks.regex import Regex, RegexOptions
from noria.checks.rouge import Rouge, RougeOptions, common
from noria.contracts.error import ConfigError
from noria.contracts.evaluation import Pooled
from noria.contracts.stage import Sample


def score(check, said, wanted="", label=""):
    return check.judge(Sample(output=said, expected=wanted, label=label)).score


@pytest.mark.parametrize(
    ("said", "wanted", "same"),
    [
        ("Paris", "paris.", True),
        ("  New\nYork ", "new york", True),
        ("Ｐａｒｉｓ", "paris", True),
        ("the cat", "cat", False),
        ("好的。", "好的", True),
        ("", "", True),
        ("12", "1 2", False),
    ],
)
def test_exact_forgives_form_and_nothing_else(said, wanted, same):
    assert score(Exact(ExactOptions()), said, wanted) == float(same)


def test_exact_by_options():
    assert score(Exact(ExactOptions(case=True)), "Paris", "paris") == 0
    assert score(Exact(ExactOptions(punctuation=True)), "paris.", "paris") == 0
    assert score(Exact(ExactOptions(articles=False)), "the cat", "A cat") == 1
    assert score(Exact(ExactOptions(normalize=False)), "paris ", "paris") == 0


LABELS = ["balance", "bill_balance", "pay_bill", "转账", "oos"]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("balance", "balance"),
        ("The intent is Bill-Balance.", "bill_balance"),
        ("bill balance, not balance", "bill_balance"),
        ("balances", None),
        ("unbalance", None),
        ("我要转账给他", "转账"),
        ("pay  bill or balance", "pay_bill"),
        ("oos: pay_bill", "oos"),
        ("", None),
    ],
)
def test_the_first_label_that_an_answer_names_counts(answer, named):
    verdict = Label(LabelOptions(LABELS)).judge(Sample(output=answer, expected="x", label="bill_balance"))
    assert [f.label for f in verdict.findings] == ([named] if named else [])
    assert verdict.score == float(named == "bill_balance")


def test_a_label_has_aliases_and_an_answer_a_beginning():
    check = Label(LabelOptions(LABELS, aliases={"oos": ["none of these"]}, within=14))
    assert score(check, "None of these", "oos") == 1
    assert score(check, "I think it is oos", "oos") == 0


@pytest.mark.parametrize("wrong", [{"labels": []}, {"labels": ["a"], "aliases": {"b": ["c"]}}, {"labels": ["a b", "a_b"]}])
def test_a_set_of_labels_that_says_nothing_or_two_things_is_refused(wrong):
    with pytest.raises(ConfigError):
        Label(LabelOptions(**wrong))


@pytest.mark.parametrize(
    ("said", "wanted", "value"),
    [
        ("the cat sat", "a cat sat down", 2 * 2 / (2 + 3)),  # articles do not count
        ("cat cat", "cat", 2 * 1 / 3),
        ("我爱北京", "我爱上海", 0.5),
        ("", "", 1.0),
        ("x", "", 0.0),
        ("3.5!", "35", 1.0),
    ],
)
def test_f1_counts_words_and_chinese_characters(said, wanted, value):
    assert score(F1(F1Options()), said, wanted) == pytest.approx(value)


EN = [  # what sacrebleu 2.6.0 says, divided by 100
    ("The cat sat on the mat.", "The cat is on the mat.", 0.4889230224349009),
    ('He said, "it\'s 3.5% & more" - ok?', "He said: it's 3.5% & less, ok.", 0.2471244254525359),
    ("A quick-brown fox 4-5 jumps.", "A quick brown fox jumps 4-5 times.", 0.1978670910835195),
    ("the the the the", "the cat", 0.1597357760615681),
    ("no", "no", 1.0),
    ("short answer here now", "short answer here now", 1.0),
    ("", "something", 0.0),
]
ZH = [
    ("今天天气很好，我们去公园。", "今天天气不错，我们去公园玩。", 0.548449809220476),
    ("“你好”……3.5元GPT-4很好", "「你好」——3.5元，GPT-4非常好", 0.0978090152232118),
    ("我爱北京天安门", "我爱北京", 0.4111336169005198),
]


@pytest.mark.parametrize(("said", "wanted", "value"), [*EN, *ZH])
def test_sentence_bleu_is_sacrebleus(said, wanted, value):
    assert score(Bleu(BleuOptions()), said, wanted) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(("texts", "value"), [(EN, 0.32937648277227116), (ZH, 0.388897414571621), ([("a b", "a b", 1)], 0.0)])
def test_corpus_bleu_comes_of_summed_counts(texts, value):
    check = Bleu(BleuOptions())
    counts = [check.counts(Sample(output=said, expected=wanted)) for said, wanted, _ in texts]
    assert isinstance(check, Pooled)
    assert check.pooled([sum(column) for column in zip(*counts, strict=True)]) == pytest.approx(value, abs=1e-9)


def test_bleu_splits_as_it_is_told():
    words = ["U", ".", "S", ".", "costs", "$", "1,000.50", ",", "e", ".", "g", ".", "x-1", "3", "-", "4"]
    assert split_13a("U.S. costs $1,000.50, e.g. x-1 3-4") == words
    assert split_zh("3.5元，好 ok.") == ["3.5", "元", "，", "好", "ok", "."]
    assert score(Bleu(BleuOptions(lowercase=True)), "A B C D", "a b c d") == 1
    assert score(Bleu(BleuOptions(tokenize="13a")), "我爱北京", "我爱上海") == 0  # one word each, without zh


@pytest.mark.parametrize(
    ("said", "wanted", "value"),  # the first three: rouge-score 0.1.2, rougeL
    [
        ("the cat sat on the mat", "the cat is on a mat", 0.6666666666666666),
        ("it's 3.5 metres", "it was 3.5 meters long", 0.5454545454545454),
        ("a b c d", "d c b a", 0.25),
        ("我爱北京", "我也爱北京", 2 * 4 / 9),
        ("", "", 1.0),
        ("a", "", 0.0),
    ],
)
def test_rouge_l_is_the_reference_ones(said, wanted, value):
    assert score(Rouge(RougeOptions()), said, wanted) == pytest.approx(value)


def test_the_longest_common_subsequence_by_bits_is_that_by_the_table():
    def table(a, b):
        row = [0] * (len(b) + 1)
        for x in a:
            row = [0, *(max(old + 1 if x == y else 0, above, 0) for old, above, y in zip(row, row[1:], b, strict=False))]
            for j in range(1, len(row)):
                row[j] = max(row[j], row[j - 1])
        return row[-1]

    for a, b in [("abcbdab", "bdcaba"), ("aaaa", "aa"), ("xmjyauz", "mzjawxu"), ("abc", "def"), ("a", "a")]:
        assert common(list(a), list(b)) == table(a, b)


def test_regex_contains_and_length():
    assert score(Regex(RegexOptions(r"\d+ EUR")), "that is 12 EUR") == 1
    assert score(Regex(RegexOptions(r"\d+ EUR", whole=True)), "that is 12 EUR") == 0
    assert score(Regex(RegexOptions("eur", ignore_case=True, absent=True)), "12 EUR") == 0
    with pytest.raises(ConfigError, match="regular expression"):
        Regex(RegexOptions("("))
    assert score(Contains(ContainsOptions()), "It is PARIS.", "paris") == 1
    assert score(Contains(ContainsOptions(all=["a1", "b2"])), "only A1") == 0.5
    assert score(Contains(ContainsOptions(any=["x", "only"], none=["sorry"])), "only sorry") == 0
    assert score(Length(LengthOptions(least=2, most=3, unit="words")), "我爱你") == 1
    assert score(Length(LengthOptions(most=3)), "four") == 0
    with pytest.raises(ConfigError):
        Length(LengthOptions(least=3, most=2))
