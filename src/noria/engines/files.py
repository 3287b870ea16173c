"""Blobs as files in a folder, `<folder>/<tenant>/<name>.blob`. URL `files:///absolute/folder` or `files://relative/folder`.

Each part of a name between slashes is percent-encoded, dots too, so that no name leaves its tenant's folder and a
value may stand at `a` and another at `a/b`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from noria.contracts.error import ConfigError, Conflict, RequestError, StoreError
from noria.contracts.port import BlobStore, Engine
from noria.kit.atomic import STAGING, sync_folder

SUFFIX = ".blob"
_EMPTY = "%"


def path_of(url: str) -> Path:
    """The folder that a URL names; raises `ConfigError` where it names none."""
    scheme, separator, path = url.partition("://")
    if scheme != "files" or not separator or path.strip("/") == "":
        raise ConfigError(f"{url!r} names no folder.", hint="Write files:///absolute/folder or files://relative/folder.")
    return Path(path).absolute()


class FileBlobs:
    """`BlobStore` in a folder, shared by any number of processes of one machine."""

    def __init__(self, url: str) -> None:
        self._place = path_of(url)

    async def put(self, tenant: str, name: str, data: bytes) -> None:
        """As `BlobStore.put`."""
        await asyncio.to_thread(self._put, self._path(tenant, name), name, data)

    async def get(self, tenant: str, name: str) -> bytes | None:
        """As `BlobStore.get`."""
        return await asyncio.to_thread(_read, self._path(tenant, name))

    async def list(self, tenant: str, prefix: str = "") -> list[str]:
        """As `BlobStore.list`."""
        place = self._tenant(tenant)
        with _typed("list"):
            names = await asyncio.to_thread(lambda: [_name(p.relative_to(place)) for p in place.rglob(f"*{SUFFIX}")])
        return sorted((n for n in names if n.startswith(prefix)), key=str.encode)

    async def delete(self, tenant: str, name: str) -> bool:
        """As `BlobStore.delete`."""
        return await asyncio.to_thread(_unlink, self._path(tenant, name))

    def _put(self, path: Path, name: str, data: bytes) -> None:
        with _typed("put"):
            self._make(path.parent)
            aside = path.with_name(f"{STAGING}{os.getpid()}-{secrets.token_hex(4)}")
            try:
                fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                # A link, unlike a rename, does not replace what another writer has put there meanwhile.
                path.hardlink_to(aside)
                sync_folder(path.parent)
            except FileExistsError as e:
                if path.read_bytes() != data:
                    raise Conflict(f"files: {name!r} exists with other content; blobs are immutable.") from e
            finally:
                aside.unlink(missing_ok=True)

    def _make(self, folder: Path) -> None:
        """Create a folder and its parents so that their names, too, survive a power cut."""
        if not folder.is_dir():
            if folder != folder.parent:
                self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)

    def _tenant(self, tenant: str) -> Path:
        return self._place / _part(tenant)

    def _path(self, tenant: str, name: str) -> Path:
        if not tenant or not name:
            raise RequestError("A blob needs a tenant and a name.", code="bad_name", param="name")
        *folders, last = name.split("/")
        parts = [*map(_part, folders), _part(last) + SUFFIX]
        if any(len(p) > 255 for p in parts):
            raise RequestError(f"The blob name {name[:80]!r}… is too long.", code="bad_name", param="name")
        return self._tenant(tenant).joinpath(*parts)


def _part(text: str) -> str:
    return quote(text, safe="").replace(".", "%2E") or _EMPTY


def _name(path: Path) -> str:
    parts = path.with_name(path.name.removesuffix(SUFFIX)).parts
    return "/".join("" if p == _EMPTY else unquote(p) for p in parts)


def _read(path: Path) -> bytes | None:
    with _typed("get"):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def _unlink(path: Path) -> bool:
    with _typed("delete"):
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        sync_folder(path.parent)
        return True


@contextmanager
def _typed(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise StoreError(f"files: {what}: {e.strerror or e}") from e


ENGINE = Engine(serves={BlobStore: FileBlobs})
