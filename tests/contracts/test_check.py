"""What every check promises, over every module of `noria.checks`: a new one joins by existing."""

import pkgutil

import msgspec
import pytest

import noria.checks
from noria.contracts.stage import Check, Options, Sample
from noria.contracts.verdict import Verdict
from noria.kit.extension import load

IDS = sorted(m.name for m in pkgutil.iter_modules(noria.checks.__path__) if not m.name.startswith("_"))
FIELDS = {"input", "output", "context", "expected"}
TEXTS = [
    "Write to bob.smith@example.com or call +1 (415) 555-2671, card 4111 1111 1111 1111.",
    "电话13812345678，身份证510107198511208134。api_key = q8Zx71LmNoP2rStU",
    "\U0001f600 e\u0301 \u200b \ufeff \x00 " + "x" * 300,
]


@pytest.fixture(params=IDS)
def check(request):
    cls = load("checks", request.param, Check)
    try:
        return cls(cls.Config())
    except TypeError:
        pytest.skip(f"{request.param} needs options that have no default")


def sample(check, text):
    whole = {"input": text, "output": text, "context": (text,), "expected": text}
    return Sample(**{name: whole[name] for name in check.needs})


def test_it_declares_what_it_needs_costs_and_reaches(check):
    assert check.needs
    assert check.needs <= FIELDS
    assert check.cost in {"cpu", "model"}
    assert check.scope in {"span", "sentence", "answer"}
    assert 0 < check.reach <= 4096
    assert check.behaviour >= 1
    assert issubclass(check.Config, Options)


def test_a_span_check_that_can_be_cut_says_so_in_full(check):
    parts = [hasattr(check, name) for name in ("lookback", "suspects", "settled")]
    assert all(parts) or not any(parts)


@pytest.mark.parametrize("text", TEXTS)
def test_a_verdict_is_well_formed_and_its_spans_lie_in_the_text(check, text):
    verdict = check.judge(sample(check, text))
    assert isinstance(verdict, Verdict)
    assert verdict.check == check.id
    assert 0 <= verdict.score <= 1
    for f in verdict.findings:
        assert 0 <= f.start < f.end <= len(text)
        assert f.label
        assert 0 <= f.score <= 1
        assert text[f.start : f.end] not in verdict.reason


@pytest.mark.parametrize("text", TEXTS)
def test_the_same_text_gets_the_same_verdict(check, text):
    assert check.judge(sample(check, text)) == check.judge(sample(check, text))


def test_an_empty_text_passes(check):
    if check.either:
        assert check.judge(sample(check, "")).passed


def test_a_symmetric_check_judges_input_and_output_alike(check):
    if check.either and {"input", "output"} <= check.needs:
        assert check.judge(Sample(input=TEXTS[0])) == check.judge(Sample(output=TEXTS[0]))


@pytest.mark.timeout(30)  # the shipped ones take under 1 s; a quadratic check takes many minutes
@pytest.mark.parametrize(
    "unit",
    ["lorem ipsum dolor ", "1 2 3 4 ", "4111111111111111", "a.b@", "key=", "aaaa", "[\\\"'", "电话1 ", "::1:", "-----BEGIN "],
)
def test_a_megabyte_of_hard_text_is_judged_in_seconds_so_cost_is_linear(check, unit):
    if check.cost != "cpu":
        pytest.skip("costs a model call")
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    for f in check.judge(sample(check, text)).findings:
        assert f.end <= len(text)


def test_an_unknown_option_is_refused(check):
    with pytest.raises(msgspec.ValidationError, match="no_such_option"):
        msgspec.convert({"no_such_option": 1}, check.Config)
