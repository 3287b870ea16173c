"""Has the traffic changed? Two windows of exchanges compared, signal by signal. Pure: what embeds and detects comes in.

Each signal has an effect size and a p-value; the p-values are adjusted together (Benjamini-Hochberg). Called drift is what is
both significant and larger than its least effect, so that a million exchanges do not alarm on nothing. A signal with fewer than
`ENOUGH` values in either window says so instead of guessing.

All p-values come from permutation of the windows (Fisher; Phipson and Smyth 2010 for the +1), which needs no distribution and
holds its level at every size, with ties and with rare classes. What is permuted:

- inputs: the energy distance of embeddings (Székely and Rizzo 2013). Like MMD it sees any difference of distribution (MMD with
  a distance kernel is the same thing: Sejdinovic et al. 2013), but has no bandwidth to choose; a classifier two-sample test would have to
  learn, and gives away half of the rows for it. Its effect, the energy coefficient, lies in [0, 1] and does not grow with n.
- length: the Kolmogorov-Smirnov distance; language, labels, answers: chi-squared; checks, outcome: the same for two classes. Effect:
  the total variation distance, the share of the traffic that is of another class than before.

Permutation takes exchanges for independent: of each conversation only the first one is compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from noria.contracts.drift import DriftPolicy, DriftReport, DriftState, Sample, Signal, Standing, Term
from noria.kit.stats import benjamini_hochberg

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

ENOUGH = 50
"""Values that a signal needs in each window."""
PERMUTATIONS = 1999
"""The least p is 1 / 2000: small enough for twenty signals at a rate of 0.01."""
LEAST = {"inputs": 0.0005, "length": 0.15, "language": 0.05, "labels": 0.15, "answers": 0.15, "outcome": 0.05, "check": 0.05}
"""Least effect by kind of signal, at `normal`; docs/how-to/drift.md says where they come from."""
FACTOR = {"low": 2.0, "normal": 1.0, "high": 0.5}
EXAMPLES, TERMS = 10, 10
SHORT_ANSWER = 64
"""Characters of an answer that may be a class."""
FEW_ANSWERS = 0.2
"""Answers are classes where there are fewer different ones than this share of them."""
_RARE = 3
"""Texts that a term must be in to be told."""
_PRIOR = 100.0
_ALIKE = 0.95
_CHUNK = 250

Embed = Callable[[Sequence[str]], Any]
"""Texts → unit vectors, shape (n, dimensions)."""
Detect = Callable[[str], str]
Split = Callable[[str], Iterable[str]]


class Tools(NamedTuple):
    """What looks at texts."""

    embed: Embed
    language: Detect
    split: Split


class Tested(NamedTuple):
    """Outcome of one test."""

    effect: float
    p: float


def compare(
    reference: Sequence[Sample],
    recent: Sequence[Sample],
    tools: Tools,
    *,
    level: float = 0.01,
    sensitivity: Literal["low", "normal", "high"] = "normal",
    seed: int = 0,
) -> tuple[list[Signal], list[Term], list[Term], list[str]]:
    """(signals, terms that are more frequent, those that are less, ids of examples).

    Terms and examples explain a drift of the texts; they are empty where there is none.
    """
    old, new = independent(reference), independent(recent)
    vectors: dict[str, Any] = {}
    raw = list(_signals(old, new, tools, vectors, seed))
    signals = judged(raw, level=level, sensitivity=sensitivity)
    if not any(s.standing == "drifted" and s.name in ("inputs", "language") for s in signals):
        return signals, [], [], []
    more, less = changed_terms([s.text for s in old], [s.text for s in new], tools.split)
    return signals, more, less, examples(vectors["old"], vectors["new"], [s.id for s in new if s.text])


def independent(samples: Sequence[Sample]) -> list[Sample]:
    """The first exchange of each conversation, and those of none, in the order of time."""
    seen: set[str] = set()
    kept = []
    for s in sorted(samples, key=lambda s: (s.at_ns, s.id)):
        if not s.conversation or s.conversation not in seen:
            kept.append(s)
        seen.add(s.conversation)
    return kept


def _signals(old: list[Sample], new: list[Sample], tools: Tools, vectors: dict[str, Any], seed: int) -> Iterable[Signal]:
    """Every signal, tested, not judged yet."""
    texts = [[s.text for s in side if s.text] for side in (old, new)]
    if (few := _few("inputs", "energy distance", *texts)) is not None:
        yield few
    else:
        vectors["old"], vectors["new"] = tools.embed(texts[0]), tools.embed(texts[1])
        yield _made("inputs", "energy distance", energy(vectors["old"], vectors["new"], seed), texts)
    lengths = [[s.length for s in side if s.text] for side in (old, new)]
    yield _tested("length", "Kolmogorov-Smirnov", lengths, lambda a, b: kolmogorov_smirnov(a, b, seed))
    chi: Callable[[Any, Any], Tested] = lambda a, b: classes(a, b, seed)  # noqa: E731  one line
    yield _tested("language", "chi-squared", [[tools.language(t) for t in side] for side in texts], chi)
    yield _tested("outcome", "chi-squared", [[s.outcome for s in side] for side in (old, new)], chi)
    yield _tested("labels", "chi-squared", [[s.label for s in side if s.label] for side in (old, new)], chi)
    answers = [[s.answer.strip().casefold() for s in side if s.answer] for side in (old, new)]
    if _are_classes(answers[0] + answers[1]):
        yield _tested("answers", "chi-squared", answers, chi)
    for check in sorted({c for s in (*old, *new) for c in s.judged}):
        found = [[check in s.found for s in side if check in s.judged] for side in (old, new)]
        yield _tested(f"check:{check}", "chi-squared", found, chi)


def _are_classes(answers: list[str]) -> bool:
    short = sum(len(a) <= SHORT_ANSWER and "\n" not in a for a in answers)
    return bool(answers) and short >= 0.9 * len(answers) and len(set(answers)) <= FEW_ANSWERS * len(answers)


def _few(name: str, test: str, old: Sequence[Any], new: Sequence[Any]) -> Signal | None:
    if min(len(old), len(new)) >= ENOUGH:
        return None
    says = f"{len(old)} and {len(new)} values; {ENOUGH} are needed in each window."
    return Signal(name, test, "insufficient", n_reference=len(old), n_recent=len(new), says=says)


def _tested(name: str, test: str, sides: Sequence[Sequence[Any]], how: Callable[[Any, Any], Tested]) -> Signal:
    return _few(name, test, *sides) or _made(name, test, how(*sides), sides)


def _made(name: str, test: str, tested: Tested, sides: Sequence[Sequence[Any]]) -> Signal:
    old, new = sides
    return Signal(
        name, test, "steady", tested.effect, p=tested.p, n_reference=len(old), n_recent=len(new), says=_says(name, old, new)
    )


def _says(name: str, old: Sequence[Any], new: Sequence[Any]) -> str:
    """What changed most, in figures."""
    if name == "inputs":
        return ""
    if name == "length":
        middles = [sorted(side)[len(side) // 2] for side in (old, new)]
        return f"median {middles[0]} → {middles[1]} characters"
    shares = [{k: n / len(side) for k, n in Counter(side).items()} for side in (old, new)]
    moved = sorted({*shares[0], *shares[1]}, key=lambda k: (-abs(shares[1].get(k, 0) - shares[0].get(k, 0)), str(k)))
    if name.startswith("check:"):
        moved = [True]
    told = [(_class(k), *(s.get(k, 0.0) for s in shares)) for k in moved[:3]]
    return ", ".join(f"{k} {a:.1%} → {b:.1%}" for k, a, b in told)


def _class(name: Any) -> str:
    return "found something in" if name is True else str(name) or "unknown"


def judged(raw: Sequence[Signal], *, level: float, sensitivity: Literal["low", "normal", "high"]) -> list[Signal]:
    """Signals with their adjusted p and what they mean."""
    from msgspec.structs import replace

    adjusted = iter(benjamini_hochberg([s.p for s in raw if s.standing != "insufficient"]))
    made = []
    for s in raw:
        if s.standing == "insufficient":
            made.append(s)
            continue
        q, least = next(adjusted), LEAST[s.name.partition(":")[0]] * FACTOR[sensitivity]
        standing: Standing = "drifted" if q <= level and s.effect >= least else "steady"
        made.append(replace(s, q=q, least_effect=least, standing=standing))
    return made


def overall(signals: Sequence[Signal]) -> Standing:
    """What a report says as a whole: without inputs to compare nobody knows that all is steady."""
    if any(s.standing == "drifted" for s in signals):
        return "drifted"
    return "insufficient" if all(s.standing == "insufficient" for s in signals) else "steady"


def sentence(signals: Sequence[Signal], more: Sequence[Term]) -> str:
    """A report in a sentence or two."""
    drifted = [s for s in signals if s.standing == "drifted"]
    if not drifted:
        known = [s for s in signals if s.standing != "insufficient"]
        if not known:
            return signals[0].says if signals else "Nothing was served."
        return f"No drift in {len(known)} signals."
    told = "; ".join(f"{s.name} (effect {s.effect:.3f}, q {s.q:.4f}{': ' + s.says if s.says else ''})" for s in drifted)
    words = f" More often now: {', '.join(t.term for t in more[:5])}." if more else ""
    return f"Drift in {told}.{words}"


# -- tests -------------------------------------------------------------------------------------------


def energy(old: Vectors, new: Vectors, seed: int = 0, permutations: int = PERMUTATIONS) -> Tested:
    """Energy distance of two samples of vectors, shapes (n, d) and (m, d). Effect: the energy coefficient, unbiased, at least 0."""
    import numpy as np

    both = np.concatenate([old, new]).astype(np.float32)
    n, m = len(old), len(new)
    squares = (both * both).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * both @ both.T, 0))
    np.fill_diagonal(apart, 0)
    rng = np.random.default_rng(seed)
    total = float(apart.sum(dtype=np.float64))
    rows = apart.sum(axis=1, dtype=np.float64)

    def distances(chosen: Any) -> Any:
        """2 E|X-Y| - E|X-X'| - E|Y-Y'| for each column of `chosen`, which marks the first sample."""
        first = (chosen * (apart @ chosen)).sum(axis=0, dtype=np.float64)
        across = chosen.T.astype(np.float64) @ rows - first
        second = total - first - 2 * across
        return 2 * across / (n * m) - first / (n * (n - 1)) - second / (m * (m - 1)), across / (n * m)

    mark = np.zeros((n + m, 1), np.float32)
    mark[:n] = 1
    (seen,), (mean,) = distances(mark)
    reached = 0
    for at in range(0, permutations, _CHUNK):
        drawn = rng.permuted(np.repeat(mark, min(_CHUNK, permutations - at), axis=1), axis=0)
        reached += int(np.count_nonzero(distances(drawn)[0] >= seen - 1e-9))
    return Tested(max(0.0, float(seen / (2 * mean))) if mean > 0 else 0.0, (reached + 1) / (permutations + 1))


def kolmogorov_smirnov(old: Sequence[float], new: Sequence[float], seed: int = 0, permutations: int = PERMUTATIONS) -> Tested:
    """Largest distance of two empirical distributions, also its effect."""
    import numpy as np

    values = np.concatenate([np.asarray(old, float), np.asarray(new, float)])
    n, m = len(old), len(new)
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))  # within ties there is no step
    step = np.where(order < n, 1 / n, -1 / m)
    seen = float(np.abs(np.cumsum(step)[ends]).max())
    rng = np.random.default_rng(seed)
    reached = 0
    for at in range(0, permutations, _CHUNK):
        drawn = rng.permuted(np.repeat(step[None], min(_CHUNK, permutations - at), axis=0), axis=1)
        found = np.abs(np.cumsum(drawn, axis=1)[:, ends]).max(axis=1)
        reached += int(np.count_nonzero(found >= seen - 1e-12))
    return Tested(seen, (reached + 1) / (permutations + 1))


def classes(old: Sequence[Any], new: Sequence[Any], seed: int = 0, permutations: int = PERMUTATIONS) -> Tested:
    """Pearson's chi-squared of two samples of classes; effect: their total variation distance.

    With both margins fixed, permuted windows are draws without replacement: the table's exact conditional distribution.
    """
    import numpy as np

    names = {k: i for i, k in enumerate(dict.fromkeys([*old, *new]))}
    first = np.bincount([names[v] for v in old], minlength=len(names))
    both = first + np.bincount([names[v] for v in new], minlength=len(names))
    n, m = len(old), len(new)
    if len(names) < 2:
        return Tested(0.0, 1.0)
    expected = both * n / (n + m)
    rng = np.random.default_rng(seed)
    drawn = rng.multivariate_hypergeometric(both, n, size=permutations)
    # with fixed margins chi-squared is this, times a constant
    seen, found = (((table - expected) ** 2 / both).sum(axis=-1) for table in (first, drawn))
    reached = int(np.count_nonzero(found >= seen - 1e-9))
    effect = float(np.abs(first / n - (both - first) / m).sum() / 2)
    return Tested(effect, (reached + 1) / (permutations + 1))


# -- why ---------------------------------------------------------------------------------------------


def changed_terms(old: Sequence[str], new: Sequence[str], split: Split) -> tuple[list[Term], list[Term]]:
    """Terms that more, and fewer, texts contain: by z of the log-odds under a prior of both windows (Monroe et al. 2008)."""
    import math

    counts = [Counter(t for text in side for t in set(split(text))) for side in (old, new)]
    n, m = len(old), len(new)
    prior = {t: (counts[0][t] + counts[1][t]) / (n + m) * _PRIOR for t in {*counts[0], *counts[1]}}
    found = []
    for term, a in prior.items():
        x, y = counts[0][term], counts[1][term]
        if x + y < _RARE:
            continue
        rest = _PRIOR - a
        odds = math.log((y + a) / (m - y + rest + 1e-9)) - math.log((x + a) / (n - x + rest + 1e-9))
        found.append(Term(term, x / n, y / m, odds / math.sqrt(1 / (y + a) + 1 / (x + a))))
    found.sort(key=lambda t: (-t.z, t.term))
    return _distinct(t for t in found if t.z > 2), _distinct(t for t in reversed(found) if t.z < -2)


def _distinct(terms: Iterable[Term]) -> list[Term]:
    """The first ones, without those that are parts of one that was told already, or hold one."""
    told: list[Term] = []
    for t in terms:
        if len(told) == TERMS:
            break
        if not any(t.term in s.term or s.term in t.term for s in told if not t.term.isascii()):
            told.append(t)
    return told


def examples(old: Vectors, new: Vectors, ids: Sequence[str], most: int = EXAMPLES) -> list[str]:
    """Ids of recent texts where the difference lies: by the witness of the energy distance (mean distance to the reference minus
    mean distance to the recent window), each unlike those before it.
    """
    import numpy as np

    def mean_distance(to: Vectors) -> Any:
        return np.sqrt(np.maximum(2 - 2 * new @ to.T, 0)).mean(axis=1)

    order = np.argsort(-(mean_distance(old) - mean_distance(new)), kind="stable")
    chosen: list[int] = []
    for i in order:
        if len(chosen) == most:
            break
        if not chosen or float((new[chosen] @ new[i]).max()) < _ALIKE:
            chosen.append(int(i))
    return [ids[i] for i in chosen]


# -- state -------------------------------------------------------------------------------------------


def after(
    state: DriftState, report: DriftReport, policy: DriftPolicy
) -> tuple[DriftState, Literal["", "detected", "resolved"]]:
    """How an app stands after a report, and what is to be told. An alert ends after `calm` reports in a row without drift;
    a report that knows nothing changes nothing.
    """
    from msgspec.structs import replace

    seen = replace(state, report=report.id, checked_ns=report.at_ns, standing=report.standing)
    if report.standing == "insufficient":
        return seen, ""
    if report.standing == "drifted":
        fresh = not state.firing
        return replace(
            seen, firing=True, calm=0, since_ns=report.at_ns if fresh else state.since_ns
        ), "detected" if fresh else ""
    calm = state.calm + 1
    if state.firing and calm >= policy.calm:
        return replace(seen, firing=False, calm=calm, since_ns=report.at_ns), "resolved"
    return replace(seen, calm=calm), ""
