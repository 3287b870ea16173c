"""Who may ask, for what: keys, apps and releases, all in memory."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as msgspec_replace

from noria.contracts.error import NotFound, RequestError, Unauthorized, Unavailable
from noria.contracts.exchange import Exchange
from noria.contracts.release import App, Key, Release, Snapshot
from noria.gateway.admit import CONSOLE, Admit, choose
from noria.kit.ids import digest

CLOCK = SimpleNamespace(now_ns=lambda: 1000)


def app(name: str, **weights: float) -> App:
    return App(name, {n: Release(f"r1:{name}-{n}", n, name, ()) for n in weights}, weights)


def admit(*keys: Key, required: bool = False) -> Admit:
    apps = {"support": app("support", main=1.0), "small": app("small", main=1.0)}
    snapshot = Snapshot("c1:x", "local", 1, apps, {k.hash: k for k in keys}, keys_required=required)
    embedders = {"nano": Release("r1:nano", "main", "nano", ())}
    return Admit(snapshot, embedders, clock=CLOCK, is_session=lambda text: text == "v1.session")


def key(text: str = "nk-good", **what: object) -> Key:
    return Key("key_1", digest(text.encode()), **what)


def ask(model: str = "support", authorization: str = "", kind: str = "chat", **more: object) -> Exchange:
    return Exchange("x", "t", "s", "local", kind, model, False, {}, 0, authorization=authorization, **more)


def test_the_release_is_pinned_and_the_secret_is_dropped() -> None:
    x = admit(key())(ask(authorization="nk-good"))
    assert x.release.id == "r1:support-main"
    assert x.key.id == "key_1"
    assert x.authorization == ""


def test_without_keys_the_machine_itself_may_ask_whatever_it_sends() -> None:
    for sent in ("", "sk-anything"):
        x = admit()(ask(authorization=sent))
        assert x.key is None
        assert x.authorization == ""


def test_who_sends_a_key_is_never_taken_for_nobody() -> None:
    """A worker that has not heard of the first key yet must not let its holder in unnamed, and past the key's budget."""
    with pytest.raises(Unauthorized) as e:
        admit()(ask(authorization="nk-first"))
    assert e.value.code == "invalid_api_key"


def test_without_keys_other_machines_may_not_ask() -> None:
    with pytest.raises(Unauthorized) as e:
        admit()(ask(peer_is_loopback=False))
    assert (e.value.status, e.value.code) == (401, "missing_api_key")


def test_the_first_key_closes_the_door_to_everyone_without_one() -> None:
    with pytest.raises(Unauthorized) as e:
        admit(key())(ask())
    assert e.value.code == "missing_api_key"


def test_keys_can_be_required_before_there_is_one() -> None:
    with pytest.raises(Unauthorized):
        admit(required=True)(ask())


def test_an_unknown_key_is_named_as_such_and_never_repeated() -> None:
    with pytest.raises(Unauthorized) as e:
        admit(key())(ask(authorization="nk-wrong"))
    assert e.value.code == "invalid_api_key"
    assert "nk-wrong" not in e.value.text


@pytest.mark.parametrize(("expires_ns", "good"), [(None, True), (1001, True), (1000, False), (1, False)])
def test_a_key_works_until_it_expires(expires_ns: int | None, good: bool) -> None:
    door = admit(key(expires_ns=expires_ns))
    if good:
        assert door(ask(authorization="nk-good")).key is not None
    else:
        with pytest.raises(Unauthorized, match="expired"):
            door(ask(authorization="nk-good"))


def test_a_console_session_counts_as_the_operator() -> None:
    assert admit(key())(ask(authorization="v1.session")).key is CONSOLE


def test_a_key_opens_only_its_apps() -> None:
    door = admit(key(apps=("support",)))
    assert door(ask(authorization="nk-good")).release.app == "support"
    with pytest.raises(Unauthorized) as e:
        door(ask("small", authorization="nk-good"))
    assert (e.value.status, e.value.code, e.value.param) == (403, "model_not_allowed", "model")


def test_a_forbidden_key_does_not_learn_whether_an_app_exists() -> None:
    door = admit(key(apps=("support",)))
    codes = set()
    for model in ("small", "no-such-app"):
        with pytest.raises(Unauthorized) as e:
            door(ask(model, authorization="nk-good"))
        codes.add(e.value.code)
    assert codes == {"model_not_allowed"}


