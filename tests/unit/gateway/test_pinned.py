"""Who may ask one release by name, and what an evaluation's exchange counts as."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from noria.contracts.error import NotFound, Unauthorized
from noria.contracts.evaluation import EVALUATOR, Pass
from noria.contracts.exchange import Exchange
from noria.contracts.release import App, Release, Snapshot
from noria.gateway.admit import PINNED, Admit
from noria.gateway.scope import scopes

RELEASES = {n: Release(f"r1:{n}", n, "desk", ()) for n in ("main", "next")}
SNAPSHOT = Snapshot("c1:x", "local", 1, {"desk": App("desk", RELEASES, {"main": 1.0, "next": 0.0})}, {})
GIVEN = Pass("eval_1", "desk", "r1:next", 10)
ADMIT = Admit(
    SNAPSHOT, {"nano": Release("r1:nano", "main", "nano", ())}, clock=SimpleNamespace(now_ns=lambda: 1),
    is_session=lambda text: text == "session", passed=lambda text: GIVEN if text == "np-good" else None,
)  # fmt: skip


def exchange(authorization: str = "", **what: object) -> Exchange:
    made = Exchange("id", "t", "s", "local", "chat", "desk", False, {}, 0, authorization=authorization)
    return replace(made, **what)


@pytest.mark.parametrize("name", ["next", "r1:next"])
def test_an_operator_may_ask_any_release_by_name_or_id(name: str) -> None:
    x = ADMIT(exchange("session", pin=name))
    assert x.release is RELEASES["next"]
    assert x.tags == {PINNED[0]: PINNED[1]}, "no rollout counts it"


def test_nobody_else_may() -> None:
    for authorization, code, status in (("", "release_not_allowed", 403), ("np-bad", "invalid_pass", 401)):
        with pytest.raises(Unauthorized) as caught:
            ADMIT(exchange(authorization, pin="next"))
        assert (caught.value.code, caught.value.status) == (code, status)
    with pytest.raises(NotFound, match="nxt"):
        ADMIT(exchange("session", pin="nxt"))


def test_a_pass_asks_its_release_and_nothing_else() -> None:
    x = ADMIT(exchange("np-good", pin="r1:next", priority="high", tags={"noria": "no", "mine": "1"}))
    assert x.release is RELEASES["next"]
    assert x.key is not None
    assert (x.key.id, x.authorization, x.priority) == (EVALUATOR, "", "low")
    assert x.tags == {"mine": "1", "noria": "eval", "evaluation": "eval_1", PINNED[0]: PINNED[1]}
    assert ADMIT(exchange("np-good")).release is RELEASES["next"], "the header may be left out"
    for wrong in ({"pin": "r1:main"}, {"model": "other"}, {"kind": "embedding", "model": "nano"}):
        with pytest.raises(Unauthorized):
            ADMIT(exchange("np-good", **wrong))


def test_an_evaluation_uses_up_nothing_of_the_apps_callers() -> None:
    assert "app:desk" not in scopes(ADMIT(exchange("np-good")))
    assert {"tenant", "key:evaluation", "tag:noria=eval"} <= set(scopes(ADMIT(exchange("np-good"))))
    assert "app:desk" in scopes(ADMIT(exchange("session")))
