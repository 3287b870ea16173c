"""`/api/datasets`, `/api/rows`, `/api/exchanges`: what dataset versions are made of, for operators and for jobs (ADR 23)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import FastAPI, Query, Request, Response
from pydantic import Field

from noria.api import render
from noria.api.field import Strict, actor
from noria.app.datasets import Datasets, Draft, Shown
from noria.app.keeper import Keeper, Recorded
from noria.contracts.dataset import Member, Rejection, Row, Version
from noria.contracts.error import NotFound, RequestError
from noria.contracts.feedback import Feedback
from noria.contracts.trace import ExchangeRow
from noria.data import diff
from noria.dialects.native import in_chat_form
from noria.transform.template import Template

T = TypeVar("T")

AT_ONCE = 500
"""Rows of a body that are sealed and stored together."""
LONGEST_LINE = 16 * 1024 * 1024
"""Bytes."""
PAGE = 10_000
"""Members or rejections read from the store at once."""
MOST_COMPARED = 200_000
"""Rows of a version that the keeper compares with another: they are held in memory."""
MOST_OPENED = 2000
"""Rows that came, or went, among which changed labels are looked for."""
_ID = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_After = Annotated[str, Query(pattern="^([0-9a-f]{64})?$", description="The row id where the last page ended.")]
_LINES = {"requestBody": {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}, "required": True}}


class Ids(Strict):
    """Rows by id."""

    ids: Annotated[list[_ID], Field(max_length=2000)]


class Users(Strict):
    """People, as the user's own data names them."""

    users: Annotated[list[Annotated[str, Field(min_length=1, max_length=512)]], Field(max_length=2000)]


def routes(app: FastAPI, keeper: Keeper) -> None:
    """Mount the routes. A keeper without a place for datasets says so."""
    _rows(app, keeper)
    _versions(app, keeper)
    _contents(app, keeper)
    _compared(app, keeper)
    _exchanges(app, keeper)


def _of(keeper: Keeper) -> Datasets:
    if keeper.datasets is None:
        raise NotFound("This keeper has no datasets.", code="not_found")
    return keeper.datasets


def _rows(app: FastAPI, keeper: Keeper) -> None:
    @app.post("/api/rows", tags=["datasets"], openapi_extra=_LINES)
    async def add(request: Request) -> Response:
        """Store rows, one JSON object (`contracts.dataset.Row`) a line, read as they arrive. Answers with the ids, in order.

        Rows are stored in groups as the body is read: where a line is refused, those before it stay, and sending all of it again
        does no harm.
        """
        ids: list[str] = []
        new = 0
        async for part in _parts(_decoded(request, Row)):
            named, fresh = await _of(keeper).add(keeper.tenant, part)
            ids += named
            new += fresh
        return _json({"ids": ids, "new": new})

    @app.post("/api/rows/subjects", tags=["datasets"])
    async def subjects(body: Users) -> Response:
        """The keyed hashes that stand for users, in their order: what a row's `subject` holds. The names are not kept."""
        return _json({"subjects": [await keeper.subject_of(user) for user in body.users]})

    @app.post("/api/rows/read", tags=["datasets"])
    async def read(body: Ids) -> Response:
        """Rows by id, in the clear."""
        return _json({"rows": await _of(keeper).read(keeper.tenant, body.ids)})


