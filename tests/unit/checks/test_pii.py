import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.checks.pii import Pii, PiiOptions
from noria.contracts.error import ConfigError
from noria.contracts.stage import Sample

PII = Pii(PiiOptions())
DATA = Path(__file__).parents[4] / "shared/data/pii"


def found(text, check=PII):
    return [(f.label, text[f.start : f.end]) for f in check.judge(Sample(input=text)).findings]


@pytest.mark.parametrize(
    ("text", "label", "value"),
    [
        ("write to bob.smith+x@mail.example.co.uk.", "email", "bob.smith+x@mail.example.co.uk"),
        ("邮箱zhang@example.com，谢谢", "email", "zhang@example.com"),
        ("Grüße an jürgen@example.de!", "email", "jürgen@example.de"),
        ("tel (415) 555-2671.", "phone", "(415) 555-2671"),
        ("978-645-9740x11144", "phone", "978-645-9740x11144"),
        ("ring +46 (0)8 928 571 38 today", "phone", "+46 (0)8 928 571 38"),
        ("手机号13812345678。", "phone", "13812345678"),
        ("我的电话是 +86 138-1234-5678", "phone", "+86 138-1234-5678"),
        ("１３８１２３４５６７８", "phone", "１３８１２３４５６７８"),
        ("座机010-66775823。", "phone", "010-66775823"),
        ("please call 07700 063 966", "phone", "07700 063 966"),
        ("身份证510107198511208134，", "cn_id", "510107198511208134"),
        ("42010620060503291X", "cn_id", "42010620060503291X"),
        ("card 4111-1111-1111-1111 2026", "card", "4111-1111-1111-1111"),
        ("卡号6214 8336 6875 9751 041", "card", "6214 8336 6875 9751 041"),
        ("amex 378282246310005", "card", "378282246310005"),
        ("DE89 3704 0044 0532 0130 00 please", "iban", "DE89 3704 0044 0532 0130 00"),
        ("GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
        ("ssn 078-05-1120", "ssn", "078-05-1120"),
        ("my social security number is 078051120", "ssn", "078051120"),
        ("from 192.168.1.20.", "ip", "192.168.1.20"),
        ("fe80::1ff:fe23:4567:890a", "ip", "fe80::1ff:fe23:4567:890a"),
    ],
)
def test_personal_data_is_found_with_its_exact_span(text, label, value):
    assert found(text) == [(label, value)]


@pytest.mark.parametrize(
    "text",
    [
        "", "hello", "订单号74308172391096713058已发货，金额59047.27元，预计2024-06-25送达。", "510107198511208135", "4111 1111 1111 1112",
        "DE89 3704 0044 0532 0130 01", "000-12-3456", "666-12-3456", "123-00-4567", "912-12-3456", "build 078051120", "Chrome/120.0.0.0",
        "127.0.0.1", "300.1.1.1", "1.2.3.4.5", "std::dead 12:34:56 ::", "2024-06-25 12:34:56", "version 10.2.1", "a@b", "x1381234567812345",
        "sha1 a13812345678f", "629609771138", "0.13812345678", "$1,234,567.89", "from 1990 to 2024 in 12 places",
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_left_alone(text):
    assert found(text) == []


def test_only_the_configured_types_are_looked_for():
    assert found("bob@example.com 13812345678", Pii(PiiOptions(types=["email"]))) == [("email", "bob@example.com")]


def test_allowed_values_are_no_finding():
    assert found("help@example.com or bob@example.com", Pii(PiiOptions(allow=["help@example.com"]))) == [
        ("email", "bob@example.com")
    ]


def test_an_unknown_type_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'emial'.*Did you mean 'email'"):
        Pii(PiiOptions(types=["emial"]))


def test_overlaps_go_to_the_type_with_the_stronger_proof():
    assert found("电话 510107198511208134") == [("cn_id", "510107198511208134")]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet="0123456789 -.()+@abcDE:X电", max_size=60))
def test_nothing_is_found_where_nothing_is_suspected_and_findings_never_overlap(text):
    findings = PII.judge(Sample(output=text)).findings
    assert PII.suspects(text) or not findings
    assert all(a.end <= b.start for a, b in pairwise(findings))
    assert 0 <= PII.settled(text) <= len(text)


TRUTH = {
    "presidio_synth_v2": {"CREDIT_CARD": "card", "PHONE_NUMBER": "phone", "EMAIL_ADDRESS": "email", "IP_ADDRESS": "ip", "US_SSN": "ssn"},
    "presidio_generated_large": {"CREDIT_CARD": "card", "PHONE_NUMBER": "phone", "EMAIL_ADDRESS": "email", "US_SSN": "ssn"},
    "zh_synthetic_pii": {
        "CN_ID_CARD": "cn_id", "CN_PHONE": "phone", "CN_BANK_CARD": "card", "EMAIL": "email", "IP_ADDRESS": "ip", "CN_LANDLINE": "phone",
    },
}  # fmt: skip


def measure(name, half):
    """(true positives, found, expected, misses, false alarms) by type on the rows with `index % 2 == half`."""
    path = DATA / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    hits, wrong, missed = [], [], []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in (json.loads(line) for i, line in enumerate(lines) if i % 2 == half):
            truth = {(TRUTH[name][s["type"]], s["start"], s["end"]) for s in row["spans"] if s["type"] in TRUTH[name]}
            got = {(f.label, f.start, f.end) for f in PII.judge(Sample(input=row["text"])).findings}
            hits += truth & got
            wrong += [(k, row["text"][s:e]) for k, s, e in got - truth]
            missed += [(k, row["text"][s:e], row["text"][max(0, s - 30) : s]) for k, s, e in truth - got]
    return hits, wrong, missed


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "precision", "recall"),
    [("presidio_synth_v2", 0.95, 0.8), ("presidio_generated_large", 0.95, 0.75), ("zh_synthetic_pii", 0.99, 0.99)],
)
def test_precision_and_recall_on_the_held_out_half(name, precision, recall):
    hits, wrong, missed = measure(name, 1)
    assert len(hits) / (len(hits) + len(wrong)) >= precision
    assert len(hits) / (len(hits) + len(missed)) >= recall
