"""Museum 15: log tables of hundreds of gigabytes, and a clean-up that ran out of memory.

litellm PR#29466, #29342, #21908, #16582. Here days are files: forgetting one is an unlink, whatever it holds, and it is on
by default.
"""

from __future__ import annotations

import time

import msgspec
import pytest

from noria.contracts.exchange import Usage
from noria.contracts.port import TraceStore
from noria.contracts.trace import ExchangeRow, TraceQuery
from noria.kit import extension
from noria.settings import Settings

DAY = 86_400 * 10**9
T0 = 1_760_000_000 * 10**9 // DAY * DAY
ROW = ExchangeRow(
    tenant="local", id="", trace="t", span="s", parent_span="", started_ns=T0, kind="chat", app="a", release="r1:x",
    release_name="main", config="c1:x", outcome="ok", status=200, stream=False, duration_ns=1, ttft_ns=None, overhead_ns=1,
    endpoint="e", provider="p", served_model="m", upstream_id="u", finish_reason="stop", error_code="", error_message="",
    key="", subject="", conversation="", usage=Usage(input=1, output=1), cost_nanousd=None, cost_status="unknown",
    stages=(), attempts=(), rulings=(), request=b"", answer=b"", answer_is_sse=False, worker="w",
)  # fmt: skip


def day(n: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime((T0 + n * DAY) / 1e9))


@pytest.mark.parametrize("rows", [200, 2000])
async def test_a_day_is_forgotten_by_removing_its_files(tmp_path, rows) -> None:
    store = extension.engine("duckdb").serves[TraceStore](f"duckdb:///{tmp_path}/traces")
    try:
        for n in range(3):
            day_rows = [msgspec.structs.replace(ROW, id=f"{n}-{i}", started_ns=T0 + n * DAY + i) for i in range(rows)]
            await store.append("local", [(r, "", "") for r in day_rows], [], None)
        assert await store.seal("local", day(2)) == 2 * rows
        before = set((tmp_path / "traces").rglob("*.parquet"))
        hot = (tmp_path / "traces" / "hot.duckdb").stat()
        assert await store.drop("local", day(1)) >= 1
        gone = before - set((tmp_path / "traces").rglob("*.parquet"))
        assert gone
        assert (tmp_path / "traces" / "hot.duckdb").stat().st_ino == hot.st_ino
        assert await store.count("local", TraceQuery()) == 2 * rows
    finally:
        await store.close()


def test_retention_is_on_by_default() -> None:
    assert Settings().retention.traces_days == 30
