"""Artifacts: named by content, signed, and refused by name where anything about them is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from noria.contracts.artifact import Artifact
from noria.contracts.error import NoriaError, NotFound, RequestError
from noria.release import artifact


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def made(home: Path, tmp_path: Path) -> Artifact:
    (tmp_path / "adapter.bin").write_bytes(b"weights" * 1000)
    (tmp_path / "note.txt").write_bytes(b"how it was made")
    files = {"adapter.gguf": tmp_path / "adapter.bin", "note.txt": tmp_path / "note.txt"}
    return artifact.publish(home, "adapter_gguf", files, inputs={"dataset": "d1:x"}, facts={"base": "b"}, made_ns=5)


def test_what_is_published_is_whole_signed_and_readable_by_its_owner_alone(home: Path, made: Artifact) -> None:
    base = artifact.folder(home, made.id)
    assert artifact.verify(home, made.id) == made
    assert {p.name for p in base.iterdir()} == {"adapter.gguf", "note.txt", "manifest.json", "verified.json"}
    assert [p.stat().st_mode & 0o077 for p in (*base.iterdir(), home / "signing.key")] == [0] * 5
    assert made.signer == artifact.public_key(home)
    assert not [p for p in base.parent.iterdir() if p.name.startswith(".")]


def test_the_same_content_is_the_same_artifact_whoever_makes_it_and_when(home: Path, made: Artifact, tmp_path: Path) -> None:
    files = {"note.txt": tmp_path / "note.txt", "adapter.gguf": tmp_path / "adapter.bin"}
    how = {"inputs": {"dataset": "d1:x"}, "facts": {"base": "b"}}
    assert artifact.publish(home, "adapter_gguf", files, **how, made_ns=99) == made
    assert artifact.publish(tmp_path / "other", "adapter_gguf", files, **how).id == made.id
    assert artifact.publish(home, "adapter_gguf", files, inputs={"dataset": "d1:y"}, facts={"base": "b"}).id != made.id


def rewritten(**what: object) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        was = msgspec.json.decode((base / "manifest.json").read_bytes(), type=Artifact)
        (base / "manifest.json").write_bytes(msgspec.json.encode(replace(was, **what)))

    return change


def flipped(base: Path) -> None:
    data = bytearray((base / "adapter.gguf").read_bytes())
    data[3000] ^= 1
    (base / "adapter.gguf").write_bytes(data)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (flipped, "adapter.gguf was changed: sha256"),
    "truncated": (lambda b: os.truncate(b / "adapter.gguf", 100), "adapter.gguf has 100 bytes, not 7000"),
    "missing": (lambda b: (b / "note.txt").unlink(), "note.txt is missing"),
    "extra": (lambda b: (b / "more.bin").write_bytes(b"x"), "holds more.bin, which its manifest does not list"),
    "link": (lambda b: ((b / "note.txt").unlink(), (b / "note.txt").symlink_to("/etc/hosts")), "not a plain file"),
    "facts": (rewritten(facts={"base": "c"}), "manifest was changed"),
    "kind": (rewritten(kind="model_gguf"), "manifest was changed"),
    "time": (rewritten(made_ns=6), "signature is not its signer's"),
    "signature": (rewritten(signature="00" * 64), "signature is not its signer's"),
    "no signature": (rewritten(signature=""), "signature is not its signer's"),
    "wrong key": (rewritten(signer="ab" * 32), "does not trust"),
    "unsigned": (rewritten(signer=""), "signed by nobody"),
    "garbage": (lambda b: (b / "manifest.json").write_bytes(b"{"), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_wrong_is_refused_by_name(home: Path, made: Artifact, fault: str) -> None:
    artifact.verify(home, made.id)  # and remembered as whole
    harm, says = FAULTS[fault]
    harm(artifact.folder(home, made.id))
    with pytest.raises(NoriaError, match=says) as e:
        artifact.verify(home, made.id)
    assert e.value.code == "artifact_refused"
    assert made.id[:15] in e.value.message


def test_an_artifact_of_others_is_believed_once_their_key_is_trusted(home: Path, made: Artifact, tmp_path: Path) -> None:
    here = tmp_path / "elsewhere"
    target = artifact.folder(here, made.id)
    target.parent.mkdir(parents=True)
    artifact.folder(home, made.id).rename(target)
    with pytest.raises(NoriaError, match="does not trust"):
        artifact.verify(here, made.id)
    artifact.trust(here, artifact.public_key(home), "the other node")
    artifact.trust(here, artifact.public_key(home), "the other node")
    assert artifact.verify(here, made.id) == made
    assert list(artifact.trusted(here).values()) == ["this installation", "the other node"]
    (here / "trusted_keys").write_text("nonsense\n")
    with pytest.raises(NoriaError, match="trusted_keys:1"):
        artifact.verify(here, made.id)


def test_a_file_found_whole_is_read_again_only_when_it_was_touched_or_that_is_asked(
    home: Path, made: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = artifact.hash_of
    monkeypatch.setattr(artifact, "hash_of", lambda path: read.append(path.name) or real(path))
    artifact.verify(home, made.id)
    assert read == []
    os.utime(artifact.folder(home, made.id) / "note.txt")
    artifact.verify(home, made.id)
    assert read == ["note.txt"]
    artifact.verify(home, made.id, anew=True)
    assert read == ["note.txt", "adapter.gguf", "note.txt"]


def test_a_damaged_artifact_is_mended_by_making_it_anew(home: Path, made: Artifact, tmp_path: Path) -> None:
    flipped(artifact.folder(home, made.id))
    files = {"note.txt": tmp_path / "note.txt", "adapter.gguf": tmp_path / "adapter.bin"}
    again = artifact.publish(home, "adapter_gguf", files, inputs={"dataset": "d1:x"}, facts={"base": "b"}, made_ns=7)
    assert artifact.verify(home, made.id) == again


def test_what_is_loaded_is_never_the_fingerprint_beside_it(home: Path, tmp_path: Path) -> None:
    for name in ("fingerprint.json", "model.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    made = artifact.publish(home, "model_gguf", {n: tmp_path / n for n in ("fingerprint.json", "model.gguf")})
    assert artifact.path_of(home, made.id, kind="model_gguf") == artifact.folder(home, made.id) / "model.gguf"


def test_names_that_are_no_plain_names_are_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    for name in ("../f", "manifest.json", "", "a/b", ".hidden"):
        with pytest.raises(RequestError):
            artifact.publish(home, "report", {name: tmp_path / "f"})
    for wrong in ("a1:../x", "x", "a1:" + "0" * 63):
        with pytest.raises(RequestError):
            artifact.verify(home, wrong)
    with pytest.raises(NotFound):
        artifact.verify(home, "a1:" + "0" * 64)


def test_what_nothing_names_can_be_forgotten_except_what_is_fresh_or_was_made_use_of(
    home: Path, made: Artifact, tmp_path: Path
) -> None:
    child = artifact.publish(home, "model_gguf", {"m.gguf": tmp_path / "note.txt"}, inputs={"adapter": made.id})
    later = (artifact.folder(home, made.id) / "manifest.json").stat().st_mtime_ns + 2 * artifact.SPARED_NS
    assert artifact.unreferenced(home, [], now_ns=later - artifact.SPARED_NS - artifact.SPARED_NS // 2) == []
    assert {a.id for a in artifact.unreferenced(home, [], now_ns=later + artifact.SPARED_NS)} == {made.id, child.id}
    assert artifact.unreferenced(home, [child.id], now_ns=later + artifact.SPARED_NS) == []
    artifact.remove(home, child.id)
    assert list(artifact.installed(home)) == [made.id]