def test_an_unknown_app_gets_the_nearest_name() -> None:
    with pytest.raises(NotFound) as e:
        admit()(ask("suport"))
    assert (e.value.status, e.value.code) == (404, "model_not_found")
    assert "'support'" in e.value.text


def test_embeddings_are_asked_of_embedders_only() -> None:
    assert admit()(ask("nano", kind="embedding")).release.id == "r1:nano"
    with pytest.raises(NotFound):
        admit()(ask("support", kind="embedding"))
    with pytest.raises(NotFound):
        admit()(ask("nano"))


def test_traffic_is_shared_out_by_weight_whatever_the_weights_sum_to() -> None:
    two = app("support", a=30.0, b=90.0)
    seen = Counter(choose(two, f"conversation {i}").name for i in range(4000))
    assert seen["b"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_a_conversation_stays_with_its_release() -> None:
    two = app("support", a=1.0, b=1.0)
    assert len({choose(two, "conversation 7").id for _ in range(50)}) == 1


def test_the_share_of_another_app_is_drawn_independently() -> None:
    apps = app("one", a=1.0, b=1.0), app("two", a=1.0, b=1.0)
    same = sum(choose(apps[0], str(i)).name == choose(apps[1], str(i)).name for i in range(1000))
    assert 400 < same < 600


def test_a_release_without_weight_gets_nothing() -> None:
    two = app("support", a=0.0, b=1.0)
    assert {choose(two, str(i)).name for i in range(300)} == {"b"}
    three = app("support", a=1.0, b=1.0, c=0.0)
    assert {choose(three, str(i)).name for i in range(300)} == {"a", "b"}


def test_stickiness_follows_the_conversation_then_the_subject_then_the_exchange() -> None:
    snapshot = Snapshot("c1:x", "local", 1, {"support": app("support", a=1.0, b=1.0)}, {})
    door = Admit(snapshot, {}, clock=CLOCK, is_session=lambda _: False)

    def names(**fixed: str) -> set[str]:
        return {
            door(Exchange(f"x{i}", "t", "s", "local", "chat", "support", False, {}, 0, **fixed)).release.name for i in range(40)
        }

    assert len(names(conversation="c")) == 1
    assert len(names(subject="s")) == 1
    assert len(names()) == 2


# -- scopes of a key ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["nk-goo", "nk-good ", "nk-goodx", "NK-GOOD", "nk-", "k-good"])
def test_only_the_whole_text_of_a_key_opens(text: str) -> None:
    with pytest.raises(Unauthorized):
        admit(key())(ask(authorization=text))


def test_two_keys_that_begin_alike_are_two_keys() -> None:
    start = "nk-" + "a" * 40
    one, two = key(start + "1"), Key("key_2", digest((start + "2").encode()))
    door = admit(one, two)
    assert [door(ask(authorization=start + n)).key.id for n in "12"] == ["key_1", "key_2"]


@pytest.mark.parametrize(
    ("endpoints", "path", "allowed"),
    [
        ((), "/v1/anything", True),
        (("/v1/chat/completions",), "/v1/chat/completions", True),
        (("/v1/chat/completions",), "/v1/chat/completions/", False),
        (("/v1/files*",), "/v1/files/f1/content", True),
        (("/v1/files/*",), "/v1/files", False),
        (("/v1/embeddings", "/v1/models*"), "/v1/models/a/b", True),
        (("/v1/embeddings",), "/v1/models", False),
        (("/v1/chat*",), "", False),
        (("/v1*",), "/v1/models", True),
    ],
)
def test_a_key_calls_its_endpoints_only(endpoints: tuple[str, ...], path: str, allowed: bool) -> None:
    door = admit(key(endpoints=endpoints))
    if allowed:
        assert door(ask(authorization="nk-good", path=path)).key is not None
        return
    with pytest.raises(Unauthorized) as e:
        door(ask(authorization="nk-good", path=path))
    assert (e.value.status, e.value.code) == (403, "endpoint_not_allowed")


def test_a_disabled_key_is_refused_by_name() -> None:
    with pytest.raises(Unauthorized) as e:
        admit(key(withheld="disabled"))(ask(authorization="nk-good"))
    assert (e.value.status, e.value.code) == (401, "key_disabled")


def test_a_guard_that_is_gone_is_our_outage_not_the_callers() -> None:
    with pytest.raises(Unavailable) as e:
        admit(key(withheld="guard_missing", guard_name="strict"))(ask(authorization="nk-good"))
    assert (e.value.status, e.value.code) == (503, "guard_missing")
    assert "'strict'" in e.value.text


def test_a_keys_own_tags_stand_above_those_of_the_request() -> None:
    x = admit(key(tags={"env": "prod"}))(ask(authorization="nk-good", tags={"env": "test", "feature": "f"}))
    assert x.tags == {"env": "prod", "feature": "f"}
    assert len(x.warnings) == 1
    same = admit(key(tags={"env": "prod"}))(ask(authorization="nk-good", tags={"env": "prod"}))
    assert same.warnings == ()


def test_tags_are_bounded_with_the_keys_own() -> None:
    door = admit(key(tags={f"k{i}": "x" for i in range(10)}))
    assert len(door(ask(authorization="nk-good", tags={f"r{i}": "x" for i in range(6)})).tags) == 16
    with pytest.raises(RequestError) as e:
        door(ask(authorization="nk-good", tags={f"r{i}": "x" for i in range(7)}))
    assert (e.value.code, e.value.param) == ("invalid_tags", "x-noria-tags")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=4),
    st.floats(0.01, 60),
    st.floats(0.01, 60),
    st.booleans(),
)
def test_a_release_whose_share_rises_gains_units_and_loses_none(
    others: list[float], low: float, more: float, first: bool
) -> None:
    if not any(others):
        others = [1.0]
    base = {f"r{n}": w for n, w in enumerate(others)}

    def at(percent: float) -> dict[str, str]:
        kept = {n: w * (100 - percent) / sum(others) for n, w in base.items()}
        weights = {"new": percent, **kept} if first else {**kept, "new": percent}
        return {u: choose(app("support", **weights), u).name for u in map(str, range(150))}

    before, after = at(min(low, 99.0)), at(min(low + more, 99.5))
    assert {u for u, r in before.items() if r == "new"} <= {u for u, r in after.items() if r == "new"}
    assert all(after[u] in (r, "new") for u, r in before.items()), "nobody moves between two others"


