"""The bill of materials: valid against CycloneDX's own schema, and complete."""

from __future__ import annotations

import json
import re
from email.message import Message
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion

from noria.app import bill as wiring
from noria.govern import sbom
from noria.govern.sbom import Model, Remote, closure, document
from noria.settings import loads

MODELS = (
    Model("m", "A model", "Apache-2.0", "wheel", (("model.gguf", "a" * 64), ("LICENSE", "b" * 64))),
    Model("away", "", "", "?"),
)
REMOTES = (Remote("gpt", "openai", "gpt-5", ""), Remote("mine", "openai_compatible", "q", "http://gpu:8000/v1"))
MADE = "2026-11-22T00:00:00Z"


def valid(made: dict[str, Any]) -> bool:
    from cyclonedx.validation.json import JsonStrictValidator  # seconds of grammars, which no other process needs at collection

    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(made))
    assert found is None, found
    return True


def test_the_real_installation_is_listed_and_valid() -> None:
    made = document(closure(), MODELS, REMOTES, made=MADE)
    assert valid(made)
    names = {c["name"]: c for c in made["components"] if c["type"] == "library"}
    declared = re.findall(
        r'^  "([a-z0-9.-]+)', (Path(__file__).parents[3] / "pyproject.toml").read_text().split("[project.")[0], re.MULTILINE
    )
    assert {d.replace(".", "-") for d in declared} <= set(names) | {"xllamacpp"}
    assert {"psycopg-binary", "starlette", "pydantic-core"} <= set(names), "extras, and what is only asked for by others"
    assert not {"pytest", "ruff", "openai", "redis"} & set(names), "tools of developers are no part of it"
    assert names["msgspec"]["purl"].startswith("pkg:pypi/msgspec@")
    assert all(c.get("licenses") for c in names.values()), [n for n, c in names.items() if not c.get("licenses")]


def test_every_reference_is_there_and_once() -> None:
    made = document(closure(), MODELS, REMOTES, made=MADE)
    refs = [made["metadata"]["component"]["bom-ref"], *(c["bom-ref"] for c in (*made["components"], *made["services"]))]
    assert len(refs) == len(set(refs))
    tree = {d["ref"]: d["dependsOn"] for d in made["dependencies"]}
    assert {r for named in tree.values() for r in named} <= set(refs)
    assert {"model:m", "model:away", "service:gpt", "service:mine"} <= set(tree[refs[0]])


def test_a_model_has_its_hashes_and_its_licence() -> None:
    made = document(closure(), MODELS, REMOTES, made=MADE)
    here, away = (c for c in made["components"] if c["type"] == "machine-learning-model")
    assert here["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert here["licenses"][0]["license"]["name"] == "Apache-2.0"
    assert [f["name"] for f in here["components"]] == ["model.gguf", "LICENSE"]
    assert {"name": "noria:installed", "value": "false"} in away["properties"]


def test_the_serial_number_is_that_of_the_content() -> None:
    one, again = (document(closure(), MODELS, REMOTES, made=t)["serialNumber"] for t in (MADE, "2027-01-01T00:00:00Z"))
    assert one == again != document(closure(), MODELS[:1], REMOTES, made=MADE)["serialNumber"]


class Dist:
    """A package that asks for `requires`."""

    version = "1"

    def __init__(self, name: str, *requires: str) -> None:
        self.metadata = Message()
        self.metadata["Name"] = name
        self.requires = list(requires)

    def read_text(self, name: str) -> None:
        return None


def test_extras_lead_on_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {
        "noria": Dist("noria", "A_b[fast]>=1", "gone", 'tool; extra == "dev"'),
        "a-b": Dist("a.B", 'speed; extra == "fast"', 'slow; extra == "lazy"', "noria"),
        "speed": Dist("speed"), "slow": Dist("slow"), "tool": Dist("tool"),
    }  # fmt: skip

    def found(name: str) -> Dist:
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(sbom, "distribution", found)
    assert {name: names for name, (_, names) in closure().items()} == {"a-b": ["noria", "speed"], "noria": ["a-b"], "speed": []}


def test_a_configuration_names_its_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = b"""
models:
  small: {provider: local, model: smollm2-135m}
  gpt: {provider: openai, model: gpt-5-mini, key: env:SECRET_NAME}
apps:
  a: {model: small}
"""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    made = wiring.bill(loads(config, name="noria.yaml", folder=tmp_path), tmp_path)
    assert valid(made)
    assert made["metadata"]["timestamp"] == "1970-01-01T00:00:01Z"
    (model,) = (c for c in made["components"] if c["type"] == "machine-learning-model")
    assert (model["name"], model["licenses"][0]["license"]["name"]) == ("smollm2-135m", "Apache-2.0")
    assert [s["name"] for s in made["services"]] == ["gpt"]
    assert "SECRET_NAME" not in json.dumps(made)
