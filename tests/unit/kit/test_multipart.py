"""Forms in files: what they say, their file's bytes, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from noria.kit import multipart
from noria.kit.multipart import BadForm, read_file, read_form

TYPE = 'multipart/form-data; boundary="--mark"'


def field(name: str, value: bytes, more: str = "") -> bytes:
    return f'content-disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value


def form(*parts: bytes, end: bytes = b"----mark--\r\n") -> bytes:
    return b"".join(b"----mark\r\n" + part + b"\r\n" for part in parts) + end


def upload(data: bytes, name: str = "文件.jsonl") -> bytes:
    return field("file", data, f'; filename="{name}"\r\ncontent-type: application/jsonl')


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "form"


@pytest.mark.parametrize("read", [1, 7, 64, 1 << 18])
@pytest.mark.parametrize(
    "data", [b"", b"x", b"\r\n----mar", b"\r\n----markx\r\n" * 50, bytes(range(256)) * 40, b"\r\n" * 99], ids=len
)
def test_any_bytes_come_out_as_they_went_in(place: Path, monkeypatch: pytest.MonkeyPatch, read: int, data: bytes) -> None:
    monkeypatch.setattr(multipart, "READ", read)
    place.write_bytes(form(upload(data), field("purpose", "批处理".encode())))
    found = read_form(place, TYPE)
    assert (found.fields, found.filename, found.size) == ({"purpose": "批处理"}, "文件.jsonl", len(data))
    pieces = list(read_file(place, TYPE, 100))
    assert b"".join(pieces) == data
    assert {len(p) for p in pieces[:-1]} <= {100}


def test_a_form_without_a_file_has_none(place: Path) -> None:
    place.write_bytes(form(field("purpose", b"batch"), field("file", b"text")))
    assert read_form(place, TYPE).filename is None


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("application/json", b"{}", "needs the content type"),
        ("multipart/form-data", form(upload(b"x")), "boundary"),
        (TYPE, b"", "ends before"),
        (TYPE, form(upload(b"x"), end=b""), "ends before"),
        (TYPE, form(upload(b"x"), upload(b"y")), "more than one"),
        (TYPE, form(field("other", b"x", '; filename="f"')), "'other' is a file"),
        (TYPE, form(b"x-none: 1\r\n\r\nx"), "no name"),
        (TYPE, form(field("a", b"x" * 70_000)), "65536 bytes"),
        (TYPE, form(*(field(f"f{i}", b"x") for i in range(18))), "16 fields"),
        (TYPE, b"nonsense", "xpected boundary"),
        ("multipart/form-data; boundary=" + "x" * 3000, b"", "oundary length"),
    ],
)
def test_what_is_no_form_is_told_in_words(place: Path, kind: str, body: bytes, words: str) -> None:
    place.write_bytes(body)
    with pytest.raises(BadForm, match=words):
        read_form(place, kind)
