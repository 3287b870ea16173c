"""No request costs more than its bound, however it is written."""

from __future__ import annotations

import pytest
from msgspec import json
from msgspec.structs import replace
from tests.unit.gateway.test_limits import ask

from noria.contracts.release import Endpoint, Price, Timeouts
from noria.contracts.routing import Hedge, Routing
from noria.gateway.bound import DEFAULT_OUTPUT, IMAGE_TOKENS, LONGEST_CONTEXT, bound, limited, output_limit, reserve_amount


def routed(x, *endpoints, params=None):
    return replace(x, release=replace(x.release, route=endpoints or x.release.route, params=params or {}))


@pytest.mark.parametrize(
    ("body", "params", "limit"),
    [
        ({}, {}, None),
        ({"max_tokens": 5}, {}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 9}, {}, 9),
        ({"max_tokens": None}, {"max_tokens": 9}, 9),
        ({"max_completion_tokens": 7}, {"max_tokens": 99}, 99),
        ({}, {"max_completion_tokens": 11}, 11),
    ],
)
def test_the_limit_is_the_largest_that_the_endpoint_is_sent(body, params, limit) -> None:
    assert output_limit(routed(ask(**body), params=params)) == limit


@pytest.mark.parametrize(
    ("body", "kind", "times"),
    [
        ({"n": 3}, "chat", 3),
        ({"n": 2, "best_of": 5}, "completion", 5),
        ({"prompt": ["a", "b", "c"], "n": 2}, "completion", 6),
        ({"prompt": [1, 2, 3]}, "completion", 1),
        ({"prompt": [[1, 2], [3]]}, "completion", 2),
    ],
)
def test_every_answer_counts(body, kind, times) -> None:
    assert bound(ask(kind=kind, max_tokens=10, **body)).output == 10 * times


def test_an_embedding_has_no_output() -> None:
    x = ask(kind="embedding", input=[[1, 22, 333]])
    assert bound(x).output == 0
    assert bound(x).input >= 3
    assert limited(x) is x


PART = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}


def test_an_image_is_bounded_by_itself_also_where_its_type_is_spelt_with_escapes() -> None:
    x = ask(messages=[{"role": "user", "content": [PART, PART, {"type": "text", "text": 'say "image_url"'}]}])
    assert 2 * IMAGE_TOKENS < bound(x).input < 3 * IMAGE_TOKENS
    hidden = json.encode([{"role": "user", "content": [PART]}]).replace(b'"image_url"', b'"im\\u0061ge_url"')
    import msgspec

    assert bound(replace(x, body={"messages": msgspec.Raw(hidden)})).input > IMAGE_TOKENS
    hidden = hidden.replace(b'"type"', b'"ty\\u0070e"')
    assert bound(replace(x, body={"messages": msgspec.Raw(hidden)})).input > IMAGE_TOKENS


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
        {"tools": [{"type": "web_search"}]},
        {"web_search_options": {}},
    ],
)
def test_what_the_request_does_not_hold_is_bounded_by_the_context_window(body) -> None:
    x = ask(max_tokens=1, **body)
    assert bound(x).input >= LONGEST_CONTEXT
    small = routed(x, Endpoint("m", "p", "m", price=Price(1.0, 0.0), context=8000))
    assert reserve_amount(small) == 8000 * 1000


def test_the_dearest_class_tier_and_endpoint_decide() -> None:
    cheap = Endpoint("cheap", "p", "m", price=Price(0, 0))
    dear = Endpoint("dear", "p", "m", price=Price(1.0, 2.0, cache_write=5.0, reasoning=50.0))
    x = routed(ask(max_tokens=10), cheap, dear)
    size = sum(len(v) for v in x.body.values())
    assert reserve_amount(x) == size * 5000 + 10 * 50_000
    assert reserve_amount(routed(x, cheap, Endpoint("odd", "p", "m"))) is None


def test_model_time_is_bounded_by_the_timeout() -> None:
    own = Endpoint("own", "local", "m", price=Price(0, 0, compute_hour=3.6), timeouts=Timeouts(total=100))
    assert reserve_amount(routed(ask(), own)) == 100_000_000


@pytest.mark.parametrize(
    ("vendor", "provider", "body", "sent"),
    [
        ("", "scripted", {}, {"max_tokens": DEFAULT_OUTPUT}),
        ("openai", "openai_compatible", {}, {"max_completion_tokens": DEFAULT_OUTPUT}),
        ("openai", "openai_compatible", {"max_tokens": 3}, {"max_tokens": 3}),
        ("", "openai_compatible", {"max_completion_tokens": 7}, {"max_completion_tokens": 7, "max_tokens": 7}),
        ("mistral", "openai_compatible", {"max_completion_tokens": 7}, {"max_completion_tokens": 7}),
        ("", "scripted", {"max_tokens": None}, {"max_tokens": DEFAULT_OUTPUT}),
    ],
)
def test_a_missing_limit_is_put_in_under_the_name_that_the_endpoint_knows(vendor, provider, body, sent) -> None:
    x = limited(routed(ask(**body), Endpoint("m", provider, "m", vendor=vendor, price=Price(1, 1))))
    assert {k: json.decode(v) for k, v in x.body.items() if k.startswith("max_")} == sent


def test_a_null_does_not_undo_the_releases_limit() -> None:
    x = limited(routed(ask(max_tokens=None), params={"max_tokens": 9}))
    assert bytes(x.body["max_tokens"]) == b"9"


def test_the_callers_own_protocol_gets_the_limit_too() -> None:
    import msgspec

    x = replace(ask(), dialect="responses", native={"input": msgspec.Raw(b'"hi"')})
    assert bytes(limited(x).native["max_output_tokens"]) == b"%d" % DEFAULT_OUTPUT
    assert limited(replace(x, dialect="gemini")).native == {}


def test_a_hedged_exchange_may_be_billed_by_each_of_its_attempts() -> None:
    price = Price(input=1.0, output=2.0)
    x = routed(ask(max_tokens=10), Endpoint("a", "p", "m", price=price), Endpoint("b", "p", "m", price=price))
    assert x.release is not None
    once = reserve_amount(x)
    hedged = replace(x, release=replace(x.release, routing=Routing(hedge=Hedge(most=2))))
    assert once is not None
    assert reserve_amount(hedged) == 3 * once
