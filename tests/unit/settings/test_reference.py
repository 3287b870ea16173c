"""The published schema and the reference page are what the settings are."""

import importlib.util
import json
from pathlib import Path

import pytest

from noria.settings import schema

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_schema_is_current(generate):
    committed = (ROOT / "docs/reference/noria.schema.json").read_text("utf-8")
    assert committed == generate.schema_text(), "run: python docs/generate.py"
    assert json.loads(committed) == schema()


def test_the_committed_page_is_current(generate):
    assert (ROOT / "docs/reference/configuration.md").read_text("utf-8") == generate.reference(), "run: python docs/generate.py"


def test_every_key_says_what_it_means():
    mappings = {"Settings": schema(), **schema()["$defs"]}
    bare = [f"{name}.{k}" for name, d in mappings.items() for k, key in d["properties"].items() if not key.get("description")]
    assert bare == []
    assert mappings["ServeSettings"]["properties"]["port"]["description"] == "TCP port; 0 = any free one."


def test_every_mapping_refuses_unknown_keys_but_rules_whose_options_belong_to_their_check():
    open_ended = {n for n, d in schema()["$defs"].items() if d["additionalProperties"] is not False}
    assert open_ended == {"RuleSettings"}


def test_every_key_is_in_the_page(generate):
    page = generate.reference()
    missing = [k for d in schema()["$defs"].values() for k in d["properties"] if f"| `{k}` |" not in page]
    assert missing == []
