"""Corners of the extension mechanism; what users do with it is in tests/architecture/test_one_file.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noria.contracts.error import ConfigError, MissingDependency, NotFound
from noria.contracts.stage import Check, Provider
from noria.kit import extension

EMPTY = "from noria.contracts.stage import Check\n"
ONE = EMPTY + "\n\nclass One(Check):\n    def judge(self, sample):\n        raise NotImplementedError\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extensions" / "checks").mkdir(parents=True)
    (tmp_path / "extensions" / "engines").mkdir()
    return tmp_path / "extensions"


def test_what_is_shipped_is_listed_by_its_file_names() -> None:
    assert {"pii", "secrets"} <= set(extension.ids("checks"))
    assert {"scripted", "local", "openai_compatible"} <= set(extension.ids("providers"))
    assert extension.ids("checks") == sorted(extension.ids("checks"))


def test_private_files_are_not_listed(folder: Path) -> None:
    (folder / "checks" / "_private.py").write_text(ONE)
    (folder / "checks" / "mine.py").write_text(ONE)
    assert "_private" not in extension.ids("checks")
    assert "mine" in extension.ids("checks")


def test_an_imported_class_is_not_the_files_own(folder: Path) -> None:
    (folder / "checks" / "nothing.py").write_text(EMPTY)
    with pytest.raises(ConfigError, match="it defines none"):
        extension.load("checks", "nothing", Check)


def test_private_classes_do_not_count(folder: Path) -> None:
    (folder / "checks" / "helped.py").write_text(ONE + "\n\nclass _Base(One):\n    pass\n")
    assert extension.load("checks", "helped", Check).__name__ == "One"


def test_what_is_shipped_cannot_be_replaced_from_a_folder(folder: Path) -> None:
    (folder / "checks" / "pii.py").write_text(ONE)
    assert extension.load("checks", "pii", Check).__module__ == "noria.checks.pii"


def test_a_file_is_loaded_once_and_another_folders_file_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "checks" / "again.py").write_text(ONE)
    first = extension.load("checks", "again", Check)
    assert extension.load("checks", "again", Check) is first
    other = tmp_path / "other" / "extensions" / "checks"
    other.mkdir(parents=True)
    (other / "again.py").write_text(ONE)
    monkeypatch.chdir(tmp_path / "other")
    assert extension.load("checks", "again", Check) is not first


def test_an_entry_point_of_an_installed_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="plugged", module="noria.checks.secrets")

    def entry_points(*, group: str, name: str | None = None) -> list[Any]:
        return [point] if group == "noria.checks" and name in (None, "plugged") else []

    monkeypatch.setattr(extension, "entry_points", entry_points)
    try:
        assert extension.load("checks", "plugged", Check).__name__ == "Secrets"
        assert "plugged" in extension.ids("checks")
    finally:
        extension.load("checks", "secrets", Check)  # the loader names the class; give it its own name back


def test_an_engine_is_found_by_its_scheme_and_must_export_one(folder: Path) -> None:
    assert extension.engine("sqlite").serves
    (folder / "engines" / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="exports no ENGINE"):
        extension.engine("empty")
    with pytest.raises(NotFound) as e:
        extension.engine("sqlit")
    assert "'sqlite'" in e.value.text


@pytest.mark.parametrize("line", ["msgspec", "msgspec>=0.18", "msgspec[toml]>=0.18"])
def test_an_installed_library_is_enough(line: str) -> None:
    extension.require([line], "x")


def test_every_missing_library_stands_in_one_line() -> None:
    with pytest.raises(MissingDependency) as e:
        extension.require(["no-such-one", "msgspec>=999", "msgspec>=0.18", "no-such-two>=1"], "checks/x")
    assert "pip install 'no-such-one' 'msgspec>=999' 'no-such-two>=1'" in str(e.value)


def test_versions_are_compared_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "version", lambda name: "1.10.0")
    extension.require(["x>=1.9"], "x")
    with pytest.raises(MissingDependency):
        extension.require(["x>=1.11"], "x")


def test_a_class_of_another_kind_is_not_taken() -> None:
    with pytest.raises(ConfigError, match="exactly one public subclass of Provider"):
        extension.load("checks", "pii", Provider)


@pytest.mark.parametrize(
    ("url", "engine"),
    [
        ("postgresql://h/d", "postgres"),
        ("postgres://h/d", "postgres"),
        ("rediss://h", "redis"),
        ("duckdb+x:///f", "duckdb"),
        ("x", "x"),
    ],
)
def test_a_url_names_its_engine_by_either_of_its_names(url: str, engine: str) -> None:
    assert extension.scheme(url) == engine
