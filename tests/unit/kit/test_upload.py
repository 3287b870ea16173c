"""Bodies on disk: bounds, leftovers, names."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from noria.kit.http_request import Buffered, Limits, Refusal, RequestReader
from noria.kit.upload import ABANDONED, Upload, Uploads, path_of, sweep


def begun(uploads: Uploads, limit: int = 10) -> Upload:
    made = uploads.begin(limit, "too long")
    assert isinstance(made, Upload)
    return made


def test_an_upload_is_there_until_it_is_closed(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    upload = begun(uploads)
    assert upload.write(b"abc") is None
    assert path_of(tmp_path, upload.name).read_bytes() == b"abc"
    assert path_of(tmp_path, upload.name).stat().st_mode & 0o777 == 0o600
    assert uploads.used == 3
    upload.close()
    upload.close()
    assert (uploads.used, list((tmp_path / "uploads").iterdir())) == (0, [])


def test_bounds_hold_for_one_and_for_all(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, most=15)
    one, two = begun(uploads), begun(uploads)
    assert one.write(b"x" * 10) is None
    assert one.write(b"x") == Refusal(413, "file_too_large", "too long")
    assert two.write(b"x" * 5).status == 503
    one.close()
    assert begun(uploads).write(b"x" * 5) is None


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    upload = begun(Uploads(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        refusal = upload.write(b"x")
    assert (refusal.status, refusal.code) == (507, "storage_full")
    (tmp_path / "file").write_bytes(b"")
    assert Uploads(tmp_path / "file").begin(10, "").status == 507


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a" * 32, "a" * 32 + ".part/..", "A" * 32 + ".part"])
def test_only_uploads_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no upload"):
        path_of(tmp_path, name)


def test_what_a_killed_worker_left_is_swept_and_what_is_under_way_is_not(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    old, new = begun(uploads), begun(uploads)
    os.utime(path_of(tmp_path, old.name), times=(0, time.time() - ABANDONED - 1))
    assert sweep(tmp_path) == 1
    assert [p.name for p in (tmp_path / "uploads").iterdir()] == [new.name]


HEAD = b"POST /f HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"


def reader(tmp_path: Path, limit: int = 10) -> tuple[RequestReader, Uploads]:
    uploads = Uploads(tmp_path)
    return RequestReader(
        Limits(max_body=5), Buffered(), lambda r: uploads.begin(limit, "") if r.path == "/f" else None
    ), uploads


def test_a_diverted_body_is_bounded_by_where_it_goes(tmp_path: Path) -> None:
    made, uploads = reader(tmp_path)
    made.feed(HEAD % 8 + b"abcd")
    assert uploads.used == 4
    made.feed(b"efgh" + b"POST /g HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")
    first, second = made.complete
    assert (first.body, path_of(tmp_path, first.spill.name).read_bytes()) == (b"", b"abcdefgh")
    assert (second.body, second.spill) == (b"hi", None)
    made.feed(HEAD % 11)
    assert (made.refusal.status, made.refusal.code) == (413, "file_too_large")
    made.close()  # the connection ends before the requests were taken
    assert (uploads.used, list((tmp_path / "uploads").iterdir())) == (0, [])


def test_a_diverted_body_whose_length_nobody_said_is_bounded_too(tmp_path: Path) -> None:
    made, uploads = reader(tmp_path)
    made.feed(b"POST /f HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n8\r\nabcdefgh\r\n8\r\nabcdefgh\r\n")
    assert made.refusal.status == 413
    assert (uploads.used, list((tmp_path / "uploads").iterdir())) == (0, [])


def test_a_request_may_be_refused_before_its_body(tmp_path: Path) -> None:
    made = RequestReader(Limits(), Buffered(), lambda _: Refusal(401, "invalid_api_key", "no"))
    made.feed(HEAD % 8)
    assert made.refusal.status == 401