def test_nobody_who_tried_the_candidate_goes_back_while_its_share_rises() -> None:
    tried: set[str] = set()
    for percent in (1.0, 10.0, 50.0, 100.0):
        two = app("support", old=100 - percent, new=percent)
        now = {u for u in map(str, range(3000)) if choose(two, u).name == "new"}
        assert tried <= now
        assert len(now) / 3000 == pytest.approx(percent / 100, abs=0.03)
        tried = now


def test_another_candidate_is_tried_by_other_people() -> None:
    first, second = (
        {u for u in map(str, range(4000)) if choose(app("support", old=90.0, **{name: 10.0}), u).name == name}
        for name in ("b", "c")
    )
    assert len(first & second) < 0.3 * len(first)


def aliased(**aliases: str) -> Admit:
    apps = {"support": msgspec_replace(app("support", a=90.0, b=10.0), aliases=aliases)}
    snapshot = Snapshot("c1:x", "local", 1, apps, {k.hash: k for k in (key(apps=("support",)),)})
    return Admit(snapshot, {}, clock=CLOCK, is_session=lambda text: text == "v1.session")


def test_an_alias_names_a_release_and_counts_for_the_app_without_counting_for_its_rollout() -> None:
    x = aliased(staging="b")(ask("support@staging", "nk-good"))
    assert (x.release.id, x.model, x.tags) == ("r1:support-b", "support", {"noria.release": "pinned"})
    assert aliased()(ask("support@production", "nk-good")).release.id == "r1:support-a"
    assert aliased(production="b")(ask("support@production", "nk-good")).release.id == "r1:support-b"
    with pytest.raises(NotFound, match="support@b"):
        aliased()(ask("support@b", "nk-good"))
    assert aliased()(ask("support@b", "v1.session")).release.id == "r1:support-b", "an operator names releases"
    with pytest.raises(NotFound):
        aliased(staging="gone")(ask("support@staging", "nk-good"))
