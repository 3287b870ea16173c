"""Every JobRunner runs a job once, tells how it ended, and keeps one tenant's jobs from another."""

import asyncio
import sys

import pytest

from noria.contracts.error import Conflict
from noria.contracts.port import JobRunner, JobState

PORT = JobRunner


@pytest.fixture
def jobs(make):
    return make(JobRunner)


async def settled(jobs, id: str, tenant: str = "local") -> JobState:
    async with asyncio.timeout(30):
        while (state := await jobs.state(tenant, id)).state in {"waiting", "running"}:
            await asyncio.sleep(0.02)
    return state


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_a_job_runs_in_its_folder_and_its_success_is_told(jobs, tmp_path):
    await jobs.start("local", "j1", python("open('result.json', 'w').write('{}')"), str(tmp_path))
    assert await settled(jobs, "j1") == JobState("j1", "done", 0)
    assert (tmp_path / "result.json").read_text() == "{}"


async def test_a_failure_is_told_with_its_exit_code(jobs, tmp_path):
    await jobs.start("local", "j1", python("raise SystemExit(3)"), str(tmp_path))
    state = await settled(jobs, "j1")
    assert (state.state, state.exit_code) == ("failed", 3)


async def test_a_program_that_does_not_exist_is_a_failure(jobs, tmp_path):
    await jobs.start("local", "j1", ["/no/such/program"], str(tmp_path))
    state = await settled(jobs, "j1")
    assert state.state == "failed"
    assert "/no/such/program" in state.detail


async def test_the_same_id_cannot_be_started_twice(jobs, tmp_path):
    await jobs.start("local", "j1", python(""), str(tmp_path))
    with pytest.raises(Conflict):
        await jobs.start("local", "j1", python(""), str(tmp_path))
    await settled(jobs, "j1")


async def test_an_unknown_job_has_no_state_and_can_be_stopped(jobs):
    assert await jobs.state("local", "none") is None
    await jobs.stop("local", "none")


async def test_stop_ends_the_job_and_its_children(jobs, tmp_path):
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])
open('begun.tmp', 'w').write(str(child.pid))
import os; os.rename('begun.tmp', 'begun')
child.wait()
"""
    await jobs.start("local", "j1", python(code), str(tmp_path))
    async with asyncio.timeout(30):
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.02)
    assert (await jobs.state("local", "j1")).state == "running"
    await jobs.stop("local", "j1")
    await jobs.stop("local", "j1")
    state = await settled(jobs, "j1")
    assert state.state == "failed"
    from noria.kit.atomic import alive

    async with asyncio.timeout(30):
        while alive(int((tmp_path / "begun").read_text())):
            await asyncio.sleep(0.02)


async def test_a_job_outlives_its_caller_and_its_end_is_still_recorded(jobs, spawn, tmp_path):
    caller = spawn(f"""
        from noria.contracts.port import JobRunner
        code = "import time, pathlib\\nwhile not pathlib.Path('go').exists(): time.sleep(0.02)\\nraise SystemExit(7)"
        asyncio.run(make(JobRunner).start("local", "j1", [sys.executable, "-c", code], {str(tmp_path)!r}))
        say("started")
        sys.stdin.read()
    """)
    assert caller.line() == "started"
    caller.kill()
    assert (await jobs.state("local", "j1")).state in {"waiting", "running"}
    (tmp_path / "go").touch()
    assert (await settled(jobs, "j1")).exit_code == 7


async def test_tenants_cannot_see_or_stop_each_others_jobs(jobs, tmp_path):
    await jobs.start("a", "j1", python("import time; time.sleep(300)"), str(tmp_path))
    assert await jobs.state("b", "j1") is None
    await jobs.stop("b", "j1")
    assert (await jobs.state("a", "j1")).state in {"waiting", "running"}
    await jobs.start("b", "j1", python(""), str(tmp_path))
    assert (await settled(jobs, "j1", "b")).state == "done"
    await jobs.stop("a", "j1")
    assert (await settled(jobs, "j1", "a")).state == "failed"
