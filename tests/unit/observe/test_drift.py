"""Drift: no alarm on nothing, an alarm on what was planted, effects that do not grow with n, and what is told of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from noria.contracts.drift import DriftPolicy, DriftReport, DriftState, Sample, Windows
from noria.gateway.language import detect
from noria.kit.static_vectors import shipped, split
from noria.observe import drift
from noria.observe.drift import Tools, after, classes, compare, energy, independent, kolmogorov_smirnov, overall, sentence

DATA = Path(__file__).parents[4] / "shared" / "data" / "classify"
BANK = [
    "how do i reset my {} password",
    "my {} card was declined",
    "what is the fee of a {} transfer",
    "close my {} account please",
]
TRIP = [
    "which {} flights go to lisbon",
    "book a {} hotel near the beach",
    "weather for the {} trip to rome",
    "cheap {} train to berlin",
]
FILL = ["new", "old", "second", "joint", "main", "spare", "blue", "red", "first", "last", "weekly", "daily", "online", "local"]


@pytest.fixture(scope="module")
def tools() -> Tools:
    return Tools(shipped().embed, detect, split)


def samples(texts, **more):
    return [Sample(f"e{i}", i, t, len(t), **more) for i, t in enumerate(texts)]


def texts(templates, n, seed=0):
    rng = np.random.default_rng(seed)
    return [str(rng.choice(templates)).format(rng.choice(FILL)) for _ in range(n)]


def standing(signals, name):
    return next(s for s in signals if s.name == name).standing


def test_new_topics_are_drift_and_are_explained(tools) -> None:
    old, new = samples(texts(BANK, 200)), samples(texts(BANK, 100, 1) + texts(TRIP, 100, 2))
    signals, more, less, examples = compare(old, new, tools)
    assert standing(signals, "inputs") == "drifted"
    assert {"flights", "hotel", "trip", "train"} & {t.term for t in more}
    assert all(t.recent > t.reference for t in more)
    assert all(t.recent < t.reference for t in less)
    assert len(examples) == 10
    assert all(int(e[1:]) >= 100 for e in examples), "the second half is what is new"
    assert sentence(signals, more).startswith("Drift in inputs")


def test_the_same_traffic_is_steady_and_needs_no_explanation(tools) -> None:
    signals, more, less, examples = compare(samples(texts(BANK, 300)), samples(texts(BANK, 300, 5)), tools)
    assert overall(signals) == "steady"
    assert (more, less, examples) == ([], [], [])


@pytest.mark.parametrize(("old", "new"), [(49, 500), (500, 49), (0, 0)])
def test_little_traffic_is_no_verdict(tools, old, new) -> None:
    signals, *_ = compare(samples(texts(BANK, old)), samples(texts(TRIP, new)), tools)
    assert overall(signals) == "insufficient"
    assert "50 are needed" in sentence(signals, [])
    report = DriftReport("r", "a", 1, Windows(0, 1, 2), "insufficient")
    fired = DriftState("a", firing=True, calm=1)
    assert after(fired, report, DriftPolicy())[0].firing, "what knows nothing ends no alert"


def test_each_other_signal_sees_its_own_change_and_no_other(tools) -> None:
    base = texts(BANK, 240)
    half = range(0, 240, 2)
    cases = {
        "length": (samples(base), [Sample(s.id, s.at_ns, s.text, s.length * 3) for s in samples(base)]),
        "language": (samples(base), samples(base[:180] + ["我的密码忘记了怎么办"] * 60)),
        "outcome": (samples(base), samples(base[:180]) + samples(base[180:], outcome="error")),
        "check:pii": (samples(base, judged=("pii",)), [*samples(base[:180], judged=("pii",)), *samples(base[180:], judged=("pii",), found=("pii",))]),
        "labels": (samples(base, label="fee"), [Sample(s.id, s.at_ns, s.text, s.length, label="fee" if i in half else "card") for i, s in enumerate(samples(base))]),
        "answers": (samples(base, answer="A"), samples(base[:120], answer="A") + samples(base[120:], answer="B")),
    }  # fmt: skip
    for name, (old, new) in cases.items():
        signals, *_ = compare(old, new, tools)
        drifted = {s.name for s in signals if s.standing == "drifted"}
        assert drifted - {"inputs", "length"} == {name} - {"length"}, name
        assert name in drifted


def test_a_check_that_finds_nothing_and_free_answers_are_no_classes(tools) -> None:
    base = samples(texts(BANK, 100), judged=("pii",))
    free = [Sample(s.id, s.at_ns, s.text, s.length, answer=f"a long answer {i} of its own") for i, s in enumerate(base)]
    names = {s.name for s in compare(free, free, tools)[0]}
    assert "answers" not in names
    assert standing(compare(base, base, tools)[0], "check:pii") == "steady"


def test_a_huge_sample_does_not_alarm_on_next_to_nothing() -> None:
    old, new = [True] * 10_000 + [False] * 90_000, [True] * 11_000 + [False] * 89_000
    tested = classes(old, new, permutations=499)
    assert tested.p == 1 / 500
    assert tested.effect == pytest.approx(0.01)
    (signal,) = drift.judged([drift._made("check:pii", "chi-squared", tested, [old, new])], level=0.01, sensitivity="high")
    assert signal.standing == "steady"


def test_only_the_first_exchange_of_a_conversation_counts() -> None:
    many = [Sample(f"e{i}", i, "x", 1, conversation=f"c{i % 3}" if i < 30 else "") for i in range(40)]
    assert len(independent(many)) == 13


@pytest.mark.parametrize("test", ["energy", "kolmogorov_smirnov", "classes"])
def test_the_level_holds_where_nothing_has_changed(test) -> None:
    rng = np.random.default_rng(7)
    ps = []
    for i in range(200):
        if test == "energy":
            x = rng.normal(size=(60 + i % 40, 8)).astype(np.float32)
            ps.append(energy(x[: 30 + i % 20], x[30 + i % 20 :], i, 99).p)
        elif test == "kolmogorov_smirnov":
            x = rng.integers(0, 12, 160)  # with many ties
            ps.append(kolmogorov_smirnov(x[:60], x[60:], i, 99).p)
        else:
            x = rng.zipf(1.6, 160).clip(max=60).tolist()  # with rare classes
            ps.append(classes(x[:60], x[60:], i, 99).p)
    # binomial(200, 0.05): above 20 by chance once in 1,000
    assert sum(p <= 0.05 for p in ps) <= 20
    assert sum(p <= 0.5 for p in ps) >= 70, "and it is a p-value, not a constant"


def test_effects_do_not_grow_with_n() -> None:
    rng = np.random.default_rng(3)
    found = []
    for n in (100, 800):
        x, y = rng.normal(size=(n, 6)).astype(np.float32), rng.normal(size=(n, 6)).astype(np.float32) + 0.5
        found.append(energy(x, y, permutations=9).effect)
    assert found[0] == pytest.approx(found[1], rel=0.35)
    zero = energy(x[:400], x[400:], permutations=9).effect
    assert zero < 0.1 * found[1]


def test_energy_is_what_its_definition_says() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(9, 3)).astype(np.float32) + 1
    d = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=2)  # noqa: E731  a formula
    across = d(x, y).mean()
    distance = 2 * across - d(x, x).sum() / (7 * 6) - d(y, y).sum() / (9 * 8)
    assert energy(x, y, permutations=9).effect == pytest.approx(distance / (2 * across), rel=1e-4)


def test_an_alert_begins_once_and_ends_after_calm_in_a_row() -> None:
    policy, state, news = DriftPolicy(calm=2), DriftState("a"), []
    for n, s in enumerate(["steady", "drifted", "drifted", "steady", "insufficient", "drifted", "steady", "steady", "steady"]):
        state, told = after(state, DriftReport(f"r{n}", "a", n, Windows(0, 1, 2), s), policy)
        news.append(told)
    assert news == ["", "detected", "", "", "", "", "", "resolved", ""]
    assert (state.firing, state.since_ns, state.report) == (False, 7, "r8")


def _real(name, field):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [r for r in rows if r["label"] != "oos"]
    groups = sorted({str(r[field]) for r in rows})
    known = set(groups[: len(groups) // 2])
    return [r["text"] for r in rows if str(r[field]) in known], [r["text"] for r in rows if str(r[field]) not in known]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "field", "n"), [("clinc150_train.jsonl.gz", "domain", 300), ("zh_thucnews_titles_train.jsonl.gz", "label", 600)]
)
def test_real_topics_that_arrive_are_found_and_the_same_traffic_is_left_alone(tools, name, field, n) -> None:
    known, arriving = _real(name, field)
    rng = np.random.default_rng(11)
    draw = lambda pool, n: rng.choice(pool, n, replace=False).tolist()  # noqa: E731  one line
    false, found = 0, 0
    for i in range(30):
        pool = draw(known, 2 * n)
        false += overall(compare(samples(pool[:n]), samples(pool[n:]), tools, seed=i)[0]) == "drifted"
        new = samples(pool[n : n + n // 2] + draw(arriving, n - n // 2))
        found += overall(compare(samples(pool[:n]), new, tools, seed=i)[0]) == "drifted"
    assert false <= 1
    assert found >= 27, "half of what comes is new"