def _versions(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/datasets", tags=["datasets"])
    async def datasets(subject: Annotated[str, Query(pattern="^[0-9A-Za-z._:-]{0,128}$")] = "") -> Response:
        """The latest version of every dataset; or all versions that hold a row of a subject (keyed hash)."""
        own = _of(keeper)
        found = await own.store.holding(keeper.tenant, subject) if subject else await own.latest(keeper.tenant)
        return _json({"versions": list(map(_shown, found))})

    @app.get("/api/datasets/{name}", tags=["datasets"])
    async def versions(
        name: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Annotated[int, Query(ge=0)] = 0
    ) -> Response:
        """The versions of a dataset, the latest first."""
        await _of(keeper).find(keeper.tenant, name)
        found = await _of(keeper).store.versions(keeper.tenant, name=name, limit=limit, offset=offset)
        return _json({"versions": list(map(_shown, found)), "next": offset + limit if len(found) == limit else None})

    @app.post("/api/datasets/{name}", tags=["datasets"], openapi_extra=_LINES)
    async def put(name: str, request: Request) -> Response:
        """Make a version, whole or not at all. The first line is what is said of it (`recipe`, `parents`, `note`), then one line a
        member (`[row id, split]`, rising by row id), then one a rejection (an object). 200 where the dataset has it already.
        """
        draft, members, rejections = await _read_version(request)
        version, new = await _of(keeper).put(keeper.tenant, name, members, rejections, draft)
        if new:
            await keeper.note("dataset.versioned", actor(request), name, {"version": version.id, "rows": version.rows})
        return _json(_shown(version) | {"new": new}, 201 if new else 200)

    @app.get("/api/datasets/{name}/{version}", tags=["datasets"])
    async def one(name: str, version: str) -> Response:
        """One version, by its id or the beginning of it. `latest` is the latest; `-` for the dataset looks in all of them."""
        return _json(_shown(await _find(keeper, name, version)))


async def _find(keeper: Keeper, name: str, version: str) -> Version:
    return await _of(keeper).find(keeper.tenant, "" if name == "-" else name, "" if version == "latest" else version)


def _contents(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/datasets/{name}/{version}/rows", tags=["datasets"])
    async def rows(
        name: str,
        version: str,
        *,
        after: _After = "",
        split: str = "",
        limit: Annotated[int, Query(ge=1, le=2000)] = 500,
        content: bool = True,
    ) -> Response:
        """Rows of a version, by row id, each opened and its id computed anew; `content=false` leaves out what it says."""
        v = await _find(keeper, name, version)
        found = await _of(keeper).page(keeper.tenant, v.id, after=after, split=split, limit=limit, content=content)
        return _json({"rows": found, "next": found[-1].id if len(found) == limit else None})

    @app.get("/api/datasets/{name}/{version}/members", tags=["datasets"])
    async def members(
        name: str, version: str, after: _After = "", split: str = "", limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000
    ) -> Response:
        """The rows of a version as `[row id, split]`, by row id."""
        v = await _find(keeper, name, version)
        found = await _of(keeper).store.members(keeper.tenant, v.id, after=after, split=split, limit=limit)
        return _json({"members": found, "next": found[-1].row if len(found) == limit else None})

    @app.get("/api/datasets/{name}/{version}/rejections", tags=["datasets"])
    async def rejections(
        name: str,
        version: str,
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 500,
        content: bool = False,
    ) -> Response:
        """What was left out of a version, and why; with `content`, what it said, where it is stored."""
        v = await _find(keeper, name, version)
        found = await _of(keeper).store.rejections(keeper.tenant, v.name, v.id, offset=offset, limit=limit)
        shown = [msgspec.structs.asdict(r) for r in found]
        if content:
            known = {s.id: s for s in await _of(keeper).read(keeper.tenant, [r.row for r in found if r.row])}
            shown = [r | {"content": _content(known.get(r["row"]))} for r in shown]
        return _json({"rejections": shown, "next": offset + limit if len(found) == limit else None, "total": v.rejected})


def _compared(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/datasets/{name}/{version}/rejections/rules", tags=["datasets"])
    async def rules(name: str, version: str) -> list[dict[str, Any]]:
        """How many rows each rule left out of a version, most first."""
        v = await _find(keeper, name, version)
        counts: Counter[tuple[str, str]] = Counter()
        offset = 0
        while found := await _of(keeper).store.rejections(keeper.tenant, v.name, v.id, offset=offset, limit=PAGE):
            counts.update((r.stage, r.rule) for r in found)
            offset += len(found)
        return [{"stage": stage, "rule": rule, "rows": n} for (stage, rule), n in counts.most_common()]

    @app.get("/api/datasets/{name}/{version}/diff", tags=["datasets"])
    async def compared(
        name: str,
        version: str,
        before: Annotated[str, Query(description="The version that it is compared with; any dataset's.")],
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Response:
        """What a version has that another has not: how many rows, and the first `limit` of each kind with what they say. Where more
        than 2,000 rows came or went nobody has looked for labels that changed: `relabelled` is null.
        """
        new, old = await _find(keeper, name, version), await _find(keeper, "-", before)
        if max(new.rows, old.rows) > MOST_COMPARED:
            raise RequestError(
                f"A version has more than {MOST_COMPARED:,} rows.", code="too_many_rows", hint="Compare by `noria data diff`."
            )
        lists = [await _members(keeper, v) for v in (old, new)]
        found = await asyncio.to_thread(diff.compare, *lists)
        return _json({"before": _shown(old), "after": _shown(new), **await _difference(keeper, found, limit)})


async def _members(keeper: Keeper, version: Version) -> list[Member]:
    found: list[Member] = []
    while page := await _of(keeper).store.members(keeper.tenant, version.id, after=found[-1].row if found else "", limit=PAGE):
        found += page
    return found


async def _difference(keeper: Keeper, found: diff.Difference, limit: int) -> dict[str, Any]:
    """Counts, and the first rows of each kind in the clear."""
    came, went = [m.row for m in found.added], [m.row for m in found.removed]
    wanted = came[:MOST_OPENED] + went[:MOST_OPENED] + [m.row for m in found.moved[:limit]]
    known = {s.id: s.row for s in await _of(keeper).read(keeper.tenant, wanted)}
    renamed = None
    if max(len(came), len(went)) <= MOST_OPENED:
        readable = [{i: row for i in ids if (row := known.get(i))} for ids in (went, came)]
        renamed = await asyncio.to_thread(diff.relabelled, *readable)
    sides = {"added": found.added, "removed": found.removed}
    return {
        "counts": {
            **{side: dict(Counter(m.split for m in members)) for side, members in sides.items()},
            "moved": len(found.moved),
            "relabelled": None if renamed is None else len(renamed),
        },
        **{
            side: [{"id": m.row, "split": m.split, "row": known.get(m.row)} for m in members[:limit]]
            for side, members in sides.items()
        },
        "moved": [{**msgspec.structs.asdict(m), "content": known.get(m.row)} for m in found.moved[:limit]],
        "relabelled": None
        if renamed is None
        else [{**msgspec.structs.asdict(r), "content": known.get(r.after_row)} for r in renamed[:limit]],
    }


def _content(found: Shown | None) -> Row | None:
    return found.row if found else None


def _exchanges(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/exchanges", tags=["datasets"])
    async def exchanges(filter: str = "", before: str = "", limit: Annotated[int, Query(ge=1, le=200)] = 100) -> Response:
        """One page of exchanges, newest first, each with what was asked in chat form, without the release's own prompt, the text of
        its answer, and what was said of it, oldest first.
        """
        named, total = await keeper.rows(render.query(filter, before, limit))
        shown = []
        for found in await keeper.recorded(named):
            said = [t.feedback for t in await keeper.feedback.of(keeper.tenant, found.row.id)]
            shown.append(_exchange(found) | {"feedback": [_judgement(f) for f in sorted(said, key=lambda f: f.at_ns)]})
        more = render.cursor(named[-1][0]) if len(named) == limit else None
        return _json({"exchanges": shown, "next": more, "total": total})


def _exchange(found: Recorded) -> dict[str, Any]:
    row = found.row
    asked = render.body_of(found.request)
    given = render.read_answer_body(found.answer, sse=row.answer_is_sse, dialect=render.spoken(row))
    if row.native:
        chat = in_chat_form(row.dialect, asked, given)
        asked, given = chat["request"], chat["answer"]
    return {
        "id": row.id,
        "time_ns": row.started_ns,
        "app": row.app,
        "release": row.release,
        "outcome": row.outcome,
        "subject": row.subject,
        "conversation": row.conversation,
        "bodies": found.bodies,
        "messages": _unprompted(row, _messages(asked)),
        "answer": _said(given),
    }


def _unprompted(row: ExchangeRow, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the prompt that the release put first: it is the release's, not the caller's, and another release has another one."""
    prompted = any(stage.name == Template.name for stage in row.stages)
    return messages[1:] if prompted and messages and messages[0].get("role") == "system" else messages


def _judgement(given: Feedback) -> dict[str, Any]:
    return {"kind": given.kind, "metric": given.metric, "value": given.value, "text": given.text}


def _messages(asked: Any) -> list[dict[str, Any]]:
    """What was asked as messages; a completion's prompt is one."""
    if not isinstance(asked, dict):
        return []
    if isinstance(asked.get("prompt"), str):
        return [{"role": "user", "content": asked["prompt"]}]
    given = asked.get("messages")
    return [m for m in given if isinstance(m, dict)] if isinstance(given, list) else []


def _said(given: Any) -> str:
    """The text of the first choice; empty where it called tools, or was cut."""
    choices = given.get("choices") if isinstance(given, dict) else None
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = first.get("message")
    text = message.get("content") if isinstance(message, dict) else first.get("text")
    return text if isinstance(text, str) else ""


async def _read_version(request: Request) -> tuple[Draft, list[Member], list[Rejection]]:
    draft: Draft | None = None
    members: list[Member] = []
    rejections: list[Rejection] = []
    number = 0
    async for number, line in _lines(request):
        if draft is None:
            draft = _decode(line, Draft, number)
        elif line.startswith(b"["):
            members.append(_decode(line, Member, number))
            if len(members) > 1 and members[-1].row <= members[-2].row:
                raise RequestError(f"Line {number}: members must rise by row id.", code="members_unsorted")
        else:
            rejections.append(_decode(line, Rejection, number))
    if draft is None:
        raise RequestError("The body is empty.", code="empty_body", hint="The first line says what is made.")
    return draft, members, rejections


async def _decoded(request: Request, type: type[T]) -> AsyncIterator[T]:
    async for number, line in _lines(request):
        yield _decode(line, type, number)


def _decode(line: bytes, type: type[T], number: int) -> T:
    try:
        return msgspec.json.decode(line, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise RequestError(f"Line {number}: {e}", code="invalid_line") from None


async def _lines(request: Request) -> AsyncIterator[tuple[int, bytes]]:
    """The lines of a body as they arrive, with their numbers; blank ones are passed over."""
    rest, number = b"", 0
    async for piece in request.stream():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            number += 1
            if line.strip():
                yield number, line
        if len(rest) > LONGEST_LINE:
            raise RequestError(f"Line {number + 1} is longer than {LONGEST_LINE} bytes.", code="line_too_long")
    if rest.strip():
        yield number + 1, rest


async def _parts(rows: AsyncIterator[Row]) -> AsyncIterator[list[Row]]:
    part: list[Row] = []
    async for row in rows:
        part.append(row)
        if len(part) == AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _shown(version: Version) -> dict[str, Any]:
    return {**msgspec.structs.asdict(version), "rows": version.rows}


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
