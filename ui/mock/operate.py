"""The mock's money, limits, endpoints and batches: enough of the server's rules for the operators' pages."""

from __future__ import annotations

import datetime as dt
import random
import time
from typing import Any

from people import Refused

MODELS = (
    "gpt-5-mini",
    "qwen3-8b",
    "claude-sonnet-4-5",
    "smollm2-135m",
    "deepseek-v3.2",
    "gemini-3-flash",
    "gpt-5.2",
    "house-model",
    "embedder",
)
FAMILIES = ("cost", "cache", "budgets", "limits", "endpoints", "batches", "files")


def mine(path: str) -> bool:
    return path.split("/")[2] in FAMILIES


class Operations:
    """State and calls. `nothing`: a service that nobody has used or configured yet."""

    def __init__(self, *, nothing: bool = False) -> None:
        self.nothing = nothing
        self.asked: list[dict[str, list[str]]] = []
        """The queries about cost."""
        self.lists: dict[str, list[dict[str, Any]]] = {"budgets": [], "limits": [], "endpoints": [], "batches": [], "files": []}
        if not nothing:
            self._furnish()

    def _furnish(self) -> None:
        now = int(time.time())
        self.lists["budgets"] = [
            _budget("acme-month", "org:acme", 500, used=123.4, reserved=6.1, source="noria.yaml", zone="Europe/Berlin"),
            _budget("budget_1", "team:search", 20, used=18.5, window="day", hard=False, alerts=[0.5, 0.8, 1.0]),
            _budget("key:key_1", "key:key_1", 2, used=2.5, window="total", source="key"),
        ]
        self.lists["limits"] = [
            _limit("everybody", "tenant", rpm=6000, tpm=2_000_000, used=(120, 54_000), source="noria.yaml"),
            _limit("limit_1", "app:support", concurrent=32, used=(32,), queue=5.0),
        ]
        self.lists["endpoints"] = [
            _endpoint("claude", "anthropic", ok=900, busy=4),
            _endpoint("eu-1", "openai", state="ejected", seconds_left=12.5, ok=40, failed=22, said="The endpoint 'eu-1' answered 500: out of memory."),
            _endpoint("vendor", "openai", state="dead", seconds_left=240.0, auth=1, said="The endpoint 'vendor' answered 401: Incorrect API key."),
            _endpoint("spare", "openai", state="unused"),
        ]  # fmt: skip
        self.lists["files"] = [
            {"id": "file-1", "filename": "晚间问题.jsonl", "purpose": "batch", "bytes": 50_269, "created_at": now - 900, "expires_at": now + 2_592_000, "owner": "team:search", "key": "key_1"},
            {"id": "file-2", "filename": "batch_2_output.jsonl", "purpose": "batch_output", "bytes": 812, "created_at": now - 60, "expires_at": now + 2_592_000, "owner": "key:key_gone", "key": "key_gone"},
        ]  # fmt: skip
        wrong = {"code": "invalid_json_line", "message": "This line is not parseable as valid JSON.", "line": 161}
        self.lists["batches"] = [
            _batch("batch_3", "in_progress", now - 40, total=400, completed=130, failed=2),
            _batch("batch_2", "completed", now - 900, total=100, completed=66, failed=34),
            _batch("batch_1", "failed", now - 7200) | {"errors": {"data": [wrong]}},
        ]

    def call(self, method: str, path: str, query: dict[str, list[str]], body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON."""
        family, *rest = path.split("/")[2:]
        if family == "cost":
            return 200, self._cost(query)
        if family == "cache":
            return 200, {"saved_usd": 1.25, "events": {"hit": 40}}
        rows = self.lists[family]
        if not rest:
            if method == "GET":
                return 200, rows
            made = self._make(family, body)
            rows.append(made)
            return 201, made
        row = next(r for r in rows if r["id"] == rest[0])
        if method == "DELETE":
            rows.remove(row)
            return 204, None
        row |= {"status": "cancelling"} if rest[1:] == ["cancel"] else body
        return 200, row

    def _make(self, family: str, body: dict[str, Any]) -> dict[str, Any]:
        if family == "limits":
            named = {"rpm": body["requests_per_minute"], "tpm": body["tokens_per_minute"], "concurrent": body["concurrent"]}
            return _limit("limit_2", body["scope"], **named, queue=body["queue_seconds"])
        if body["zone"] not in ("UTC", "Europe/Berlin"):
            raise Refused(422, "invalid_value", f"zone: {body['zone']!r} is no time zone.")
        return _budget("budget_2", body["scope"], body["usd"], **{n: body[n] for n in ("window", "zone", "hard", "alerts")})

    def _cost(self, query: dict[str, list[str]]) -> dict[str, Any]:
        self.asked.append(query)
        if "nothing" in query.get("filter", [""])[0] or self.nothing:
            return {"by": query["by"], "groups": [], "total": None}
        if query["by"] == ["cache"]:
            groups = [_sums(800, 0.0) | {"cache": ""}, _sums(200, 0.0) | {"cache": "hit"}]
            return {"by": ["cache"], "groups": groups, "total": _sums(1000, 0.0)}
        rng, today = random.Random(5), dt.datetime.now(dt.UTC).date()
        first = dt.date.fromisoformat(query["since"][0])
        names = ("env=prod", "feature=search", "") if query["by"][1] == "tag" else MODELS
        groups = []
        for at in range((today - first).days + 1):
            for n, name in enumerate(names):
                usd = 0.0 if name == "house-model" else round(rng.uniform(0.2, 4) / (n + 1), 6)
                unknown = 3 if name == "house-model" else 0
                groups.append(_sums(40, usd, unknown=unknown) | {"day": str(first + dt.timedelta(at)), query["by"][1]: name})
        return {"by": query["by"], "groups": groups, "total": _added(groups)}


def _sums(exchanges: int, usd: float, *, unknown: int = 0) -> dict[str, Any]:
    return {
        "exchanges": exchanges, "cost_usd": usd, "unknown": unknown, "estimated": exchanges // 20, "zero": 0,
        "tokens_in": exchanges * 400, "tokens_out": exchanges * 90, "cached": exchanges * 100, "cache_write": 0, "reasoning": 0,
    }  # fmt: skip


def _added(groups: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: sum(g[name] for g in groups) for name in _sums(1, 1.0)}


def _budget(id: str, scope: str, usd: float, *, used: float = 0.0, reserved: float = 0.0, **rest: Any) -> dict[str, Any]:
    blank = {"window": "month", "zone": "UTC", "hard": True, "alerts": [0.8, 1.0], "source": "api"} | rest
    return {
        "id": id, "scope": scope, "usd": usd, **blank, "used_usd": used, "reserved_usd": reserved, "left_usd": max(0.0, usd - used - reserved),
        "resets": None if blank["window"] == "total" else "2030-01-31T23:00:00Z",
    }  # fmt: skip


def _limit(
    id: str, scope: str, *, rpm: int | None = None, tpm: int | None = None, concurrent: int | None = None,
    used: tuple[int, ...] = (0, 0, 0), queue: float = 0.0, source: str = "api",
) -> dict[str, Any]:  # fmt: skip
    units = [(u, n) for u, n in (("requests", rpm), ("tokens", tpm), ("concurrent", concurrent)) if n is not None]
    use = [
        {
            "unit": unit, "limit": limit, "used": n, "leased": (limit - n) // 10, "left": limit - n - (limit - n) // 10, "elsewhere": 0,
            "resets": None, "resets_in_s": None if unit == "concurrent" else 17.5, "leases": [],
        }
        for (unit, limit), n in zip(units, used, strict=False)
    ]  # fmt: skip
    return {
        "id": id, "scope": scope, "requests_per_minute": rpm, "tokens_per_minute": tpm, "concurrent": concurrent,
        "queue_seconds": queue, "queue_size": 200, "source": source, "use": use,
    }  # fmt: skip


def _endpoint(
    name: str, provider: str, *, state: str = "ok", seconds_left: float = 0.0, said: str = "", **attempts: int
) -> dict[str, Any]:
    asked = state != "unused"
    return {
        "name": name, "provider": provider, "model": f"{name}-model", "region": "", "apps": ["support"], "server": None, "state": state,
        "seconds_left": seconds_left, "workers": 2 if asked else 0, "workers_out": 1 if state not in ("ok", "unused") else 0, "in_flight": 3 if state == "ok" else 0,
        "failures_in_a_row": attempts.get("failed", 0), "recent_latency_ms": None, "attempts": attempts,
        "last_error": {"text": said, "seconds_ago": 75.0} if said else None,
        "took_ms": {"p50": 820.0 if attempts.get("ok") else None, "p95": 2400.0 if attempts.get("ok") else None},
        "first_ms": {"p50": 210.0 if attempts.get("ok") else None, "p95": 640.0 if attempts.get("ok") else None},
    }  # fmt: skip


def _batch(id: str, status: str, made: int, *, total: int = 0, completed: int = 0, failed: int = 0) -> dict[str, Any]:
    ended = {f"{s}_at": made + 66 if s == status else None for s in ("completed", "failed", "expired", "cancelled")}
    return {
        "id": id, "endpoint": "/v1/chat/completions", "status": status, "input_file_id": "file-1", "output_file_id": None,
        "error_file_id": None, "created_at": made, "expires_at": made + 86_400, **ended, "errors": None, "metadata": {"job": "nightly"},
        "request_counts": {"total": total, "completed": completed, "failed": failed}, "owner": "team:search", "key": "key_1", "lane": "own",
    }  # fmt: skip
