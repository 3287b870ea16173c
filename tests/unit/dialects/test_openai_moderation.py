"""Moderations in OpenAI's form."""

from __future__ import annotations

import json

import pytest

from noria.contracts.error import RequestError
from noria.dialects.openai_moderation import MOST_CHARACTERS, Found, read_moderation, write_moderation


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("你好", ["你好"]),
        (["a", "b"], ["a", "b"]),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], ["a\nb"]),
    ],
)
def test_every_form_of_input(given: object, texts: list[str]) -> None:
    assert read_moderation(json.dumps({"input": given, "model": "m"}).encode()) == ("m", texts)


@pytest.mark.parametrize(
    "body",
    [{}, {"input": []}, {"input": 5}, {"input": [{"type": "image_url", "image_url": {"url": "x"}}]}, {"input": ["a", {"type": "text", "text": "b"}]},
     {"input": "x" * (MOST_CHARACTERS + 1)}, {"input": "x", "model": 5}],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused_by_name(body: dict) -> None:
    with pytest.raises(RequestError) as e:
        read_moderation(json.dumps(body).encode())
    assert e.value.param in ("input", "model")


def test_every_category_is_in_all_three_maps() -> None:
    told = json.loads(write_moderation("1", "m", [Found({"pii": 0.9, "secrets": 0.0}, frozenset({"pii"}))]))
    (result,) = told["results"]
    assert result["flagged"] is True
    assert result["categories"] == {"pii": True, "secrets": False}
    assert set(result["category_scores"]) == set(result["category_applied_input_types"]) == {"pii", "secrets"}
