"""A child's own description of itself, as its readers see it."""

import os
import subprocess
import sys

from noria.kit.service import Service, Watch, publish

ME = Service("m", "ready", os.getpid(), 1, port=4242, secret="s3cret", facts={"tools": False})


def test_what_is_published_is_read(tmp_path):
    publish(tmp_path / "run" / "m.json", ME)
    assert Watch(tmp_path / "run" / "m.json").read() == ME


def test_the_file_with_its_secret_is_private(tmp_path):
    publish(tmp_path / "run" / "m.json", ME)
    assert (tmp_path / "run" / "m.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_an_absent_or_broken_file_is_no_service(tmp_path):
    watch = Watch(tmp_path / "m.json")
    assert watch.read() is None
    (tmp_path / "m.json").write_bytes(b"{")
    watch.forget()
    assert watch.read() is None


def test_a_change_is_seen_after_a_glance(tmp_path):
    publish(tmp_path / "m.json", ME)
    watch = Watch(tmp_path / "m.json")
    watch.read()
    publish(tmp_path / "m.json", Service("m", "failed", 0, 2, detail="no memory"))
    assert watch.read() == ME, "within 100 ms the last view is trusted"
    watch.forget()
    assert watch.read().detail == "no memory"


def test_a_service_whose_process_is_gone_is_no_service(tmp_path):
    gone = subprocess.run([sys.executable, "-I", "-S", "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    publish(tmp_path / "m.json", Service("m", "ready", int(gone.stdout), 1, port=1))
    assert Watch(tmp_path / "m.json").read() is None


def test_a_failure_outlives_its_process(tmp_path):
    publish(tmp_path / "m.json", Service("m", "failed", 2**22 + 1, 1, detail="wrong hash"))
    assert Watch(tmp_path / "m.json").read().detail == "wrong hash"
