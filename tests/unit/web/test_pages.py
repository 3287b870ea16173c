"""The console's files: what is served, with which headers, and what never is."""

import gzip
import re
from pathlib import Path

import pytest

from noria.web import pages


@pytest.fixture
def static(tmp_path: Path) -> Path:
    root = tmp_path / "static"
    (root / "assets").mkdir(parents=True)
    (root / "index.html").write_text("<!doctype html><script type=module src=/assets/index-abc.js></script>")
    (root / "assets" / "index-abc.js").write_text("export {}")
    (root / "assets" / "index-abc.js.gz").write_bytes(gzip.compress(b"export {}"))
    (root / "assets" / "index-abc.css").write_text("a{}")
    (root / "robots.json").write_text("{}")
    (root / ".source").write_text("stamp")
    (tmp_path / "secret.js").write_text("secret")
    return root


def test_a_hashed_file_is_kept_forever_by_the_browser(static: Path) -> None:
    found = pages.asset("/assets/index-abc.js", root=static)
    assert found is not None
    assert (found.status, found.body, found.content_type) == (200, b"export {}", "text/javascript; charset=utf-8")
    assert dict(found.headers)["cache-control"] == "public, max-age=31536000, immutable"


def test_a_file_without_a_hash_is_asked_for_each_time(static: Path) -> None:
    found = pages.asset("robots.json", root=static)
    assert found is not None
    assert dict(found.headers)["cache-control"] == "no-cache"


def test_the_page_is_asked_for_each_time(static: Path) -> None:
    page = pages.index(root=static)
    assert page.status == 200
    assert page.content_type == "text/html; charset=utf-8"
    assert dict(page.headers)["cache-control"] == "no-cache"


def test_the_gzip_twin_is_sent_to_who_takes_it_and_caches_are_told(static: Path) -> None:
    packed = pages.asset("assets/index-abc.js", gzip=True, root=static)
    plain = pages.asset("assets/index-abc.js", root=static)
    assert packed is not None
    assert plain is not None
    assert gzip.decompress(packed.body) == plain.body
    assert dict(packed.headers)["content-encoding"] == "gzip"
    assert "content-encoding" not in dict(plain.headers)
    assert dict(packed.headers)["vary"] == dict(plain.headers)["vary"] == "accept-encoding"


def test_a_file_without_a_twin_is_sent_plain(static: Path) -> None:
    found = pages.asset("assets/index-abc.css", gzip=True, root=static)
    assert found is not None
    assert found.body == b"a{}"
    assert "content-encoding" not in dict(found.headers)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "assets",
        "assets/",
        "assets/none.js",
        "index.html",
        "assets/index-abc.js.gz",
        ".source",
        "../secret.js",
        "assets/../../secret.js",
        "/assets//index-abc.js",
        "./assets/index-abc.js",
        "assets\\index-abc.js",
        "assets/index-abc.js\0",
        "/etc/passwd",
    ],
)
def test_nothing_else_is_served(static: Path, path: str) -> None:
    assert pages.asset(path, root=static) is None


def test_every_path_of_the_console_is_the_page_except_a_missing_hashed_file(static: Path) -> None:
    for path in ("/", "/traces/0193-ab", "/playground", "/no/such"):
        found = pages.page(path, root=static)
        assert found is not None
        assert found.body == pages.index(root=static).body
    script = pages.page("/assets/index-abc.js", root=static)
    assert script is not None
    assert script.body == b"export {}"
    assert pages.page("/assets/index-old.js", root=static) is None


def test_a_link_that_leads_outside_is_not_followed(static: Path) -> None:
    (static / "assets" / "out-abc.js").symlink_to(static.parent / "secret.js")
    assert pages.asset("assets/out-abc.js", root=static) is None


def test_an_unbuilt_console_says_how_to_build_it_and_is_not_cached(tmp_path: Path) -> None:
    page = pages.index(root=tmp_path / "static")
    assert page.status == 503
    assert b"make ui" in page.body
    assert "make ui" in page.body.decode().split("正在运行")[1]
    assert dict(page.headers)["cache-control"] == "no-store"
    assert pages.asset("assets/index-abc.js", root=tmp_path / "static") is None


def test_every_answer_carries_a_policy_without_inline_code(static: Path, tmp_path: Path) -> None:
    unbuilt = pages.index(root=tmp_path / "none")
    for found in (pages.index(root=static), pages.asset("assets/index-abc.js", root=static), unbuilt):
        assert found is not None
        headers = dict(found.headers)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"https?:|\*", policy)
        assert headers["x-content-type-options"] == "nosniff"
        assert not re.search(rb"<style|\sstyle=|\son\w+=|<script>", found.body)


needs_build = pytest.mark.skipif(not (pages.STATIC / "index.html").is_file(), reason="the console is not built (make ui)")


@needs_build
def test_the_built_page_names_only_files_that_are_served_and_nothing_elsewhere() -> None:
    body = pages.index().body.decode()
    named = re.findall(r'(?:src|href)="([^"]+)"', body)
    assert len(named) >= 3
    for path in named:
        assert pages.asset(path) is not None, path
    assert not re.search(r'(?:src|href)="(?:https?:)?//', body)
    assert not re.search(r"<style|<script(?![^>]* src=)", body)


@needs_build
def test_the_built_console_stays_small() -> None:
    sizes = {f.name: f.stat().st_size for f in (pages.STATIC / "assets").glob("*.js.gz")}
    assert sizes
    assert sum(sizes.values()) <= 208 * 1024, "all pages; what the first one loads is measured in tests/browser"
