"""Children are kept running, ended in order, replaced without a gap, and do not outlive their supervisor."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from noria.contracts.error import Unavailable
from noria.kit.atomic import alive
from noria.kit.supervise import Backoff, Child, Heir, RotatingLog, Supervisor, lock

FAST = Backoff(first=0.02, longest=0.05)
SLEEP = "import time; time.sleep(60)"


def python(name, code, **more):
    return Child(name, (sys.executable, "-I", "-S", "-c", code), **more)


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def supervisor(tmp_path):
    states = []
    made = Supervisor(tmp_path / "logs", on_state=lambda *s: states.append(s), backoff=FAST)
    made.states = states
    yield made
    await made.close()


async def test_a_crashed_child_is_started_again_and_its_end_is_told(supervisor):
    supervisor.start(python("worker", SLEEP))
    assert await supervisor.running("worker", 10)
    first = supervisor.pid("worker")
    os.kill(first, signal.SIGKILL)
    await until(lambda: supervisor.state("worker")[0] == "running" and supervisor.pid("worker") not in (None, first))
    assert ("worker", "backoff", "ended by SIGKILL") in supervisor.states
    assert not alive(first)


async def test_each_crash_is_followed_by_a_longer_wait_up_to_the_longest():
    waits = [Backoff().wait(n) for n in range(1, 9)]
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert Backoff().wait(100_000) == 10.0


async def test_a_child_that_cannot_be_started_is_reported_and_tried_again(supervisor):
    supervisor.start(python("broken", "import sys; sys.exit(3)"))
    await until(lambda: supervisor.states.count(("broken", "backoff", "exit code 3")) >= 2)


async def test_stop_ends_a_child_by_sigterm_and_it_may_clean_up(supervisor, tmp_path):
    mark = tmp_path / "clean"
    code = (
        "import signal, sys, time, pathlib\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(mark)!r}).touch(), sys.exit(0)))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    supervisor.start(python("polite", code))
    await until(lambda: "up" in log_of(tmp_path, "polite"))
    await supervisor.stop("polite")
    assert mark.exists()
    assert supervisor.states[-1] == ("polite", "stopped", "exit code 0")
    assert supervisor.pid("polite") is None


def log_of(tmp_path, name):
    path = tmp_path / "logs" / f"{name}.log"
    return path.read_text() if path.exists() else ""


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(supervisor, tmp_path):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    supervisor.start(python("deaf", code, grace=0.1))
    await until(lambda: "deaf" in log_of(tmp_path, "deaf"))
    await supervisor.stop("deaf")
    assert supervisor.states[-1] == ("deaf", "stopped", "ended by SIGKILL")


async def test_a_child_is_running_only_once_it_is_ready(supervisor):
    gate = asyncio.Event()

    async def ready(_pid):
        return gate.is_set()

    supervisor.start(python("slow", SLEEP, ready=ready))
    assert not await supervisor.running("slow", 0.2)
    gate.set()
    assert await supervisor.running("slow", 10)


async def test_a_replacement_takes_over_before_the_old_one_ends(supervisor):
    supervisor.start(python("api", SLEEP))
    assert await supervisor.running("api", 10)
    old = supervisor.pid("api")
    seen = []

    async def ready(_pid):
        seen.append(alive(old))
        return True

    assert await supervisor.replace(python("api", SLEEP, ready=ready), 10)
    assert seen == [True]
    assert supervisor.pid("api") not in (None, old)
    assert not alive(old)


async def test_a_replacement_that_never_gets_ready_leaves_the_old_one(supervisor):
    supervisor.start(python("api", SLEEP))
    assert await supervisor.running("api", 10)
    old = supervisor.pid("api")

    async def never(_pid):
        return False

    assert not await supervisor.replace(python("api", SLEEP, ready=never), 0.2)
    assert supervisor.pid("api") == old
    assert alive(old)


async def test_passed_descriptors_reach_the_child(supervisor, tmp_path):
    reader, writer = os.pipe()
    try:
        supervisor.start(python("writer", f"import os, time; os.write({writer}, b'hello'); time.sleep(60)", pass_fds=(writer,)))
        assert await asyncio.to_thread(os.read, reader, 5) == b"hello"
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_name_is_taken_once(supervisor):
    supervisor.start(python("one", SLEEP))
    with pytest.raises(ValueError, match="running already"):
        supervisor.start(python("one", SLEEP))


async def test_children_die_with_a_killed_supervisor(tmp_path):
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom noria.kit.supervise import Child, Supervisor\n"
        "async def main():\n"
        f"    s = Supervisor(Path({str(tmp_path)!r}))\n"
        f"    s.start(Child('orphan', (sys.executable, '-I', '-S', '-c', {SLEEP!r})))\n"
        "    await s.running('orphan', 10)\n"
        "    print(s.pid('orphan'), flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        # "running" without a `ready` means forked: give the shim its 15 ms to ask the kernel before the parent dies
        await until(lambda: Path(f"/proc/{child}/cmdline").read_bytes().count(b"prctl") == 0)
        parent.kill()
    await until(lambda: not alive(child))


def test_a_log_rotates_at_its_limit_and_keeps_the_newest(tmp_path):
    log = RotatingLog(tmp_path / "a.log", limit=10, keep=2)
    for n in range(5):
        log.write(b"line %d\n" % n)
    log.close()
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert kept == {"a.log": b"line 4\n", "a.log.1": b"line 3\n", "a.log.2": b"line 2\n"}
    assert (tmp_path / "a.log").stat().st_mode & 0o777 == 0o600


def test_a_log_continues_what_an_earlier_process_wrote(tmp_path):
    for text in (b"one\n", b"two\n"):
        log = RotatingLog(tmp_path / "a.log")
        log.write(text)
        log.close()
    assert (tmp_path / "a.log").read_bytes() == b"one\ntwo\n"


def test_what_the_disk_refuses_is_lost_from_the_log_and_nothing_else(tmp_path):
    blocked = tmp_path / "logs"
    blocked.write_text("a file where the folder should be")
    log = RotatingLog(blocked / "x.log")
    log.write(b"gone\n")
    assert log.lost == 5
    blocked.unlink()
    log.write(b"kept\n")
    log.close()
    log.write(b"and after a close\n")
    log.close()
    assert (blocked / "x.log").read_bytes() == b"kept\nand after a close\n"
    assert log.lost == 5


def test_a_held_lock_names_its_holder(tmp_path):
    with lock(tmp_path / "lock"), pytest.raises(Unavailable) as refused, lock(tmp_path / "lock"):
        pass
    assert f"process {os.getpid()}" in refused.value.message
    assert str(tmp_path) in refused.value.message


def test_a_lock_is_free_again_after_its_holder(tmp_path):
    with lock(tmp_path / "lock"):
        pass
    with lock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_kernel_frees_the_lock_of_a_killed_holder(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom noria.kit.supervise import lock\n"
        f"with lock(Path({str(tmp_path / 'lock')!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Unavailable, match=str(holder.pid)), lock(tmp_path / "lock"):
            pass
        holder.kill()
    with lock(tmp_path / "lock"):
        pass


async def test_a_retired_child_finishes_what_it_has_begun_while_its_successor_runs(supervisor, tmp_path):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGHUP, lambda *_: (print('told', flush=True), time.sleep(0.5), print('done', flush=True), sys.exit(0)))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    child = python("api", code, retire=signal.SIGHUP, retire_grace=10.0)
    supervisor.start(child)
    await until(lambda: "up" in log_of(tmp_path, "api"))
    old = supervisor.pid("api")
    assert await supervisor.replace(child, 10, wait=False)
    assert alive(old)
    assert supervisor.pid("api") not in (None, old)
    assert len(supervisor.retired("api")) == 1
    await until(lambda: not supervisor.retired("api"))
    assert not alive(old)
    assert "done" in log_of(tmp_path, "api")


async def test_a_retired_child_that_takes_too_long_is_ended(supervisor):
    code = "import signal, time; signal.signal(signal.SIGHUP, signal.SIG_IGN); time.sleep(60)"
    child = python("api", code, retire=signal.SIGHUP, retire_grace=0.2)
    supervisor.start(child)
    assert await supervisor.running("api", 10)
    await asyncio.sleep(0.3)  # the handler stands
    old = supervisor.pid("api")
    assert await supervisor.replace(child, 10)
    assert not alive(old)


async def test_a_child_of_the_program_before_is_kept_logged_and_started_again(supervisor, tmp_path):
    code = "import time\nwhile True: print('tick', flush=True); time.sleep(0.05)"
    ours, theirs = os.pipe()
    before = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=theirs)
    os.close(theirs)
    supervisor.adopt(python("api", code), Heir("api", before.pid, ours, running=True, retiring=False))
    assert supervisor.state("api")[0] == "running"
    assert supervisor.pid("api") == before.pid
    await until(lambda: "tick" in log_of(tmp_path, "api"))
    [heir] = supervisor.hand_over()
    assert (heir.name, heir.pid, heir.running, heir.retiring) == ("api", before.pid, True, False)
    assert os.get_inheritable(heir.log)
    before.kill()
    await until(lambda: supervisor.state("api")[0] == "running" and supervisor.pid("api") not in (None, before.pid))
    assert ("api", "backoff", "ended by SIGKILL") in supervisor.states
    before.returncode = -9  # the supervisor has waited for it


async def test_a_retired_child_of_the_program_before_is_not_started_again(supervisor):
    ours, theirs = os.pipe()
    before = subprocess.Popen([sys.executable, "-I", "-S", "-c", SLEEP], stdout=theirs)
    os.close(theirs)
    child = python("api", SLEEP, retire=signal.SIGTERM)
    supervisor.adopt(child, Heir("api", before.pid, ours, running=True, retiring=True))
    await until(lambda: not supervisor.retired("api"))
    assert supervisor.pid("api") is None
    before.returncode = -15
