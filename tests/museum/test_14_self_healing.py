"""Museum 14: the watchdog that killed a healthy engine, 4,700 failures in a day, and the spend rows with it.

litellm#26886. Here only a keeper that is silent *and idle* for the whole configured time is killed, at most three times an
hour; what it had not taken yet lies in the spool, and taking it twice stores it once.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from noria.app.watch import PATIENCE, PER_HOUR, Watch

BUSY = "while True: pass"
IDLE = "import time; time.sleep(600)"


@pytest.fixture
def process() -> Iterator:
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> int:
        started.append(subprocess.Popen([sys.executable, "-I", "-S", "-c", code]))
        time.sleep(0.1)
        return started[-1].pid

    yield start
    for one in started:
        one.kill()
        one.wait()


def test_who_works_without_answering_is_left_alone(process) -> None:
    watch, pid = Watch(0.2), process(BUSY)
    assert watch.verdict(pid) == ""
    time.sleep(0.6)
    assert watch.verdict(pid) == "", "late, not ill"
    assert watch.verdict(pid, time.monotonic() + 0.2 * PATIENCE) != "", "but not for ever"


def test_who_neither_works_nor_answers_is_killed_and_the_reason_is_told(process) -> None:
    watch, pid = Watch(0.2), process(IDLE)
    assert watch.verdict(pid) == ""
    assert watch.verdict(pid) == "", "one missed answer is none"
    time.sleep(0.3)
    assert f"process {pid} is alive but has not answered for" in watch.verdict(pid)


def test_one_answer_begins_the_silence_anew(process) -> None:
    watch, pid = Watch(10.0), process(IDLE)
    now = time.monotonic()
    assert watch.verdict(pid, now) == ""
    watch.answered()
    assert watch.verdict(pid, now + 11) == ""
    assert watch.verdict(pid, now + 22) != ""


def test_after_three_kills_within_an_hour_it_is_left_alone(process) -> None:
    watch, pid = Watch(1.0), process(IDLE)
    now, kills = time.monotonic(), 0
    for step in range(100):
        kills += bool(watch.verdict(pid, now + step))
    assert kills == PER_HOUR
    assert watch.exhausted
