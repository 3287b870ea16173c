"""Who may answer at all."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from noria.contracts.error import RequestError
from noria.contracts.exchange import Exchange
from noria.contracts.release import Endpoint, Key
from noria.gateway.constraint import allowed, demanded, refusal, too_small, why_not, within
from noria.gateway.facts import Facts


def ask(text: str = "hi", **what: Any) -> Facts:
    body = {"messages": [{"role": "user", "content": text}], **what.pop("body", {})}
    raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in body.items()}
    return Facts(Exchange("x", "t", "s", "local", "chat", "support", False, raw, 0, **what))


def at(region: str, **more: Any) -> Endpoint:
    return Endpoint("e-" + region, "p", "m", region=region, **more)


@pytest.mark.parametrize(
    ("region", "regions", "fits"),
    [
        ("eu", (("eu",),), True),
        ("eu-west-1", (("eu",),), True),
        ("eu", (("eu-west-1",),), False),
        ("europe", (("eu",),), False),
        ("us", (("eu", "us"),), True),
        ("us", (("eu", "us"), ("eu",)), False),
        ("", (("eu",),), False),
        ("", (("eu", ""),), False),
        ("", (), True),
    ],
)
def test_a_region_covers_its_parts_and_an_unknown_one_is_nowhere(region, regions, fits) -> None:
    assert within(at(region), regions) == fits


def test_keys_and_callers_can_narrow_the_regions_and_never_widen_them() -> None:
    own = (("eu", "uk"),)
    assert demanded(ask().x, own) == own
    keyed = ask(key=Key("k", "", tags={"regions": "eu"}), tags={"regions": "eu"}).x
    assert demanded(keyed, own) == (("eu", "uk"), ("eu",))
    wider = ask(key=Key("k", "", tags={"regions": "eu"}), tags={"regions": "us + uk"}).x
    constraints = demanded(wider, own)
    assert not any(within(at(r), constraints) for r in ("eu", "uk", "us"))


def test_an_unknown_region_is_not_let_in_by_a_plus_too_many() -> None:
    constraints = demanded(ask(tags={"regions": "eu+"}).x, ())
    assert within(at("eu-west-1"), constraints)
    assert not within(at(""), constraints)


def test_only_endpoints_of_the_regions_may_see_a_request() -> None:
    route = (at("us"), at("eu-west-1"))
    assert allowed(ask().x, route, ()) is route
    assert allowed(ask().x, route, (("eu",),)) == [route[1]]
    with pytest.raises(RequestError, match=r"regions \[eu\] and \[us\]"):
        allowed(ask(tags={"regions": "us"}).x, route, (("eu",),))


def test_what_is_needed_must_not_lack() -> None:
    lame = at("eu", lacks=("tools", "images"))
    assert why_not(lame, ask(body={"tools": [1]}), ()) == "lacks tools"
    assert why_not(lame, ask(), ()) == ""
    assert why_not(at("eu"), ask(body={"tools": [1]}), ()) == ""


def test_only_a_prompt_that_is_surely_too_long_is_kept_from_a_model() -> None:
    small = at("eu", context=1000)
    assert not too_small(small, ask("word " * 1000))
    assert too_small(small, ask("word " * 2000))
    assert not too_small(at("eu"), ask("word " * 9000))


def test_the_error_names_the_constraint_and_every_model() -> None:
    error = refusal([at("us-east-1"), at("")], ask(body={"tools": [1]}), (("eu",),))
    assert error.code == "no_model_qualifies"
    assert error.status == 400
    assert "regions [eu]" in error.text
    assert "e-us-east-1 computes in 'us-east-1'" in error.text
    assert "has no known region" in error.text
