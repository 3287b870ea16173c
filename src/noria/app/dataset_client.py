"""Datasets as a command or a job sees them: the management API, in pages (ADR 23: work on data runs outside of the keeper)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from noria.app.datasets import Draft, Shown
from noria.contracts.dataset import Member, Rejection, Row, Version
from noria.contracts.error import RequestError
from noria.data.harvest import Asked

Ask = Callable[[str, str, bytes], bytes]
"""(method, path, body) → the body of the answer. Raises `NoriaError` where the service refuses."""

PAGE = 500
PAGE_OF_MEMBERS = 10_000


class Reference(NamedTuple):
    """Which rows are meant: `NAME`, `NAME@VERSION`, `d1:…`, each with `/SPLIT` or without. A version's id may be cut short."""

    name: str
    version: str = "latest"
    split: str = ""

    @classmethod
    def read(cls, text: str) -> Reference:
        """Raises `RequestError`.

        >>> Reference.read("help@d1:ab12/test")
        Reference(name='help', version='d1:ab12', split='test')
        """
        what, _, split = text.partition("/")
        name, at, version = what.partition("@")
        if what.startswith("d1:"):
            name, version = "-", what
        if not name or (at and not version):
            hint = "Write NAME, NAME@VERSION or d1:…, and /SPLIT where one split is meant."
            raise RequestError(f"{text!r} names no dataset.", code="invalid_reference", hint=hint)
        return cls(name, version or "latest", split)


class _Page(msgspec.Struct):
    next: str | int | None = None


class _Rows(_Page):
    rows: list[Shown] = []


class _Members(_Page):
    members: list[Member] = []


class _Rejections(_Page):
    rejections: list[Rejection] = []


class _Exchanges(_Page):
    exchanges: list[Asked] = []
    total: int = 0


class _Versions(_Page):
    versions: list[Version] = []


class DatasetClient:
    """Reads and makes versions through the service."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def find(self, reference: Reference) -> Version:
        """The version that is meant. Raises what the service says where there is none, and `RequestError` for an unknown split."""
        path = f"/api/datasets/{quote(reference.name, safe='')}/{quote(reference.version, safe=':')}"
        found = msgspec.json.decode(self._ask("GET", path, b""), type=Version)
        if reference.split and reference.split not in found.splits:
            known = ", ".join(found.splits)
            raise RequestError(
                f"{found.name} has no split {reference.split!r}.", code="unknown_split", hint=f"It has: {known}."
            )
        return found

    def latest(self, name: str) -> Version | None:
        """The latest version of a dataset, or None where there is no such dataset."""
        found = msgspec.json.decode(self._ask("GET", "/api/datasets", b""), type=_Versions)
        return next((v for v in found.versions if v.name == name), None)

    def members(self, version: Version, split: str = "") -> Iterator[Member]:
        """Members by row id."""
        for page in self._pages(_path(version, "members"), _Members, split=split, limit=PAGE_OF_MEMBERS):
            yield from page.members

    def shown(self, version: Version, split: str = "", *, content: bool = True) -> Iterator[Shown]:
        """Rows by id, as the service could open them."""
        asked: dict[str, Any] = {"split": split, "limit": PAGE, "content": str(content).lower()}
        for page in self._pages(_path(version, "rows"), _Rows, **asked):
            yield from page.rows

    def read(self, ids: Iterable[str]) -> dict[str, Row]:
        """Rows by id; without those that are erased or not there."""
        wanted, found = list(ids), {}
        for start in range(0, len(wanted), PAGE):
            body = msgspec.json.encode({"ids": wanted[start : start + PAGE]})
            page = msgspec.json.decode(self._ask("POST", "/api/rows/read", body), type=_Rows)
            found.update({s.id: s.row for s in page.rows if s.row is not None})
        return found

    def rejections(self, version: Version) -> Iterator[Rejection]:
        """What was left out of a version."""
        asked: dict[str, Any] = {"limit": 1000}
        for page in self._pages(_path(version, "rejections"), _Rejections, cursor="offset", **asked):
            yield from page.rejections

    def exchanges(self, filter: str) -> Iterator[tuple[Asked, int]]:
        """Exchanges, newest first, each with how many there are in all."""
        for page in self._pages("/api/exchanges", _Exchanges, cursor="before", filter=filter, limit=200):
            for asked in page.exchanges:
                yield asked, page.total

    def subjects(self, users: Sequence[str]) -> list[str]:
        """The keyed hashes that stand for users."""
        answer = self._ask("POST", "/api/rows/subjects", msgspec.json.encode({"users": users}))
        return msgspec.json.decode(answer, type=dict[str, list[str]])["subjects"]

    def add(self, rows: Sequence[Row]) -> list[str]:
        """Store rows; their ids, in order."""
        body = b"\n".join(map(msgspec.json.encode, rows))
        ids: list[str] = msgspec.json.decode(self._ask("POST", "/api/rows", body))["ids"]
        return ids

    def put(self, name: str, members: Iterable[Member], rejections: Iterable[Rejection], draft: Draft) -> tuple[Version, bool]:
        """Make a version; with whether it is new. `members` may come in any order."""
        lines = [draft, *sorted(members, key=lambda m: m.row), *rejections]
        answer = self._ask("POST", f"/api/datasets/{quote(name, safe='')}", b"\n".join(map(msgspec.json.encode, lines)))
        return msgspec.json.decode(answer, type=Version), bool(msgspec.json.decode(answer)["new"])

    def _pages(self, path: str, type: type[Any], *, cursor: str = "after", **asked: Any) -> Iterator[Any]:
        given = {k: v for k, v in asked.items() if v != ""}
        at: str | int | None = None
        while True:
            query = urlencode(given | ({} if at is None else {cursor: at}))
            page = msgspec.json.decode(self._ask("GET", f"{path}?{query}", b""), type=type)
            yield page
            at = page.next
            if at is None:
                return


def _path(version: Version, what: str) -> str:
    return f"/api/datasets/{quote(version.name, safe='')}/{version.id}/{what}"
