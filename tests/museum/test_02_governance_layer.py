"""Museum 2: the layer that guards is itself the hole.

CVE-2026-42208 (SQL injection in the look-up of keys), CVE-2026-35030 (a cache keyed on the first 20 characters of a token),
CVE-2026-35029 (a configuration route without a role check), CVE-2026-30623 (commands from API input), and authorization headers
in spend logs. Here values are bound, never formatted; a key is looked up by a digest of all of it; one table says who may use each route
(`tests/unit/api/test_permission.py`), unlisted ones are the operator's; and logs are scrubbed at the sink.
"""

from __future__ import annotations

import ast
import logging
import re
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from noria.api.permission import needed
from noria.kit.redact import Formatter

SOURCE = Path(__file__).resolve().parents[2] / "src" / "noria"
CONFIG = """
models:
  fake: {provider: scripted, model: fake}
apps:
  echo: {model: fake}
serve: {keys_required: always}
"""
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
EVIL = ["' OR '1'='1", "'; DROP TABLE exchanges; --", '" OR 1=1 --', "$1", "?", "%s", "{tenant}", "\\' OR 1=1 --"]
VERB = re.compile(
    r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|COPY|CREATE|ATTACH|DROP|ALTER|SET|GROUP BY|LISTEN|WHERE|ORDER BY|VALUES)\b"
)
REVIEWED = {
    "engines/duckdb/__init__.py": {
        "2 * len(names) + 1", "len(ids) + 1", "COLUMNS_SQL", "_BODY", "_marks(ids)", "_marks(names)", "_marks(names, len(names))",
        "marks", "columns", "2 * len(ids) + 1", "_marks(ids, len(ids))", "_marks(left)", "chosen", "column", "condition.sql", "ids", "len(left) + 1", "len(left) + 2", "options", "order", "quoted(path)", "source", "table", "where",
    },
    "engines/duckdb/arrow.py": {"self.incoming", "name", "names"},
    "engines/duckdb/batch.py": {"between", "wanted"},
    "engines/duckdb/file.py": {"ROW_GROUP", "quoted(file)", "quoted(place / 'sealed')"},
    "engines/duckdb/table.py": {"', '.join((f'{n} {t}' for n, t in columns.items()))", "COLUMNS_SQL", "n", "older", "t", "table"},
    "engines/duckdb/totals.py": {
        "', '.join(groups)", "base", "condition.sql", "len(groups) + 2", "picked", "source", "sums",
    },
    "engines/postgres.py": {"CHANNEL", "self._schema"},
    "kit/sqlite_cache.py": {"'ON' if subject else 'OFF'", "APPLICATION", "PAGE", "name", "old", "pragma", "where"},
    "data/export.py": {"_quoted(made)", "columns", "max(longest, 1 << 20)", "options", "source"},
}  # fmt: skip
"""What is put into the text of SQL, each looked at: names and numbers of the engine's own, paths that are quoted, conditions whose
values are bound. A new one fails until somebody has looked and entered it."""


BESIDE = ("kit/sql.py", "kit/sqlite_cache.py", "data/export.py", "data/reading.py")
"""What speaks SQL outside of the engines: what they share, the cache's own file, and tables of files in memory."""


def interpolated(path: Path) -> set[str]:
    """The expressions in f-strings, `%` and `format` of a file's SQL."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(v.value) for v in node.values if isinstance(v, ast.Constant))
            if VERB.search(text):
                found |= {ast.unparse(v.value) for v in node.values if isinstance(v, ast.FormattedValue)}
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and VERB.search(ast.unparse(node.left)):
            found.add(ast.unparse(node.right))
        elif (
            isinstance(node, ast.Call)
            and re.match(r"""f?['"].*['"]\.format\(""", called := ast.unparse(node))
            and VERB.search(called)
        ):
            found.add(called)
    return found


