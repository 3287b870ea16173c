from __future__ import annotations

import pytest

from noria.gateway.wording import agree, wording


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Show me the flights from Boston to Denver", "please list flights from boston to denver"),
        ("What is the refund policy?", "tell me about the refund policy"),
        ("How do I reset my password?", "how can I reset the password"),
        ("怎么开通花呗", "麻烦，怎么开通花呗呢"),
        ("怎么开通花呗", "如何开通花呗啊"),
        ("Mail [EMAIL_1] the report", "please mail [EMAIL_1] the report"),
    ],
)
def test_courtesy_and_articles_may_differ(one, other):
    assert agree(wording(one), wording(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("flights from boston to denver", "flights from denver to boston"),
        ("flights to boston", "flights from boston"),
        ("Convert 10 dollars", "Convert 100 dollars"),
        ("Convert 10 dollars", "Convert ten dollars"),
        ("is it 5% or 6%", "is it 6% or 5%"),
        ("meeting on 2026-01-02", "meeting on 2026-02-01"),
        ("Can I pay by card?", "Can't I pay by card?"),
        ("Is it safe?", "Is it not safe?"),
        ("Is it safe?", "Is it unsafe?"),
        ("with sugar", "without sugar"),
        ('translate "good morning"', 'translate "good evening"'),
        ("Who is Ann Miller?", "Who is Ann Mills?"),
        ("why is my card blocked", "how is my card blocked"),
        ("when does it open", "where does it open"),
        ("turn the light on", "turn the light off"),
        ("before lunch", "after lunch"),
        ("mail [EMAIL_1]", "mail [EMAIL_2]"),
        ("what is a - b", "what is a + b"),
        ("显示花呗", "不显示花呗"),
        ("怎么开通花呗", "为什么开通花呗"),
        ("怎么开通花呗", "怎么关闭花呗"),
        ("今天天气", "明天天气"),
        ("三点叫我", "四点叫我"),
        ("我能用花呗吗", "我用花呗了"),
        ("翻译“早上好”", "翻译“晚上好”"),
        ("他喜欢你", "你喜欢他"),
    ],
)
def test_what_carries_the_difference_must_agree(one, other):
    assert not agree(wording(one), wording(other))


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "?!", "a" * 10_000, "“" * 50, "'" * 99, "[" * 999, "不" * 99, "1" * 5000, "世a1" * 500]
)
def test_odd_texts_have_a_wording_too(text):
    assert agree(wording(text), wording(text))


def test_the_width_of_characters_does_not_count():
    assert agree(wording("ＡＢＣ　１２３"), wording("abc 123"))
