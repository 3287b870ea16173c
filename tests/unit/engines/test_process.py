import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from noria.contracts.error import ConfigError, StoreError
from noria.engines import process
from noria.engines.process import ProcessJobs, path_of


@pytest.fixture
def jobs(tmp_path):
    return ProcessJobs(f"process://{tmp_path}/jobs")


async def until(jobs, *states: str):
    async with asyncio.timeout(30):
        while (state := await jobs.state("local", "j")).state not in states:
            await asyncio.sleep(0.02)
    return state


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_a_job_whose_keeper_was_killed_is_lost_and_dies_with_it(jobs, tmp_path):
    await jobs.start("local", "j", [sys.executable, "-c", "import time; time.sleep(300)"], str(tmp_path))
    await until(jobs, "running")
    running = msgspec.json.decode((tmp_path / "jobs/local/j/running.json").read_bytes())
    os.kill(running["keeper"], signal.SIGKILL)
    assert "keeper" in (await until(jobs, "lost")).detail
    async with asyncio.timeout(30):
        while alive(running["group"]):
            await asyncio.sleep(0.02)


async def test_output_is_kept_and_named_when_a_job_fails(jobs, tmp_path):
    await jobs.start("local", "j", [sys.executable, "-c", "print('why'); raise SystemExit(2)"], str(tmp_path))
    state = await until(jobs, "failed")
    output = tmp_path / "jobs/local/j/output"
    assert str(output) in state.detail
    assert output.read_text() == "why\n"


async def test_a_job_that_ignores_sigterm_is_killed_after_the_grace(jobs, tmp_path, monkeypatch):
    begin = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('begun', 'w'); time.sleep(300)"
    module = f"import noria.engines.process as p, pathlib, sys; p.GRACE_S = 0.1; p.keep(pathlib.Path({str(tmp_path / 'jobs/local/j')!r}))"
    real = os.posix_spawn
    monkeypatch.setattr(os, "posix_spawn", lambda exe, argv, env, **k: real(exe, [argv[0], "-c", module], env, **k))
    await jobs.start("local", "j", [sys.executable, "-c", begin], str(tmp_path))
    async with asyncio.timeout(30):
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.02)
    await jobs.stop("local", "j")
    state = await jobs.state("local", "j")
    assert (state.state, state.exit_code, state.detail) == ("failed", -9, "It was stopped.")


async def test_a_folder_that_was_never_locked_is_lost_once_it_is_old(jobs, tmp_path):
    job = tmp_path / "jobs/local/j"
    job.mkdir(parents=True)
    assert (await jobs.state("local", "j")).state == "waiting"
    os.utime(job, (0, 0))
    assert (await jobs.state("local", "j")).state == "lost"


async def test_ended_keepers_are_reaped(jobs, tmp_path):
    await jobs.start("local", "j", [sys.executable, "-c", ""], str(tmp_path))
    await until(jobs, "done")
    async with asyncio.timeout(30):
        while jobs._children:
            await jobs.state("local", "j")
            await asyncio.sleep(0.02)


async def test_unusable_places_are_refused(tmp_path):
    for url in ("process://", "ray://x"):
        with pytest.raises(ConfigError, match="names no folder"):
            path_of(url)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="start"):
        await ProcessJobs(f"process://{tmp_path}/file").start("local", "j", ["true"], str(tmp_path))
    assert process.ENGINE.serves
