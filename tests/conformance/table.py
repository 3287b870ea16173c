"""The conformance matrix: which cells there are, and `python -m tests.conformance.table`, which runs them and writes the page.

A cell is every test of a client's file whose name begins with `test_<column>`. The page is written only when every cell was run
and passed; `test_table.py` holds it against the cells that there are.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "reference" / "conformance.md"
CLIENTS = {
    "test_openai_python.py": "openai-python",
    "test_anthropic_python.py": "anthropic-python",
    "test_langchain_openai.py": "LangChain `ChatOpenAI`",
    "test_langchain_anthropic.py": "LangChain `ChatAnthropic`",
    "test_litellm.py": "LiteLLM SDK",
    "test_vercel_ai.py": "Vercel AI SDK",
    "test_llm.py": "`llm`",
}
COLUMNS = {
    "plain": "an answer and its usage",
    "stream": "the same in pieces, in order, with usage where the client asks for it",
    "tools": "two calls at once, whole and streamed, assembled by the client; the round trip of their results",
    "schema": "the schema reaches the model, and the client gives back its own type",
    "errors": "400, 401, 403, 404, 429, 503 and an error within a stream: the client's own class, our message and code",
    "retry_headers": "the client waits as `retry-after-ms` says; it does not repeat what says `x-should-retry: false`",
    "disconnect": "the client breaks off a stream: the upstream is cancelled within 100 ms (best of three)",
}
NOTES = """\
- **Vercel AI SDK** does not know `x-should-retry` (it repeats every 429 and 5xx `maxRetries` times): its cell asserts the waiting, and that
  `maxRetries: 0` leaves retrying to Noria.
- **LiteLLM SDK** makes a `BadRequestError` (with `status_code` 403) of OpenAI's own 403s, and of ours.
- **`llm`** is used by its Python interface, and by its command line for *disconnect* (Ctrl-C).
- `/v1/messages` is translated to an endpoint of OpenAI's kind here; native endpoints of Anthropic's kind are tested in
  [tests/clients](../../tests/clients/test_anthropic.py).
"""


class Outcomes:
    """A pytest plugin that keeps what became of each test of the clients' files: `of[file, function]` → outcomes."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, str], list[str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            path, _, name = report.nodeid.partition("::")
            self.of.setdefault((Path(path).name, name.partition("[")[0]), []).append(report.outcome)


def cells() -> dict[tuple[str, str], list[str]]:
    """(file, column) → the names of its tests, as the files have them."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in CLIENTS:
        names = re.findall(r"^(?:async )?def (test_\w+)", (HERE / file).read_text("utf-8"), re.MULTILINE)
        for column in COLUMNS:
            found[file, column] = [n for n in names if n == f"test_{column}" or n.startswith(f"test_{column}_")]
    return found


def versions() -> dict[str, str]:
    """Each client's own version, by its file."""
    found = {
        "test_openai_python.py": importlib.metadata.version("openai"),
        "test_anthropic_python.py": importlib.metadata.version("anthropic"),
        "test_langchain_openai.py": "langchain-openai " + importlib.metadata.version("langchain-openai"),
        "test_langchain_anthropic.py": "langchain-anthropic " + importlib.metadata.version("langchain-anthropic"),
        "test_llm.py": importlib.metadata.version("llm"),
    }
    lock = re.search(r"^litellm==(\S+)", (HERE / "litellm.txt").read_text(), re.MULTILINE)
    assert lock is not None
    packages = json.loads((HERE / "node" / "package.json").read_text())["dependencies"]
    node = ", ".join(f"{name} {packages[name]}" for name in ("ai", "@ai-sdk/openai-compatible"))
    return found | {"test_litellm.py": lock[1], "test_vercel_ai.py": node}


def page(commit: str, day: str) -> str:
    """The page, for a run in which every cell passed."""
    head = "| client | version | " + " | ".join(c.replace("_", " ") for c in COLUMNS) + " |\n"
    rule = "|---" * (len(COLUMNS) + 2) + "|\n"
    told, there = versions(), cells()
    rows = ""
    for file, client in CLIENTS.items():
        counts = " | ".join(f"✓ {len(there[file, column])}" for column in COLUMNS)
        rows += f"| [{client}](../../tests/conformance/{file}) | {told[file]} | {counts} |\n"
    meaning = "".join(f"- **{c.replace('_', ' ')}**: {what}\n" for c, what in COLUMNS.items())
    return f"""\
# Conformance

What users of a client need of an endpoint, tested with the client itself against a running Noria. Written by
`python -m tests.conformance.table` on {day} at {commit}, CPython {platform.python_version()}, when every cell had passed; the number is that of its tests.
They run with `make test`.

{head}{rule}{rows}
{meaning}
{NOTES}"""


def main() -> None:
    """Run every cell; write the page if all passed."""
    outcomes = Outcomes()
    if (
        pytest.main([str(HERE), "-q", "-p", "no:cacheprovider", "--ignore", str(HERE / "test_table.py")], plugins=[outcomes])
        != 0
    ):
        sys.exit("not every cell has passed: the page stays as it is")
    for (file, column), names in cells().items():
        for name in names:
            if set(outcomes.of.get((file, name), ["not run"])) != {"passed"}:
                sys.exit(f"{file}::{name} ({column}) was not run or skipped: the page stays as it is")
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+changes"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "an unknown commit"
    PAGE.write_text(page(commit, dt.datetime.now(dt.UTC).date().isoformat()), "utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
