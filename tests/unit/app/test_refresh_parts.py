"""Small parts of a refresh: names of what it begins, what a person's label means, how a rollout's end is read."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from msgspec.structs import replace

from noria.app.refresh_client import Refused, refusal
from noria.app.refresh_jobs import child
from noria.app.refresh_rollout import _ended, settled
from noria.app.releases import artifacts_of
from noria.contracts.dataset import Rejection
from noria.contracts.error import Conflict, Unavailable
from noria.contracts.refresh import Released, Rolled
from noria.contracts.release import Endpoint, Release
from noria.data.harvest import Asked, Judgement, judged, row_of
from noria.kit.ids import uuid7
from noria.release.identity import release_id

NEW = Released("r1:new", "tuned", False, "")


def test_what_a_turn_begins_has_a_name_that_sorts_like_the_turn() -> None:
    turn = "refresh_" + uuid7()
    a, b = child(turn, "train d1:a"), child(turn, "train d1:b")
    assert a == child(turn, "train d1:a") != b
    for made in (a, b):
        assert uuid.UUID(made).version == 7
        assert made[:13] == turn.removeprefix("refresh_")[:13], "as old as the turn"


def asked(*feedback: Judgement) -> Asked:
    messages = ({"role": "user", "content": "my card is gone"},)
    return Asked("x", 1, "desk", "r1:old", "ok", messages=messages, answer="loan", feedback=feedback)


def test_only_what_a_person_said_becomes_truth() -> None:
    def row(*feedback: Judgement) -> Any:
        one = asked(*feedback)
        made = row_of(one, lambda _: "en")
        assert not isinstance(made, Rejection)
        return judged(one, made)

    assert row(Judgement("thumb", "thumbs_up", 1.0)).rule == "not_judged"
    assert (row(Judgement("label", text="card")).answer, row(Judgement("label", text="card")).label) == ("", "card")
    corrected = row(Judgement("label", text="card"), Judgement("correction", text="Block it."))
    assert (corrected.answer, corrected.label) == ("Block it.", "card")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (409, b'{"error": {"message": "over", "code": "stale"}}', Conflict),
        (503, b'{"error": {"message": "starting"}}', Unavailable),
        (400, b'{"error": {"message": "no", "code": "bad"}}', Refused),
        (500, b"oops", Refused),
    ],
)
def test_answers_of_the_service_as_errors(status: int, body: bytes, kind: type) -> None:
    assert type(refusal(status, body)) is kind


def shown(state: str, **more: Any) -> dict[str, Any]:
    return {"id": "roll", "state": state, "reason": "so it was", "decisions": [{"evidence": {"harm": 2.0}}], **more}


def test_the_end_of_a_rollout() -> None:
    assert _ended(shown("running")) is None
    assert _ended(shown("paused")) is None
    assert _ended(shown("rolled_back")) == Rolled("roll", "rolled_back", {"harm": 2.0}, "so it was")
    with pytest.raises(Refused, match="refused at its gate"):
        _ended(shown("rejected"))


def test_what_serves_afterwards_is_looked_up() -> None:
    def row(name: str, percent: float) -> dict[str, Any]:
        return {"name": name, "id": f"r1:{name}", "percent": percent}

    promoted = Rolled("roll", "promoted", {}, "")
    found = settled([row("old", 0.0), row("new", 100.0)], NEW, promoted)
    assert (found.current, found.percent) == ("r1:new", 100.0)
    assert "Somebody has changed" not in found.says
    assert "Somebody has changed" in settled([row("old", 60.0), row("new", 40.0)], NEW, promoted).says
    assert "Somebody has changed" not in settled([row("old", 100.0)], NEW, Rolled("r", "rolled_back", {}, "")).says


def test_a_classifier_is_pinned_by_its_content_wherever_it_lies(tmp_path: Any) -> None:
    def release(artifact: str, file: str, sha: str) -> Release:
        options = {"artifact": artifact, "file": file, "sha256": sha}
        return Release("", "n", "a", (Endpoint("t", "tiny", "tiny-1", options=options, digests={"weights": f"sha256:{sha}"}),))

    one, moved = release("a1:x", "/here", "ab"), release("a1:y", "/there", "ab")
    assert release_id(one, {}) == release_id(moved, {}) != release_id(release("a1:x", "/here", "cd"), {})
    by_hand = replace(one.route[0], options={"file": "/here"}, digests={})
    other = replace(by_hand, options={"file": "/there"})
    assert release_id(replace(one, route=(by_hand,)), {}) != release_id(replace(one, route=(other,)), {})
    assert artifacts_of(tmp_path, one) == ["a1:x"], "so that its signature is verified, and nobody collects it"
