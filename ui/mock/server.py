"""A stand-in for Noria's server, for developing and testing the console alone: `python ui/mock/server.py`.

Standard library only, plus `noria.web.pages` for the built console with its real headers. State that a test
may set through `Mock`: `token` (a login is asked for), `loading` (so many 503 answers first), `exchanges`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent))
import journey
import operate
import people
from traffic import APPS, MS, S, exchange, row_of

from noria.web import pages

COLUMNS = ("app", "status", "outcome", "served_model", "release", "key", "conversation", "duration_ms", "provider")
CLAUSE = re.compile(r'(\w+)(>=|<=|!=|=|>|<|~)("(?:[^"\\]|\\.)*"|\S+)')
REPLY = "A water wheel turns because the stream pushes its paddles; **Noria** turns because requests do.\n\n```python\nprint('round and round')\n```\nEach turn lifts some water, and each answer lifts the next model a little."


class Mock(ThreadingHTTPServer):
    """The server and its made-up state. `every` seconds a new exchange arrives (0: never)."""

    daemon_threads = True

    def __init__(
        self, port: int = 0, *, count: int = 128, every: float = 0.0, token: str = "", loading: int = 0, nobody: bool = False
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.people = people.People(list(APPS), nobody=nobody)
        self.operations = operate.Operations(nothing=nobody)
        self.journey = journey.Journey(nothing=nobody)
        now = time.time_ns()
        self.exchanges = [exchange(n, now - (count - n) * 37 * S - n * 1_234_567) for n in range(count)]
        self.every, self.token, self.loading = every, token, loading
        self.alarm: str | None = None
        self.pace = 0.03
        self.changed = threading.Condition()
        self.stopping = False
        if every:
            threading.Thread(target=self._trickle, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers hang up whenever they like."""

    def arrive(self) -> None:
        """One more exchange, now."""
        with self.changed:
            self.exchanges.append(exchange(len(self.exchanges), time.time_ns()))
            self.changed.notify_all()

    def stop(self) -> None:
        """End the live streams and the server."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self.shutdown()
        self.server_close()

    def _trickle(self) -> None:
        while not self.stopping:
            time.sleep(self.every)
            self.arrive()

    def status(self) -> dict[str, Any]:
        models = [{"name": m, "provider": p, "model": m, "state": "ready", "detail": ""} for _, m, p, _ in APPS.values()]
        if self.loading:
            models[0] |= {"state": "loading", "detail": "64 %"}
        apps = [
            {"name": a, "release": r, "release_id": "r1:9f2c41ab", "description": d, "model": m}
            for a, (r, m, _, d) in APPS.items()
        ]
        recorder = {"lag_records": 3, "lag_seconds": 0.02, "dropped": 0, "alarm": self.alarm}
        return {
            "version": "0.1.0",
            "ready": not self.loading,
            "models": models,
            "apps": apps,
            "recorder": recorder,
            "workers": [
                {
                    "name": f"n0-w{n}",
                    "pid": 4711 + n,
                    "seen_seconds_ago": 0.4,
                    "config": "c1:86629f17ed",
                    "trouble": "",
                    "in_flight": n,
                    "draining": False,
                    "endpoints": [],
                    "spool": {"dropped": 0, "pending": 0, "alarm": None},
                }
                for n in range(2)
            ],
            "keys_required": False,
            "notices": [],
        }

    def page(self, text: str, before: str, limit: int) -> dict[str, Any]:
        tests = [_clause(c) for c in CLAUSE.findall(text)]
        found = [r for r in (row_of(d) for d in reversed(self.exchanges)) if all(t(r) for t in tests)]
        rest = [r for r in found if not before or int(r["time_ns"]) < int(before)]
        return {"rows": rest[:limit], "next": rest[limit - 1]["time_ns"] if len(rest) > limit else None, "total": len(found)}


class BadFilter(ValueError):
    """A filter that names no known column."""


def _clause(parts: tuple[str, str, str]) -> Any:
    column, op, value = parts
    if column not in COLUMNS:
        raise BadFilter(column)
    value = value.strip('"')

    def test(row: dict[str, Any]) -> bool:
        have: Any = row["duration_ns"] / MS if column == "duration_ms" else row[column]
        want: Any = float(value) if isinstance(have, (int, float)) else value
        return {"=": have == want, "!=": have != want, "~": str(want) in str(have)}.get(op) or (
            op in "<=>="
            and isinstance(want, float)
            and {">": have > want, ">=": have >= want, "<": have < want, "<=": have <= want}.get(op, False)
        )

    return test


class Handler(BaseHTTPRequestHandler):
    server: Mock
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), {k: v[0] for k, v in parse_qs(url.query).items()}
        if not path.startswith("/api/"):
            page = pages.page(path, gzip=True)
            return self._send(page.status, page.body, page.content_type, page.headers) if page else self._send(404, b"")
        if not self._allowed():
            return self._error(401, "This needs the admin token.", code="unauthorized")
        if path == "/api/status":
            return self._json(self.server.status())
        if path == "/api/traces/live":
            return self._live()
        if path == "/api/traces":
            return self._traces(query)
        if people.mine(path):
            return self._answer(lambda: self.server.people.call("GET", path, query, {}))
        if operate.mine(path):
            return self._answer(lambda: self.server.operations.call("GET", path, parse_qs(url.query), {}))
        if journey.mine(path):
            return self._answer(lambda: self.server.journey.call("GET", path, parse_qs(url.query, keep_blank_values=True), {}))
        known = {d["row"]["id"]: d for d in self.server.exchanges}
        detail = known.get(path.rsplit("/", 1)[-1])
        return self._json(detail) if detail else self._error(404, "This trace does not exist.", code="not_found")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        if self.path == "/api/login":
            if body.get("token") != self.server.token:
                return self._error(401, "Wrong token.", code="unauthorized")
            return self._send(
                204, b"", "text/plain", (("set-cookie", f"noria={self.server.token}; HttpOnly; SameSite=Strict; Path=/"),)
            )
        if not self._allowed():
            return self._error(401, "No key.", code="unauthorized")
        if self.path.startswith("/api/"):
            return self._change("POST", unquote(self.path), {}, body)
        return self._chat(body)

    def do_PATCH(self) -> None:
        url = urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        self._change(self.command, unquote(url.path), {k: v[0] for k, v in parse_qs(url.query).items()}, body)

    do_PUT = do_DELETE = do_PATCH

    def _change(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> None:
        if operate.mine(path):
            return self._answer(lambda: self.server.operations.call(method, path, {}, body))
        if journey.mine(path):
            return self._answer(lambda: self.server.journey.call(method, path, {}, body))
        return self._answer(lambda: self.server.people.call(method, path, query, body))

    def _answer(self, call: Callable[[], tuple[int, Any]]) -> None:
        try:
            status, answer = call()
        except people.Refused as e:
            return self._error(e.status, str(e), code=e.code)
        return self._send(status, b"" if answer is None else json.dumps(answer).encode(), "application/json")

    def _allowed(self) -> bool:
        return not self.server.token or f"noria={self.server.token}" in self.headers.get("cookie", "")

    def _traces(self, query: dict[str, str]) -> None:
        try:
            page = self.server.page(query.get("filter", ""), query.get("before", ""), int(query.get("limit", 50)))
        except BadFilter as e:
            return self._error(
                400,
                f"There is no column '{e}'.",
                code="bad_filter",
                hint="Did you mean 'status'? Columns: " + ", ".join(COLUMNS) + ".",
            )
        return self._json(page)

    def _live(self) -> None:
        self._stream()
        seen = len(self.server.exchanges)
        while not self.server.stopping:
            with self.server.changed:
                self.server.changed.wait(2)
                fresh = self.server.exchanges[seen:]
                seen += len(fresh)
            for detail in fresh:
                self._piece(f"event: row\ndata: {json.dumps(row_of(detail))}\n\n")
            if not fresh:
                self._piece(": keep-alive\n\n")

    def _chat(self, body: dict[str, Any]) -> None:
        asked = body["messages"][-1]["content"]
        if self.server.loading:
            self.server.loading -= 1
            return self._error(503, "The model smollm2-135m is loading.", code="model_loading", headers=(("retry-after", "1"),))
        if "ignore all previous" in asked.lower():
            return self._error(400, "The prompt was refused by the check 'injection'.", code="content_filter")
        self.server.arrive()
        row = self.server.exchanges[-1]["row"]
        self._stream(("x-request-id", row["id"]), ("x-noria-trace", row["trace"]))
        words = re.findall(r"\S+\s*|\s+", REPLY)
        for word in words:
            time.sleep(self.server.pace)
            self._piece(f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': word}}]})}\n\n")
        self._piece(f"data: {json.dumps({'choices': [], 'usage': {'prompt_tokens': 12, 'completion_tokens': len(words)}})}\n\n")
        self._piece("data: [DONE]\n\n")

    def _stream(self, *headers: tuple[str, str]) -> None:
        self.close_connection = True
        self.send_response(200)
        for name, value in (
            ("content-type", "text/event-stream"),
            ("cache-control", "no-cache"),
            ("connection", "close"),
            *headers,
        ):
            self.send_header(name, value)
        self.end_headers()
        self._piece(": hello\n\n")

    def _piece(self, text: str) -> None:
        self.wfile.write(text.encode())
        self.wfile.flush()

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _error(
        self, status: int, message: str, *, code: str, hint: str | None = None, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code, "hint": hint}
        self._send(status, json.dumps({"error": error}).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, kind: str = "text/plain", headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.send_response(status)
        for name, value in (("content-type", kind), *headers):
            self.send_header(name, value)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--every", type=float, default=3.0, help="seconds between new exchanges, 0 for none")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--token", default="", help="ask for this admin token")
    parser.add_argument("--loading", type=int, default=0, help="so many chat calls meet a loading model")
    args = parser.parse_args()
    mock = Mock(args.port, count=args.count, every=args.every, token=args.token, loading=args.loading)
    print(f"http://127.0.0.1:{mock.server_port}/")
    try:
        mock.serve_forever()
    except KeyboardInterrupt:
        mock.stop()


if __name__ == "__main__":
    main()
