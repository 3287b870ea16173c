"""Shared by the tests of the console in a real browser: the mock server, Chromium, and pages that must not misbehave."""

import importlib.util
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from noria.web import pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MOCK = Path(__file__).parents[2] / "ui" / "mock" / "server.py"
WIDE = {"width": 1440, "height": 900}
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here needs a browser, a built console and the mock."""
    why = (
        "there is no Chromium on PATH" if CHROMIUM is None
        else "the console is not built (make ui)" if not (pages.STATIC / "index.html").is_file()
        else "ui/mock is absent" if not MOCK.is_file() else ""
    )  # fmt: skip
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if why:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="module")
def mock_module() -> Any:
    spec = importlib.util.spec_from_file_location("console_mock_server", MOCK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as p:
        running = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def serve(mock_module: Any) -> Iterator[Callable[..., Any]]:
    running: list[Any] = []

    def start(**state: Any) -> Any:
        mock = mock_module.Mock(**state)
        mock.pace = 0.002
        threading.Thread(target=mock.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        running.append(mock)
        return mock

    yield start
    for mock in running:
        mock.stop()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page of a mock. What breaks the security policy or the script fails the test at the end."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def visit(mock: Any, path: str = "/", *, context: Any = None, **options: Any) -> Any:
        if context is None:
            context = browser.new_context(**{"viewport": WIDE, "locale": "en-US", **options})
            contexts.append(context)
        origin = f"http://127.0.0.1:{mock.server_port}"
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("pageerror", lambda e: wrong.append(f"script: {e}"))
        page.on("console", lambda m: wrong.append(m.text) if "Content Security Policy" in m.text else None)
        page.on("request", lambda r: None if r.url.startswith(origin) else wrong.append(f"foreign: {r.url}"))
        page.goto(origin + path)
        page.locator("main > *").first.wait_for(state="attached")  # its code comes when it is asked for, and with it its keys
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []
