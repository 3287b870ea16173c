"""A release id: the same for what answers the same, another for anything that changes an answer."""

from __future__ import annotations

from typing import Any

import pytest
from blake3 import blake3
from msgspec.structs import replace

from noria.contracts.release import Endpoint, GuardRule, Price, Prompt, Release, Timeouts
from noria.release.identity import release_id, reproducible

LOCAL = Endpoint("small", "local", "smollm2", digests={"weights": "w1", "tokenizer": "t1"}, options={"parallel": 2})
REMOTE = Endpoint("gpt", "openai_compatible", "gpt-5", vendor="openai")
BASE = Release(
    "",
    "main",
    "support",
    (LOCAL, REMOTE),
    prompt=Prompt("p", "Be kind.", "d1"),
    guard=(GuardRule("pii", "mask"),),
    params={"temperature": 0.5},
)
USED = {"admit": 1, "check.pii": 3}


def id_of(release: Release = BASE, used: dict[str, int] | None = None) -> str:
    return release_id(release, used or USED)


def test_the_id_says_its_format() -> None:
    assert id_of().startswith("r1:")
    assert len(id_of()) == 3 + 64


def test_the_format_is_fixed() -> None:
    """A stored id must mean the same content for ever: a change here needs a new prefix."""
    bare = Release("", "n", "a", (Endpoint("e", "local", "m"),))
    form = (
        '{"behaviours":{"admit":1},"fit":true,"guard":[],"memory":0,"normalize":true,"params":{},"prompt":null,'
        '"route":[{"context":null,"model":"m","options":{},"provider":"local"}]}'
    )
    assert release_id(bare, {"admit": 1}) == "r1:" + blake3(form.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"app": "other"},
        {"id": "r1:old"},
        {"guard_name": "strict"},
        {"reproducible": True},
        {"prompt": Prompt("renamed", "Be kind.", "d1")},
        {"route": (replace(LOCAL, name="renamed", url="http://elsewhere", key="env:OTHER"), REMOTE)},
        {"route": (LOCAL, replace(REMOTE, price=Price(1, 2), timeouts=Timeouts(first=1)))},
        {"params": {"temperature": 0.50}},
    ],
)
def test_names_secrets_urls_prices_and_times_do_not_make_a_release(change: dict[str, Any]) -> None:
    assert id_of(replace(BASE, **change)) == id_of()


@pytest.mark.parametrize(
    "change",
    [
        {"route": (REMOTE, LOCAL)},
        {"route": (LOCAL,)},
        {"route": (replace(LOCAL, digests={"weights": "w2", "tokenizer": "t1"}), REMOTE)},
        {"route": (replace(LOCAL, digests={"weights": "w1", "tokenizer": "t2"}), REMOTE)},
        {"route": (replace(LOCAL, options={"parallel": 4}), REMOTE)},
        {"route": (LOCAL, replace(REMOTE, model="gpt-6"))},
        {"route": (LOCAL, replace(REMOTE, vendor="azure"))},
        {"route": (replace(LOCAL, context=99), REMOTE)},
        {"prompt": None},
        {"prompt": Prompt("p", "Be kind.", "d2")},
        {"guard": ()},
        {"guard": (GuardRule("pii", "block"),)},
        {"guard": (GuardRule("pii", "mask", options={"labels": ["email"]}),)},
        {"guard": (GuardRule("pii", "mask"), GuardRule("secrets", "mask"))},
        {"params": {"temperature": 0.6}},
        {"memory": 4},
        {"normalize": False},
        {"fit": False},
    ],
)
def test_whatever_changes_an_answer_changes_the_id(change: dict[str, Any]) -> None:
    assert id_of(replace(BASE, **change)) != id_of()


def test_a_new_behaviour_of_a_stage_is_a_new_release() -> None:
    assert id_of(used={"admit": 1, "check.pii": 4}) != id_of()


def test_order_in_a_mapping_means_nothing() -> None:
    assert id_of(used=dict(reversed(USED.items()))) == id_of()
    turned = replace(LOCAL, digests=dict(reversed(LOCAL.digests.items())))
    assert id_of(replace(BASE, route=(turned, REMOTE))) == id_of()


def test_weights_known_by_their_digest_may_be_renamed() -> None:
    renamed = replace(LOCAL, model="my-copy-of-smollm2")
    assert id_of(replace(BASE, route=(renamed, REMOTE))) == id_of()


@pytest.mark.parametrize(("route", "same"), [((LOCAL,), True), ((LOCAL, REMOTE), False), ((REMOTE,), False), ((), False)])
def test_only_known_weights_all_along_the_route_are_reproducible(route: tuple[Endpoint, ...], same: bool) -> None:
    assert reproducible(replace(BASE, route=route)) is same
