"""The table of the cost fixtures: `python -m tests.golden.table` runs every cell and writes the page if all passed.

What it states is computed by `expected`, from the fixtures alone; `test_table.py` holds the page against them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.golden import expected
from tests.golden.fixtures import CASES, DOORS, PRICES, SHAPES, Case
from tests.golden.run import cells

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "cost-fixtures.md"
PROVIDERS = {
    "openai": "OpenAI chat", "responses": "OpenAI Responses (native)", "anthropic": "Anthropic Messages", "gemini": "Gemini generateContent",
    "deepseek": "DeepSeek", "moonshot": "Moonshot", "xai": "xAI", "mistral": "Mistral", "gemini_openai": "Gemini, OpenAI-compatible",
    "openrouter": "OpenRouter", "perplexity": "Perplexity", "vllm": "vLLM (usage in each frame)",
}  # fmt: skip


def _cell(case: Case, shape: str) -> str:
    """What a shape costs in US dollars; `≥` where it is an estimate of what was produced, `~` where a price is not known."""
    if shape not in case.shapes:
        return "–"
    if shape == "left before":
        return f"≥ {expected.so_far(case):.9f}"
    return ("~ " if case.status == "estimated" else "") + f"{expected.nano(expected.usd(case, case.tokens)) / 1e9:.9f}"


def _row(case: Case) -> str:
    billed = ", ".join(f"{many:,} {name}" for name, many in case.tokens.items()) + (
        f", {case.searches} searches" if case.searches else ""
    )
    doors = "all" if case.doors == DOORS else ", ".join(case.doors)
    told = " | ".join(_cell(case, shape) for shape in SHAPES)
    return f"| {PROVIDERS[case.kind]} | {case.name} | {billed} | {doors} | {told} |\n"


def page() -> str:
    """The page."""
    all_cells = list(cells())
    exact = sum(CASES[c].status == "exact" and shape != "left before" for c, _, shape in all_cells)
    prices = "".join(
        f"| {model} | " + ", ".join(f"{name} {value:g}" for name, value in row.items() if name != "tiers")
        + "".join(f"; above {t['above']:,}: " + ", ".join(f"{n} {v:g}" for n, v in t.items() if n != "above") for t in row.get("tiers", ()))
        + " |\n"
        for model, row in PRICES.items()
    )  # fmt: skip
    return f"""\
# Cost fixtures

What an exchange costs, held against a plain table: {len(all_cells)} cells, each sent through a running Noria (front door, journey, spool,
keeper) to an endpoint that answers in its vendor's own wire. Written by `python -m tests.golden.table` when every cell had passed; the
tests run with `make test`. The wire is written after the vendors' references, no answer was recorded, and the prices are examples in the
form of the vendors' pages: what is shown is the reckoning, not what a model costs today.

- {exact} cells are `exact`: the row's cost equals the table to the nano-dollar (the issue asks for 0.1 %), and so do the counts of each
  class of token and what their budget has settled.
- `~`: `estimated`, the amount shown is what is priced. Something else is billed whose price is not known.
- `≥`: the caller left before the usage came. The cost is `estimated`, at least what is shown: what the endpoint had produced by then,
  hidden thoughts included.
- *left after*: the caller left when the usage had come, before the end of the stream.
- *doors*: the protocols that callers speak (chat, Responses, Messages, Gemini); each cell of the row is one test in each.

Besides: `noria cost reconcile` on an invoice of all cells; prices that begin at a midnight elsewhere or hold for hours of the day, a batch
over such a turn, model time (`compute_hour`) whole, streamed and left, and the webhook of a budget ([test_prices.py](../../tests/golden/test_prices.py)).

| provider | case | billed tokens | doors | {" | ".join(SHAPES)} |
|---|---|---|---|{"---|" * len(SHAPES)}
{"".join(_row(case) for case in CASES.values())}
## Prices

US dollars a million tokens; a search is dollars a thousand, a request dollars.

| model | price |
|---|---|
{prices}"""


def main() -> None:
    """Run every cell; write the page if all passed."""
    if pytest.main([str(HERE), "-q", "-p", "no:cacheprovider", "--ignore", str(HERE / "test_table.py")]) != 0:
        sys.exit("not every cell has passed: the page stays as it is")
    PAGE.write_text(page(), "utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")


if __name__ == "__main__":
    main()
