"""The most that an exchange can cost, from the request alone: what a budget sets aside before the model is called.

Input: a token stands for at least one byte of the JSON that it comes in, template and tool framing included, so bytes
bound tokens. What is not in the request as text is bounded apart: an image by `IMAGE_TOKENS`, whatever its size; a file, a
video or a tool that the provider runs itself (web search) by the context window, or `LONGEST_CONTEXT` where that is not
known. Output: the larger of the caller's limits, else the release's, else one that is put in, times the number of answers.
Prices: the dearest class of token of the dearest endpoint of the route, at its dearest tier.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, json
from msgspec.structs import replace

from noria.contracts.exchange import Exchange
from noria.contracts.price import most
from noria.contracts.release import Release

DEFAULT_OUTPUT = 1024
"""Output limit put in under a budget where neither caller nor release states one (DESIGN §5.3)."""
IMAGE_TOKENS = 50_000
"""Above what any vendor counts for one image: gpt-4o-mini, the highest, 2,833 + 8 × 5,667 (8 tiles are its most)."""
LONGEST_CONTEXT = 2_000_000
TOOLS_TOKENS = 1024
"""What providers put into the prompt besides the tools themselves (Anthropic: up to 735)."""
LIMITS = ("max_completion_tokens", "max_tokens")
_NEEDLES = (b'"image', b'"file', b'"video', b'"document', b'"input_', b"\\u00")
"""What a request with a part that is no text must contain: in its type, or in an escape that hides it."""
_RUN_BY_PROVIDER = frozenset({"web_search_options", "plugins", "search_parameters"})
_TAKE_BOTH = frozenset({"local", "scripted", "anthropic"})
"""Providers that take either name of the output limit; those of known vendors translate."""
_OWN_NAMES = frozenset({"openai", "azure"})
"""Vendors whose newer models refuse `max_tokens`."""


class Bound(NamedTuple):
    """Tokens that an exchange has at most; `estimate` is what a rate sets aside for it: likely, not at most."""

    input: int
    output: int
    estimate: int


def bound(x: Exchange) -> Bound:
    """How many tokens `x` can take and give."""
    body = x.body
    size = sum(map(len, body.values()))
    if x.native:
        size = max(size, sum(map(len, x.native.values())))
    output = 0 if x.kind == "embedding" else answers(x) * (output_limit(x) or DEFAULT_OUTPUT)
    images, unbounded = others(x)
    total = size + images * IMAGE_TOKENS
    if "tools" in body or "functions" in body:
        total += TOOLS_TOKENS
    if unbounded or not _RUN_BY_PROVIDER.isdisjoint(body):
        total = max(total, LONGEST_CONTEXT)
    if "prediction" in body:
        output += len(body["prediction"])  # rejected predictions are billed as output
    return Bound(total, output, size // 4 + images * 1000 + output)


def reserve_amount(x: Exchange, found: Bound | None = None) -> int | None:
    """Nano-dollars that `x` can cost at most by its dearest endpoint, at the prices of when it began; None where one is unknown."""
    assert x.release is not None, "admit comes first"
    found = found or bound(x)
    amount = 0
    for e in x.release.route:
        price = e.price_at(x.started_ns)
        if price is None:
            return None
        taken = found.input if e.context is None or found.input <= e.context else max(e.context, _text(x))
        amount = max(amount, most(price, taken, found.output, seconds=e.timeouts.total))
    hedge = x.release.routing.hedge
    return amount if hedge is None else amount * (1 + hedge.most)  # both attempts of a race may bill


def _text(x: Exchange) -> int:
    """Bytes of the request: a window that is stated too small must not make the bound too small for plain text."""
    return sum(map(len, x.body.values()))


def answers(x: Exchange) -> int:
    """How many answers are generated: `n`, or `best_of` where that is more, for each prompt of a list."""
    body = x.body
    many = max(_int(body.get("n")) or 1, _int(body.get("best_of")) or 1)
    if x.kind == "completion" and "prompt" in body:
        prompt = _decoded(body["prompt"])
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            many *= len(prompt)
    return many


def output_limit(x: Exchange) -> int | None:
    """The largest limit of output tokens that the endpoint is sent, the caller's or the release's, or None: which of two
    names an endpoint honours is not known of all.
    """
    params = x.release.params if x.release else {}
    largest: int | None = None
    for name in LIMITS:
        value = _int(x.body.get(name))
        if value is None and isinstance(own := params.get(name), int):
            value = own
        if value is not None and (largest is None or value > largest):
            largest = value
    return largest


def limited(x: Exchange) -> Exchange:
    """`x` with an output limit that every endpoint of its route understands, put in where it lacks one."""
    assert x.release is not None, "admit comes first"
    if x.kind == "embedding":
        return x
    body, release = x.body, x.release
    limit = output_limit(x)
    nulls = [n for n in LIMITS if n in body and _int(body[n]) is None]  # a null would undo the release's own limit
    names = fields_of(release)
    if (
        limit is not None
        and not nulls
        and (_known(names, x) or all(e.vendor or e.provider in _TAKE_BOTH for e in release.route))
    ):
        return x
    value = Raw(b"%d" % (DEFAULT_OUTPUT if limit is None else limit))
    made = {k: v for k, v in body.items() if k not in nulls}
    made |= {n: value for n in names if limit is None or not _known((n,), x)}
    fresh = replace(x, body=made)
    return replace(fresh, native=_native(x, value)) if x.native and limit is None else fresh


def _known(names: tuple[str, ...], x: Exchange) -> bool:
    params = x.release.params if x.release else {}
    return all(_int(x.body.get(n)) is not None or (n not in x.body and n in params) for n in names)


def fields_of(release: Release) -> tuple[str, ...]:
    """The names under which the endpoints of a route take the output limit. OpenAI's reasoning models refuse `max_tokens`,
    which servers of unknown make are likeliest to know; the vendors' providers translate between the two.
    """
    for e in release.route:
        if e.vendor in _OWN_NAMES:
            return ("max_completion_tokens",)
    return ("max_tokens",)


def _native(x: Exchange, value: Raw) -> dict[str, Raw]:
    """The caller's own form with the limit put in; without a place for it, the translated form is sent instead."""
    name = {"responses": "max_output_tokens", "anthropic": "max_tokens"}.get(x.dialect)
    return {**x.native, name: value} if name else {}


def others(x: Exchange) -> tuple[int, bool]:
    """Images in a request, and whether it has parts that only the context window bounds."""
    images, unbounded = 0, False
    for name in ("messages", "input", "tools"):
        raw = x.body.get(name)
        if raw is None:
            continue
        if name == "tools":
            listed = _decoded(raw)
            unbounded |= any(isinstance(t, dict) and t.get("type", "function") != "function" for t in _list(listed))
            continue
        data = bytes(raw)
        if b'"type"' not in data and b"\\u00" not in data:
            continue  # plain texts: most requests by far
        if any([needle in data for needle in _NEEDLES]):  # noqa: C419  a generator costs three times as much here
            for kind in _kinds(_decoded(raw)):
                images += kind.startswith(("image", "input_image"))
                unbounded |= kind.startswith(("file", "input_file", "video", "input_video", "document"))
    return images, unbounded


def _kinds(value: Any) -> Iterator[str]:
    """The `type` of every mapping within."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if isinstance(kind := item.get("type"), str):
                yield kind
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _decoded(raw: Raw) -> Any:
    try:
        return json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None


def _int(raw: object) -> int | None:
    if raw is None:
        return None
    text = bytes(raw).strip()  # type: ignore[call-overload]  # msgspec.Raw is a buffer
    return int(text) if text.isdigit() else None
