"""Noria as it is measured: three configurations, one journey (`journeys/prompt.py` in all of them)."""

from __future__ import annotations

from pathlib import Path

MODES = ("plain", "governed", "guarded")

PRICE = ", price: {input: 0.25, output: 2.0, cached: 0.025}"

GOVERNED = """
limits:
  all: {scope: tenant, requests_per_minute: 1000000000, tokens_per_minute: 1000000000000, concurrent: 100000}
budgets:
  all: {scope: tenant, usd: 1000000, window: month}
"""
GUARDS = """
guards:
  all:
    - pii: {action: mask, on: both}
    - secrets: {action: block, on: both}
    - denylist: {action: block, on: both, file: denied.txt}
"""


def nanousd(tokens: int) -> int:
    """What an answer of the mock costs at `PRICE`, 1e-9 US dollars: it says that the prompt had 96 tokens."""
    return 96 * 250 + tokens * 2000


KEY = ("--rpm", "100000000", "--budget", "1000000", "--name", "bench")


def config(mode: str, models: dict[str, tuple[str, str]]) -> str:
    """`noria.yaml` of a mode. `models` says of each App the URL of its endpoint and the model asked for there.

    plain: no key, no budget, no price, no bodies recorded. governed: key, budgets, limits, price, bodies recorded (encrypted).
    guarded: governed, with personal data masked, secrets and a denylist looked for, on both sides.
    """
    price = "" if mode == "plain" else PRICE
    parts = ["serve: {body_limit: 32MB}", "models:"]
    parts += [
        f'  {name}: {{provider: openai_compatible, url: "{url}", model: {model}{price}, options: {{max_connections: 1024}}}}'
        for name, (url, model) in models.items()
    ]
    parts.append("apps:")
    for name in models:
        more = {"plain": ", normalize: false, fit: false, record_bodies: false", "guarded": ", guard: all"}.get(mode, "")
        parts.append(f"  {name}: {{model: {name}{more}}}")
    text = "\n".join(parts) + "\n"
    return text + (GOVERNED if mode != "plain" else "") + (GUARDS if mode == "guarded" else "")


def write(folder: Path, mode: str, models: dict[str, tuple[str, str]]) -> None:
    """The configuration and what it names, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "noria.yaml").write_text(config(mode, models))
    (folder / "denied.txt").write_text("forbidden phrase\nunwanted\n")
