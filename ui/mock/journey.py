"""The mock's model journey: answers that a running service gave on the demo's help desk (`journey.json`), and what changes of them.

Recorded with the real API, so that the pages are tested on its shapes; shortened where lists are long.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

from people import Refused

FAMILIES = ("datasets", "rows", "jobs", "evaluations", "releases", "rollouts", "artifacts", "drift", "refreshes")
RECORDED = json.loads((Path(__file__).parent / "journey.json").read_text(encoding="utf-8"))
TOUCHED = 20
"""Steps that a running job makes between two looks."""


def mine(path: str) -> bool:
    return path.split("/")[2] in FAMILIES


class Journey:
    """State and calls. `nothing`: a service that has neither data nor a second release."""

    def __init__(self, *, nothing: bool = False) -> None:
        self.nothing = nothing
        self.now: dict[str, Any] = copy.deepcopy(RECORDED)
        self.said: list[tuple[str, str, str]] = []
        """(what, action, why) of every decision of a person."""
        self.compared = 0
        """How often two evaluations were compared."""
        self.failing = ""
        """A family that answers 500."""

    def call(self, method: str, path: str, query: dict[str, list[str]], body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON."""
        family, *rest = path.split("/")[2:]
        if family == self.failing:
            raise Refused(500, "internal_error", "Noria made a mistake with this request.")
        given = {k: v[0] for k, v in query.items()}
        answer: Any = getattr(self, f"_{family}")(method, rest, given, body)
        if answer is None:
            raise Refused(404, "not_found", f"There is no {'/'.join([family, *rest])}.")
        return 200, answer

    def refresh(self, state: str) -> dict[str, Any]:
        """A further turn, in another state than the recorded one: `asks` before its rollout, `running` at its training."""
        turn: dict[str, Any] = copy.deepcopy(RECORDED["refreshes"][0])
        at = {"asks": "rollout", "running": "train"}[state]
        place = next(i for i, s in enumerate(turn["steps"]) if s["name"] == at)
        for i, step in enumerate(turn["steps"][place:]):
            step |= {"state": "waiting" if i else state, "says": "", "ended_ns": "0", "output": {}}
        turn["steps"][place]["says"] = "A person is asked before the step rollout." if state == "asks" else ""
        turn |= {"id": f"refresh_{state}", "state": state, "at": at, "ended_ns": "0", "words": [], "says": ""}
        if state == "running":
            turn["progress"] = {"job": "train_1", "phase": "train", "step": 40, "steps": 120, "loss": 1.25, "eta_seconds": 80.0}
        self.now["refreshes"].insert(0, turn)
        return turn

    # -- by family ----------------------------------------------------------------------------------

    def _datasets(self, method: str, rest: list[str], given: dict[str, str], body: dict[str, Any]) -> Any:
        versions = [] if self.nothing else self.now["versions"]
        if not rest:
            return {"versions": versions[:1]}
        if len(rest) == 1:
            return {"versions": versions, "next": None} if versions and rest[0] == versions[0]["name"] else None
        version = next((v for v in versions if rest[1] in (v["id"], "latest")), None)
        if version is None or len(rest) == 2:
            return version
        if rest[2:] == ["rows"]:
            found = [r for r in self.now["rows"] if r["id"] > given["after"] and given["split"] in ("", r["split"])]
            page = found[: int(given["limit"])]
            return {"rows": page, "next": page[-1]["id"] if len(page) == int(given["limit"]) else None}
        if rest[2:] == ["rejections"]:
            return {"rejections": self.now["rejections"], "next": None, "total": version["rejected"]}
        if rest[2:] == ["rejections", "rules"]:
            counts: dict[tuple[str, str], int] = {}
            for r in self.now["rejections"]:
                counts[r["stage"], r["rule"]] = counts.get((r["stage"], r["rule"]), 0) + 1
            return [{"stage": s, "rule": r, "rows": n} for (s, r), n in counts.items()]
        return self.now["diff"] | {"after": version}

    def _rows(self, method: str, rest: list[str], given: dict[str, str], body: dict[str, Any]) -> Any:
        known = {r["id"]: r for part in ("rows", "survivors", "read") for r in self.now[part]}
        return {"rows": [known[i] for i in body["ids"] if i in known]}

    def _jobs(self, method: str, rest: list[str], given: dict[str, str], body: dict[str, Any]) -> Any:
        jobs = [] if self.nothing else self.now["jobs"]
        if len(rest) == 1:
            return [j | {"progress": []} for j in jobs]
        job = next((j for j in jobs if j["id"] == rest[1]), None)
        if job is None:
            return None
        if rest[2:]:
            job |= {"state": {"stop": "stopped", "resume": "running"}[rest[2]], "reason": ""}
            self.said.append((job["id"], rest[2], ""))
        if job["state"] == "running":
            self._on(job)
        after = int(given.get("after", 0))
        return job | {"progress": job["progress"][after:], "next": len(job["progress"])}

    @staticmethod
    def _on(job: dict[str, Any]) -> None:
        """A running job goes on while it is looked at."""
        last = job["progress"][-1]
        step = last.get("step", 0) + TOUCHED
        line = {"at_ns": time.time_ns(), "phase": "train", "step": step, "steps": last.get("steps", 0), "loss": 0.5, "seconds_per_step": 0.25, "eta_seconds": 75.0}  # fmt: skip
        job["progress"].append(line)
        job["now"] = line

    def _evaluations(self, method: str, rest: list[str], given: dict[str, str], body: dict[str, Any]) -> Any:
        found = [] if self.nothing else self.now["evaluations"]
        if not rest:
            return {
                "evaluations": [e | {"report": e["report"] and e["report"] | {"items": []}} for e in found],
                "total": len(found),
            }
        if rest == ["compare"]:
            self.compared += 1
            margin = next(iter(body["margins"].values()), 0.0)
            return {"comparisons": [c | {"margin": margin} for c in self.now["comparisons"]]}
        return next((e for e in found if e["id"] == rest[0]), None)

    def _releases(self, method: str, rest: list[str], given: dict[str, str], body: dict[str, Any]) -> Any:
        rows = [] if self.nothing else [r for r in self.now["releases"] if given.get("app", "") in ("", r["app"])]
        if not rest:
            return rows
        named = given | body
        if rest == ["verify"]:
            return self.now["verified"].get(f"{named['app']}/{named['name']}")
        if rest == ["compare"]:
            return self.now["differences"]
        row = next(r for r in rows if r["name"] == named["name"])
        return row | {"parts": self.now["parts"][f"{row['app']}/{row['name']}"]}

    def _rollouts(self, method: str, rest: list[str], given: dict[str, str], body: dict[str, Any]) -> Any:
        found = [] if self.nothing else self.now["rollouts"]
        if not rest:
            return [r for r in found if given.get("app", "") in ("", r["app"])]
        rollout = next((r for r in found if r["id"] == rest[0]), None)
        if method == "POST" and rollout is not None:
            self.said.append((rollout["id"], body["action"], body["why"]))
            states = {"promote": "promoted", "rollback": "rolled_back", "pause": "paused", "resume": "running"}
            rollout |= {"state": states[body["action"]], "reason": f"admin: {body['why']}"}
        return rollout

    def _artifacts(self, method: str, rest: list[str], given: dict[str, str], body: dict[str, Any]) -> Any:
        return self.now["artifacts"]

    def _drift(self, method: str, rest: list[str], given: dict[str, str], body: dict[str, Any]) -> Any:
        if not rest:
            return [] if self.nothing else self.now["drifts"]
        if rest[1:] == ["run"]:
            self.now["drift"]["checked_ns"] = str(time.time_ns() + 10**10)
            self.said.append((rest[0], "run", ""))
            return {"id": "drift_1"}
        return self.now["drift"]

    def _refreshes(self, method: str, rest: list[str], given: dict[str, str], body: dict[str, Any]) -> Any:
        found = [] if self.nothing else self.now["refreshes"]
        if not rest:
            return {"refreshes": found, "total": len(found)}
        turn = next((r for r in found if r["id"] == rest[0]), None)
        if method == "POST" and turn is not None:
            if rest[1] in ("reject", "waive") and not body["why"]:
                raise Refused(400, "reason_missing", f"To {rest[1]} needs a reason.")
            self.said.append((turn["id"], rest[1], body["why"]))
            states = {"approve": "running", "waive": "running", "resume": "running", "reject": "rejected", "stop": "stopped"}
            word = {"action": rest[1], "step": turn["at"], "by": "admin", "at_ns": str(time.time_ns()), "why": body["why"]}
            turn |= {"state": states[rest[1]], "words": [*turn["words"], word]}
        return turn
