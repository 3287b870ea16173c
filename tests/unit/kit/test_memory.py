"""What fits is what the kernel and the control group leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from noria.contracts.error import NoriaError
from noria.kit import memory


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "meminfo").write_text("MemTotal:  8000000 kB\nMemAvailable:  4000000 kB\n")
    return tmp_path


def test_the_kernels_estimate_holds_where_there_is_no_limit(machine: Path) -> None:
    assert memory.available(machine, machine / "none") == 4_000_000 * 1024
    (machine / "memory.max").write_text("max\n")
    assert memory.available(machine, machine) == 4_000_000 * 1024


def test_a_control_group_that_leaves_less_decides_and_its_file_cache_can_be_had(machine: Path) -> None:
    (machine / "memory.max").write_text("1000000000\n")
    (machine / "memory.current").write_text("700000000\n")
    (machine / "memory.stat").write_text("anon 5\ninactive_file 200000000\n")
    assert memory.available(machine, machine) == 500_000_000


def test_what_does_not_fit_is_refused_in_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1 << 30)
    memory.fit((1 << 30) - memory.RESERVE, "it")
    with pytest.raises(NoriaError, match="it needs about 1024 MiB and 1024 MiB are free") as e:
        memory.fit(1 << 30, "it")
    assert e.value.code == "out_of_memory"