def test_values_are_bound_and_never_part_of_the_sql() -> None:
    files = [*sorted((SOURCE / "engines").rglob("*.py")), *(SOURCE / name for name in BESIDE)]
    found = {p.relative_to(SOURCE).as_posix(): interpolated(p) for p in files}
    new = {name: what - REVIEWED.get(name, set()) for name, what in found.items() if what - REVIEWED.get(name, set())}
    assert new == {}, "look whether a caller's value can be in it, then enter it in REVIEWED"
    elsewhere = {p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py") if p not in files and _executes(p)}
    assert elsewhere == set(), "SQL belongs into the engines"


def _executes(path: Path) -> bool:
    return bool(re.search(r"\.execute(many|script)?\(\s*f?['\"]", path.read_text("utf-8")))


@pytest.fixture(scope="module")
def noria(serve_once):
    service = serve_once(CONFIG)
    service.key = service.json("keys", "create", "--name", "good")["key"]
    service.token = (service.home / "admin.token").read_text().strip()
    return service


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("evil", EVIL)
def test_sql_in_a_key_a_name_or_a_filter_is_just_text(noria, http, evil) -> None:
    ask = noria.url + "/v1/chat/completions"
    assert http(ask, HELLO, bearer(evil))[0] == 401
    status, headers, _ = http(ask, {**HELLO, "user": evil, "model": "echo"}, bearer(noria.key) | {"x-noria-tags": "a=b"})
    assert status == 200
    assert http(ask, {**HELLO, "model": evil}, bearer(noria.key))[0] == 404
    noria.trace(headers["x-request-id"])
    for name in ("app", "user", "key", "tag", "org", "team", "model", evil):
        for value in (evil, f'"{evil}"', evil.replace(" ", "")):
            wanted = quote(f"{name}={value}")
            status, _, body = http(f"{noria.url}/api/traces?filter={wanted}", b"", bearer(noria.token), method="GET")
            assert status in (200, 400, 404), (name, body)
            assert headers["x-request-id"].encode() not in body, f"{name}={value} matched what it does not name"
    found = http(f"{noria.url}/api/traces?filter={quote('app=echo')}", b"", bearer(noria.token), method="GET")[2]
    assert headers["x-request-id"].encode() in found, "a filter that fits does find it"
    assert http(f"{noria.url}/api/traces/{quote(evil, safe='')}", b"", bearer(noria.token), method="GET")[0] in (400, 404, 422)
    noria.trace(headers["x-request-id"])


def test_a_key_counts_whole(noria, http) -> None:
    ask, key = noria.url + "/v1/chat/completions", noria.key
    assert http(ask, HELLO, bearer(key))[0] == 200
    other = "A" if key[-1] != "A" else "B"
    for near in (
        key[:-1] + other,
        key[:20],
        key[:20] + "x" * (len(key) - 20),
        key + "x",
        key[:-1],
        key.swapcase(),
        "x" + key[1:],
    ):
        assert http(ask, HELLO, bearer(near))[0] == 401, near
    assert http(ask, HELLO, bearer(key))[0] == 200


@pytest.mark.parametrize("path", ["/api/apply", "/api/plan", "/api/keys", "/api/orgs", "/api/not-there-yet"])
def test_changing_the_configuration_is_the_operators(noria, http, path) -> None:
    assert needed(path) == "operator"
    for headers in ({}, bearer(noria.key), bearer("' OR '1'='1"), bearer(noria.token[:20]), bearer(noria.token + "x")):
        assert http(noria.url + path, {}, headers)[0] in (401, 403)


def test_nothing_from_a_request_becomes_a_command() -> None:
    """What handles requests cannot start a process, evaluate text or unpickle."""
    banned = re.compile(
        r"^\s*(import|from) (subprocess|pickle|marshal|shelve|pty)\b|\bos\.(system|popen|exec\w*|spawn\w*)\(|(?<![\w.])(eval|exec)\("
        r"|create_subprocess|shell=True",
        re.MULTILINE,
    )
    packages = (
        "api",
        "journeys",
        "gateway",
        "dialects",
        "transform",
        "ground",
        "guard",
        "checks",
        "contracts",
        "govern",
        "observe",
    )
    bad = [p for name in packages for p in (SOURCE / name).rglob("*.py") if banned.search(p.read_text("utf-8"))]
    assert bad == []


def test_logs_are_scrubbed_at_the_sink_by_an_allow_list() -> None:
    def fail(headers: dict[str, str]) -> None:
        raise ValueError(f"call failed: {headers!r}")

    try:
        fail({"authorization": "Bearer nk-0123456789abcdef", "x-nobody-thought-of": "hunter2hunter2", "status": "500"})
    except ValueError:
        record = logging.LogRecord(
            "n", logging.ERROR, __file__, 1, "broken for %r", ({"messages": "my diary"},), sys.exc_info()
        )
    text = Formatter("%(message)s").format(record)
    assert not re.search("nk-0123|hunter2|my diary", text)
    assert "'status': '500'" in text
