"""Proofs of endurance: memory over many requests, and many streams at once, each token of them in its place.

With the benchmark's C mock and load generator (`bench/`). `make test` runs a hundredth of what `make test-slow` runs.
"""

# ruff: noqa: E402  the benchmark's modules are imported by their folder

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import figures
import machine
import modes
import tools
from service import Service
from targets import Cell, Target

pytestmark = [
    pytest.mark.skipif(tools.compiler() is None, reason="needs a C compiler for the mock and the load generator"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]
LONG = [pytest.mark.slow, pytest.mark.timeout(3600)]
STREAMS, PER_SECOND = 512, 20
KEPT = {"worker": 2048, "keeper": 16384}
"""Bytes a request by which a process may grow over the first 10,000. An exchange that a worker kept would be larger, with its
body and its row. The keeper's database meanwhile fills its page cache, 256 MB: that it then stops growing only the full scale tells.
"""


@dataclass
class Rig:
    """A Noria before the mock, and what asks it."""

    service: Service
    target: Target
    load: tools.Load
    upstream: int

    def ask(self, cell: Cell, **how: Any) -> dict[str, Any]:
        ask = tools.Ask(cell.connections, tokens=cell.tokens if cell.stream else 0, **how)
        return self.load.fire(self.target.port, self.target.request(cell), ask)[0]

    def rss(self) -> dict[str, float]:
        """MiB by role."""
        return {name: machine.memory(stat.pid)["rss_mib"] for name, stat in self.service.processes() if name != "supervisor"}


@pytest.fixture(scope="module")
def tool_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    tools.build(folder)
    return folder


@pytest.fixture
def rig(tool_folder, tmp_path, request) -> Iterator[Rig]:
    mode, models = request.param
    with tools.upstream(tool_folder) as port:
        service = Service(tmp_path / "noria", mode, {m: (f"http://127.0.0.1:{port}/v1", m) for m in models})
        try:
            key = () if mode == "plain" else (f"authorization: Bearer {service.new_key(*modes.KEY)}",)
            yield Rig(service, Target(mode, service.port, key, service=service), tools.Load(tool_folder), port)
        finally:
            service.stop()


@pytest.mark.parametrize("rig", [("governed", ("mock",))], indirect=True)
@pytest.mark.parametrize("requests", [10_000, pytest.param(1_000_000, marks=LONG)], ids=["short", "full"])
def test_memory_does_not_grow_with_the_requests(rig, requests):
    batches = 20 if requests < 100_000 else 100
    cells = [Cell("whole", "mock", 32)] * 4 + [Cell("stream", "mock", 32, stream=True)]
    points: dict[str, list[tuple[float, float]]] = {}
    sent = 0
    for number in range(batches):
        told = rig.ask(cells[number % len(cells)], requests=requests // batches)
        assert told["ok"] == told["sent"] == requests // batches, told
        sent += told["sent"]
        assert rig.service.recorded(sent) == sent
        for name, mib in rig.rss().items():
            points.setdefault(name, []).append((sent, mib * 1024 * 1024))
    priced = rig.service.priced()
    assert (priced["recorded"], priced["priced"], priced["nanousd"]) == (requests, requests, requests * modes.nanousd(64))
    assert set(points) == {"worker", "keeper"}
    grew = []
    for name, found in points.items():
        kept = found[len(found) // 4 :]  # first come imports, arenas and caches that fill once
        slope, width = figures.slope(kept)
        said = f"{name}: {slope:.1f} ± {width:.1f} bytes a request; {kept[0][1] / 2**20:.1f} to {kept[-1][1] / 2**20:.1f} MiB"
        print(said)
        if slope - width >= (KEPT[name] if requests < 100_000 else 0):
            grew.append(said)
    assert not grew


@pytest.mark.parametrize("seconds", [0.6, pytest.param(60, marks=LONG)], ids=["short", "full"])
@pytest.mark.parametrize(
    "rig", [(mode, ("mock-g50000-t12", "mock-g50000-t1200")) for mode in ("plain", "guarded")], indirect=True
)
def test_of_512_streams_at_once_no_token_is_lost_or_out_of_order(rig, seconds):
    tokens = round(seconds * PER_SECOND)
    cell = Cell("streams", f"mock-g{1_000_000 // PER_SECOND}-t{tokens}", STREAMS, stream=True, tokens=tokens)
    told = rig.ask(cell, requests=STREAMS, ramp_ms=200)
    wrong = {
        k: told[k] for k in ("bad_status", "bad_stream", "broken", "stalled", "tokens_lost", "tokens_disordered", "not_done")
    }
    assert not any(wrong.values()), told
    assert (told["sent"], told["ok"], told["tokens"]) == (STREAMS, STREAMS, STREAMS * tokens)
    assert tools.told_by(rig.upstream) == {"requests": STREAMS, "cancelled": []}
    assert rig.service.recorded(STREAMS) == STREAMS


@pytest.mark.parametrize("rig", [(mode, ("mock-g20000-t200",)) for mode in ("plain", "guarded")], indirect=True)
def test_the_model_call_ends_when_its_client_leaves(rig):
    cell = Cell("leave", "mock-g20000-t200", 1, stream=True, tokens=200)
    for _ in range(3):
        before = len(tools.told_by(rig.upstream)["cancelled"])
        left = tools.leave(rig.target.port, rig.target.request(cell), 3)
        for _ in range(100):
            cancelled = tools.told_by(rig.upstream)["cancelled"]
            if len(cancelled) > before:
                break
            time.sleep(0.01)
        assert len(cancelled) == before + 1, "the upstream answers on, four seconds long"
        assert cancelled[-1] - left < 1_000_000_000
    assert rig.service.recorded(3) == 3
