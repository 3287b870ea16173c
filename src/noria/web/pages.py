"""The console's built files, ready to be sent: bodies, types and headers, without any web framework.

`ui/build.py` (`make ui`) fills the `static` folder: `index.html`, and under `assets/` files named by the hash
of their content, each with a gzip twin. Hashed files never change, so browsers keep them; the page that
names them is asked for every time.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

STATIC = Path(__file__).parent / "static"

# No inline script or style anywhere, nothing from elsewhere; `connect-src` is this server alone.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

SECURITY = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
)

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}

UNBUILT = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Noria</title>
<h1>Noria is running; its console has not been built</h1>
<p>Run <code>make ui</code> in the source folder, then load this page again. The API under <code>/v1</code> works without it,
and <code>noria trace list</code> shows traces in the terminal.</p>
<p>Noria 正在运行，但控制台尚未构建。请在源码目录运行 <code>make ui</code>，然后刷新本页。</p>
</html>
""".encode()


class Asset(msgspec.Struct, frozen=True):
    """One answer's body and what belongs to it. `headers` are without content-type and content-length."""

    body: bytes
    content_type: str
    headers: tuple[tuple[str, str], ...]
    status: int = 200


def asset(path: str, *, gzip: bool = False, root: Path = STATIC) -> Asset | None:
    """The built file at a URL path (`/assets/index-B6AJxgOG.js`), or None where there is none.

    `path` is decoded already and may start with a slash. Never leaves `root`, never serves hidden files,
    folders, gzip twins or types the console does not have. With `gzip` the twin is sent where there is one.
    """
    file = _inside(path, root)
    if file is None or file.name == "index.html":
        return None
    hashed = file.parent.name == "assets"
    cache = "public, max-age=31536000, immutable" if hashed else "no-cache"
    return _load(file, cache, gzip=gzip)


def index(*, gzip: bool = False, root: Path = STATIC) -> Asset:
    """The page that starts the console, for every path of its own; status 503 where it has not been built."""
    file = root / "index.html"
    if not file.is_file():
        return Asset(UNBUILT, TYPES[".html"], (("cache-control", "no-store"), *SECURITY), status=503)
    return _load(file, "no-cache", gzip=gzip)


def page(path: str, *, gzip: bool = False, root: Path = STATIC) -> Asset | None:
    """The answer to any GET of the console: a built file, else the page itself, which reads the path.

    None (404) for a hashed file that is not there: a page of an older build must not get HTML for its script.
    """
    if path.strip("/").startswith("assets/"):
        return asset(path, gzip=gzip, root=root)
    return asset(path, gzip=gzip, root=root) or index(gzip=gzip, root=root)


def _inside(path: str, root: Path) -> Path | None:
    parts = path.strip("/").split("/")
    if "\0" in path or "\\" in path or any(not p or p.startswith(".") for p in parts):
        return None
    file = root.joinpath(*parts)
    if file.suffix not in TYPES or not file.is_file() or not file.resolve().is_relative_to(root.resolve()):
        return None
    return file


def _load(file: Path, cache: str, *, gzip: bool) -> Asset:
    twin = file.with_name(file.name + ".gz")
    packed = twin.is_file()
    headers = (("cache-control", cache), *((("vary", "accept-encoding"),) if packed else ()), *SECURITY)
    if gzip and packed:
        return Asset(twin.read_bytes(), TYPES[file.suffix], (("content-encoding", "gzip"), *headers))
    return Asset(file.read_bytes(), TYPES[file.suffix], headers)
