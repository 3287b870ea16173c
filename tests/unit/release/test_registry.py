"""Releases made from others, and what they differ in."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from noria.app.house import identify
from noria.contracts.error import RequestError
from noria.contracts.release import Endpoint, GuardRule, Prompt, Release
from noria.contracts.routing import Routing
from noria.release.registry import Parts, derive, differences

SMALL = Endpoint("small", "local", "smollm2-135m", digests={"weights": "sha256:aa"}, context=8192)
BIG = Endpoint("big", "openai_compatible", "big", url="http://x/v1", vendor="openai")


def release(**what: object) -> Release:
    bare = Release("", "main", "app", (SMALL, BIG), params={"temperature": 0.5})
    made = replace(bare, **what)
    return replace(made, id=identify(made))


def test_each_part_gives_another_release_and_is_told_in_words() -> None:
    parent = release()
    for parts, part in (
        (Parts(model=replace(SMALL, name="other", digests={"weights": "sha256:bb"})), "weights"),
        (Parts(prompt=Prompt("p", "text", "d" * 64)), "prompt"),
        (Parts(guard=(GuardRule("pii", "mask"),), guard_name="g"), "guard"),
        (Parts(params={"temperature": 0.1}), "parameter temperature"),
        (Parts(params={"temperature": None}), "parameter temperature"),
    ):
        made = derive(parent, "next", parts, identify)
        assert (made.name, made.app, made.id != parent.id) == ("next", "app", True)
        assert [d["part"] for d in differences(parent, made)] == [part]
    assert derive(parent, "next", Parts(params={"temperature": None}), identify).params == {}
    assert differences(parent, replace(parent, name="renamed")) == []


def test_fallbacks_stay_and_must_not_be_the_same() -> None:
    made = derive(release(), "next", Parts(model=replace(SMALL, name="s2", model="other", digests={})), identify)
    assert [e.name for e in made.route] == ["s2", "big"]
    with pytest.raises(RequestError, match="fallback"):
        derive(release(), "next", Parts(model=BIG), identify)


def test_the_same_again_and_what_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(RequestError, match="same release"):
        derive(release(), "next", Parts(), identify)
    routed = release(routing=Routing(strategy="weighted", pools=(("small", "big"),)))
    with pytest.raises(RequestError, match="routes by rules"):
        derive(routed, "next", Parts(model=replace(SMALL, name="x")), identify)


def test_an_adapter_counts_by_its_content_and_scale_not_by_its_name() -> None:
    def tuned(id: str, sha: str, scale: float) -> str:
        e = replace(SMALL, options={"adapter": id, "scale": scale}, digests={**SMALL.digests, "adapter": sha})
        return release(route=(e,)).id

    assert tuned("a1:x", "sha256:1", 1.0) == tuned("a1:y", "sha256:1", 1.0)
    assert len({tuned("a1:x", "sha256:1", 1.0), tuned("a1:x", "sha256:2", 1.0), tuned("a1:x", "sha256:1", 0.5)}) == 3
