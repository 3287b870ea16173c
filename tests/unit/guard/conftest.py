"""What the guard's tests share: real checks, exchanges, and texts that try to break them."""

import json
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from noria.checks.denylist import Denylist, DenylistOptions
from noria.checks.pii import Pii, PiiOptions
from noria.checks.secrets import Secrets
from noria.contracts.exchange import Exchange
from noria.contracts.release import GuardRule
from noria.contracts.stage import Check, Options
from noria.contracts.verdict import Finding, Verdict

settings.register_profile("guard", max_examples=150, deadline=None, derandomize=True)

PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEowIBAAKCAQEAx1\n" * 6 + "Qg==\n-----END RSA PRIVATE KEY-----"
PIECES = [
    "bob.smith@example.com", "@", "+1 (415) 555-2671", "415-555-2671", "13812345678", "138 1234 5678", "4111 1111 1111 1111",
    "4111", "1111", "510107198511208134", "DE89 3704 0044 0532 0130 00", "DE89", "078-05-1120", "10.1.2.3", "fe80::1ff:fe23:4567:890a",
    "ghp_" + "a1B2" * 9, "sk-ant-abcDEF0123456789abcDEF0123", "api_key = ", "Bearer ", "password: hunter2hunter2x", PEM, PEM[:60],
    "-----BEGIN", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N", "secret", "token", "project", "falcon",
    "Project Falcon", "机密", "绝机", "密", "电话", "我的手机号是", "。", "，", " ", "  ", "\n", "\t", "word", "hello", "x" * 70, "9" * 30,
    "[EMAIL_1]", "[EMAIL_", "[PHONE_1]", "[", "]", "\U0001f600", "\U0001f468\u200d\U0001f469", "e\u0301", "\u0e01\u0e34", "é", "１３８",
    "call ", "(", ")", "-", ".", '"', "\\", "{", ":",
]  # fmt: skip


class EveryDigit(Check):
    """A check that tells nothing about where a text may be cut."""

    id = "every_digit"
    needs = frozenset({"input", "output"})
    reach = 256

    def judge(self, sample):
        text = sample.input or sample.output
        return Verdict.of(self.id, tuple(Finding("digit", i, i + 1) for i, c in enumerate(text) if c in "0123456789"))


class Rude(Check):
    """An answer-scoped check that finds no span, only a score."""

    id = "rude"
    needs = frozenset({"input", "output"})
    scope = "answer"

    def judge(self, sample):
        rude = "damn" in (sample.input or sample.output)
        return Verdict(self.id, not rude, float(rude))


class Shouting(Check):
    """A sentence-scoped check."""

    id = "shouting"
    needs = frozenset({"output"})
    scope = "sentence"

    def judge(self, sample):
        loud = sample.output.isupper() and len(sample.output) > 3
        return Verdict(self.id, not loud, float(loud))


def _rule(check, action="mask", on=("input", "output"), **rest):
    return check, GuardRule(check=check.id, action=action, on=on, **rest)


def _exchange(kind="chat", **rest):
    body = {
        k: msgspec.Raw(json.dumps(rest.pop(k), ensure_ascii=False).encode())
        for k in ("messages", "prompt", "input")
        if k in rest
    }
    return Exchange(
        id="x",
        trace="0" * 32,
        span="0" * 16,
        tenant="local",
        kind=kind,
        model="a",
        stream=False,
        body=body,
        started_ns=0,
        **rest,
    )


def _run(transducer, chunks):
    return "".join([transducer.feed(c) for c in chunks]) + transducer.flush()


def _chunks(text, data):
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.fixture(scope="session")
def kit():
    return SimpleNamespace(
        pii=Pii(PiiOptions()),
        secrets=Secrets(Options()),
        denylist=Denylist(DenylistOptions(terms=["Project Falcon", "机密", "绝密文件"])),
        every_digit=EveryDigit(Options()),
        rude=Rude(Options()),
        shouting=Shouting(Options()),
        rule=_rule,
        exchange=_exchange,
        run=_run,
        chunks=_chunks,
        pem=PEM,
        texts=st.lists(
            st.one_of(st.sampled_from(PIECES), st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)),
            max_size=14,
        ).map("".join),
    )
