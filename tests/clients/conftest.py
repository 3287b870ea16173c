"""One Noria for all tests of real clients: scripted models, and an upstream that fails on demand."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

CONFIG = """
models:
  fake: {{provider: scripted, model: fake}}
  json: {{provider: scripted, model: json, options: {{reply: '{{"city": "Chengdu", "degrees": 21}}'}}}}
  caller: {{provider: scripted, model: caller, options: {{tool: {{name: get_weather, arguments: '{{"city": "Chengdu"}}'}}}}}}
  cutting: {{provider: scripted, model: cutting, options: {{cut_after: 2}}}}
  slow: {{provider: scripted, model: slow, options: {{first_ms: 3000}}}}
  vectors: {{provider: scripted, model: vectors, kind: embedding, options: {{dimensions: 8}}}}
  up: {{provider: openai_compatible, url: "{up}", model: ok}}
  busy: {{provider: openai_compatible, url: "{up}", model: retry-after}}
  wrong: {{provider: openai_compatible, url: "{up}", model: status-400}}
  broken: {{provider: openai_compatible, url: "{up}", model: status-500}}
guards:
  strict: [{{denylist: {{terms: [falcon], action: block, on: [input, output]}}}}]
apps:
  echo: {{model: fake}}
  json: {{model: json}}
  caller: {{model: caller}}
  cutting: {{model: cutting}}
  slow: {{model: slow}}
  up: {{model: up}}
  busy: {{model: busy}}
  wrong: {{model: wrong}}
  broken: {{model: broken}}
  strict: {{model: fake, guard: strict}}
"""


def _above() -> Any:
    """The conftest of the whole tree: fixtures of session scope cannot use its per-test `serve`."""
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("noria_tests_above", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def start_service() -> Any:
    return _above().start_service


@pytest.fixture(scope="session")
def noria(upstream: Any, start_service: Any) -> Iterator[SimpleNamespace]:
    """`url` ends in /v1; `key` is a good key; `tight` one that may ask once a minute."""
    with tempfile.TemporaryDirectory(prefix="noria-") as folder:  # short: unix sockets live in it
        service = start_service(Path(folder), CONFIG.format(up=upstream.url), "--workers", "1")
        try:
            key = service.json("keys", "create", "--name", "clients")
            tight = service.json("keys", "create", "--name", "tight", "--rpm", "1")
            yield SimpleNamespace(
                url=service.url + "/v1", key=key["key"], tight=tight["key"], service=service, seen=upstream.seen
            )
        finally:
            service.stop()
