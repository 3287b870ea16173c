from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.checks.secrets import Secrets, entropy
from noria.contracts.stage import Options, Sample

SECRETS = Secrets(Options())
A36 = "a1B2c3D4e5" * 3 + "F6g7H8"
BODY = "MIIEowIBAAKCAQEAx1vq\n" * 20
KEY = f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}Qg==\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"


def found(text):
    return [(f.label, text[f.start : f.end]) for f in SECRETS.judge(Sample(input=text)).findings]


@pytest.mark.parametrize(
    ("text", "label", "value"),
    [
        (f"use sk-proj-{A36} now", "openai_key", f"sk-proj-{A36}"),
        (f"sk-{A36}", "openai_key", f"sk-{A36}"),
        (f"密钥是sk-ant-api03-{A36}。", "anthropic_key", f"sk-ant-api03-{A36}"),
        ("AKIAIOSFODNN7ABCDEFG", "aws_access_key_id", "AKIAIOSFODNN7ABCDEFG"),
        ("aws_secret_access_key = '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'", "generic_secret", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzLEKEY1"),
        (f"ghp_{A36}", "github_token", f"ghp_{A36}"),
        (f"github_pat_{A36}", "github_token", f"github_pat_{A36}"),
        ("xoxb-123456789012-abcdefABCDEF", "slack_token", "xoxb-123456789012-abcdefABCDEF"),
        ("AIza" + "a1B2c" * 7, "google_api_key", "AIza" + "a1B2c" * 7),
        ("sk_live_" + A36, "stripe_key", "sk_live_" + A36),
        ("glpat-" + A36[:20], "gitlab_token", "glpat-" + A36[:20]),
        ("npm_" + A36, "npm_token", "npm_" + A36),
        ("pypi-AgEIcHlwaS5vcmc" + A36 * 2, "pypi_token", "pypi-AgEIcHlwaS5vcmc" + A36 * 2),
        ("hf_" + A36, "huggingface_token", "hf_" + A36),
        ("AccountName=x;AccountKey=" + "a1B2" * 21 + "aa==;E=1", "azure_key", "a1B2" * 21 + "aa=="),
        (f"cookie {JWT}", "jwt", JWT),
        ("postgres://app:s3cr3tpw@db/x", "url_password", "s3cr3tpw"),
        ("Authorization: Bearer " + A36, "bearer_token", A36),
        ('api_key = "q8Zx71LmNoP2rStU"', "generic_secret", "q8Zx71LmNoP2rStU"),
        ('{"client_secret": "q8Zx71LmNoP2rStU"}', "generic_secret", "q8Zx71LmNoP2rStU"),
        (f"see {KEY} thanks", "private_key", KEY),
        (f"see {KEY[:199]}", "private_key", KEY[:199]),
    ],
)  # fmt: skip
def test_credentials_are_found_with_the_span_of_the_secret_alone(text, label, value):
    assert found(text) == [(label, value)]


@pytest.mark.parametrize(
    "text",
    [
        "", "hello", "the token is here: soon", "task-force-alpha-bravo-charlie-delta-echo", "api_key = os.environ['OPENAI_API_KEY_2']",
        "password: ${DB_PASSWORD_1}", 'api_key = "your_api_key_1234567"', "max_tokens: 40960000", "-----BEGIN CERTIFICATE-----\nMIIEowIBAAKCAQEAx1vq\n",
        "postgres://user:password@localhost", "keyboard: qwertyuiop", "https://example.com:8080/a@b", "sk-learn-like-names-have-no-digits", "risk-a1B2c3D4e5F6g7H8i9J0k1",
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_left_alone(text):
    assert found(text) == []


def test_the_end_of_one_key_block_is_not_that_of_the_next():
    assert found(f"{KEY}\nprose between\n{KEY}") == [("private_key", KEY), ("private_key", KEY)]


def test_a_key_block_stays_open_until_it_ends_or_is_none():
    text = f"see {KEY}"
    assert [SECRETS.settled(text[:n]) for n in (20, 60, 300, len(text) - 1)] == [4, 4, 4, 4]
    assert SECRETS.settled(text + "\n ") == len(text) + 2
    mention = "write -----BEGIN PRIVATE KEY----- and then the body "
    assert SECRETS.settled(mention) == len(mention)


def test_entropy_is_in_bits_a_character():
    assert entropy(b"aaaa") == 0
    assert entropy(b"abcd") == 2


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(
            [KEY, KEY[:90], "-----BEGIN ", "key", "=", " ", A36, "sk-", "ghp_", "eyJ", ".", "\n", "Bearer", ":", "密", '"']
        ),
        max_size=10,
    ).map("".join)
)
def test_nothing_is_found_where_nothing_is_suspected_and_findings_never_overlap(text):
    findings = SECRETS.judge(Sample(output=text)).findings
    assert SECRETS.suspects(text) or not findings
    assert all(a.end <= b.start for a, b in pairwise(findings))
    assert 0 <= SECRETS.settled(text) <= len(text)
