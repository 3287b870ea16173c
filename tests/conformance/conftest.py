"""One Noria, one vendor and the foreign clients' processes for the whole conformance matrix; see `table.py`."""

from __future__ import annotations

import gc
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.conformance.outside import LITELLM, NODE, Driver
from tests.conformance.vendor import PAUSE, Vendor

WITHIN = 0.1
"""Seconds from the client's leaving to the upstream's seeing it (museum 11)."""

CONFIG = """
models:
{models}
  away: {{provider: local, model: not-installed}}
guards:
  strict: [{{denylist: {{terms: [falcon], action: block, on: [input]}}}}]
apps:
  chat: {{model: chat}}
  tools: {{model: tools}}
  schema: {{model: schema}}
  refuse: {{model: refuse}}
  cut: {{model: cut}}
  wait: {{model: wait, routing: {{retries: 0}}}}
  dead: {{model: dead, routing: {{retries: 1}}}}
  endless: {{model: endless}}
  strict: {{model: chat, guard: strict}}
  away: {{model: away}}
"""
MODELS = ("chat", "tools", "schema", "refuse", "cut", "wait", "dead", "endless")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Install what the selected cells need while others run."""
    names = {item.path.name for item in session.items}
    for name, outside in (("test_litellm.py", LITELLM), ("test_vercel_ai.py", NODE)):
        if name in names and not session.config.option.collectonly:
            outside.begin()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """LangChain, `llm` and LiteLLM leave their connections to the garbage collector, which is no mistake of ours."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """Nothing of it is left for other tests to stumble over."""
    yield
    gc.collect()


def _start_service() -> Callable[..., Any]:
    """Of the conftest of the whole tree; fixtures of session scope cannot use its per-test `serve`."""
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("noria_conformance_above", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    start: Callable[..., Any] = module.start_service
    return start


@pytest.fixture(scope="session")
def vendor() -> Iterator[Vendor]:
    made = Vendor()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def here(vendor: Vendor) -> Iterator[SimpleNamespace]:
    """`root` and `url` (with /v1); `key` may all, `narrow` only the app `chat`, `tight` once a minute."""
    models = "".join(f'  {m}: {{provider: openai_compatible, url: "{vendor.url}", model: {m}}}\n' for m in MODELS)
    with tempfile.TemporaryDirectory(prefix="noria-") as folder:
        service = _start_service()(Path(folder), CONFIG.format(models=models), "--workers", "1")
        try:
            key, narrow, tight = (
                service.json("keys", "create", *args)["key"]
                for args in (("--name", "all"), ("--name", "narrow", "--app", "chat"), ("--name", "tight", "--rpm", "1"))
            )
            made = SimpleNamespace(root=service.url, url=service.url + "/v1", key=key, narrow=narrow, tight=tight)
            made.service = service
            yield made
        finally:
            service.stop()


@pytest.fixture
def stopped(vendor: Vendor) -> Callable[[Callable[[], float]], None]:
    """Assert that the upstream is cancelled in time: `leave` breaks off a stream of `endless` and says when (monotonic).

    The best of three: the promise is Noria's, and a busy machine may run none of us for a while.
    """

    def check(leave: Callable[[], float]) -> None:
        took = []
        for _ in range(3):
            known = len(vendor.gone)
            left = leave()
            while len(vendor.gone) == known:
                assert time.monotonic() < left + 10, "the upstream goes on for nobody"
                time.sleep(0.005)
            took.append(vendor.gone[known] - left)
            if took[-1] <= WITHIN:
                return
        pytest.fail(f"the upstream saw its caller leave after {took} s")

    return check


@pytest.fixture
def waited(vendor: Vendor) -> Callable[[str], None]:
    """Assert that the caller of `wait` was told to, waited that long and no longer than it must, and asked once more."""

    def check(prompt: str) -> None:
        at = [a["at"] for a in vendor.of(prompt)]
        assert len(at) == 2
        assert PAUSE - 0.01 <= at[1] - at[0] <= PAUSE + 0.4

    return check


@pytest.fixture(scope="session")
def litellm() -> Iterator[Driver]:
    with LITELLM.driver() as driver:
        yield driver


@pytest.fixture(scope="session")
def node() -> Iterator[Driver]:
    with NODE.driver() as driver:
        yield driver


@pytest.fixture
def thrice() -> Callable[[Callable[[], Any]], None]:
    """Does something three times: the key for 429 may ask once a minute."""

    def do(what: Callable[[], Any]) -> None:
        for _ in range(3):
            what()

    return do


@pytest.fixture
def asks(here: SimpleNamespace) -> dict[str, Any]:
    """Which app and key lead to which error, for every client: status → (app, key, code)."""
    return {
        400: ("refuse", here.key, "too_hot"),
        401: ("chat", "nk-wrong", "invalid_api_key"),
        403: ("tools", here.narrow, "model_not_allowed"),
        404: ("chatt", here.key, "model_not_found"),
        429: ("chat", here.tight, "rate_limit_exceeded"),
        503: ("away", here.key, "model_not_running"),
    }
