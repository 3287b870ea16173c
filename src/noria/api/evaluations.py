"""`/api/evaluations`, `/api/suites`: measuring releases, for operators; and what an evaluation's job asks for."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Query, Request, Response
from msgspec.structs import replace
from pydantic import Field

from noria.api.field import Id, Strict, actor
from noria.app.evaluating import MOST_AT_ONCE, Evaluation, Evaluations, Plan, compared
from noria.app.keeper import Keeper
from noria.contracts.error import NotFound, RequestError
from noria.contracts.evaluation import Suite


class SuiteBody(Strict):
    """A suite that is declared nowhere."""

    dataset: str = Field(min_length=1, description="`name` (its latest version), `name@d1:…`, or `d1:…`.")
    name: str = "ad hoc"
    split: str = "test"
    metrics: list[str] = Field(default=["exact"], min_length=1)
    options: dict[str, dict[str, Any]] = Field(default={}, description="Of the metrics, by id.")
    params: dict[str, Any] = Field(default={}, description="Request parameters; `temperature` is 0 unless given.")
    limit: int = Field(default=0, ge=0, description="At most so many items, the same ones every time; 0 = all.")


class Asked(Strict):
    """What to evaluate, by what."""

    suite: str = Field(default="", description="The name of a declared suite.")
    definition: SuiteBody | None = Field(default=None, description="In place of `suite`: one that is declared nowhere.")
    app: str
    release: str = Field(default="", description="A name or an id; may be left out where the app has one release.")
    limit: int | None = Field(default=None, ge=0, description="In place of the suite's.")
    concurrency: int = Field(default=4, ge=1, le=MOST_AT_ONCE)
    fresh: bool = Field(default=False, description="Ask everything anew, whatever was answered before.")
    id: Id = ""


class Pair(Strict):
    """Two evaluations of one suite; `second` is judged against `first`."""

    first: str
    second: str
    margins: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={}, description="By metric: how much worse `second` may be."
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


def routes(app: FastAPI, keeper: Keeper) -> None:
    """Mount the routes. A keeper without datasets or jobs says so."""
    _asked(app, keeper)
    _results(app, keeper)


def _of(keeper: Keeper) -> Evaluations:
    if keeper.evaluations is None:
        raise NotFound("This keeper has no evaluations: it runs without datasets or jobs.", code="not_found")
    return keeper.evaluations


async def _suite(keeper: Keeper, asked: Asked) -> Suite:
    if bool(asked.suite) == (asked.definition is not None):
        raise RequestError("Give `suite` or `definition`.", code="invalid_value", param="suite")
    if asked.definition is None:
        declared = await _of(keeper).suites()
        if asked.suite not in declared:
            raise NotFound.nearest("suite", asked.suite, sorted(declared), code="suite_not_found")
        suite = declared[asked.suite]
    else:
        suite = msgspec.convert(asked.definition.model_dump(), Suite)
    return suite if asked.limit is None else replace(suite, limit=asked.limit)


def _asked(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/suites", tags=["evaluations"])
    async def suites() -> dict[str, Any]:
        """Suites that noria.yaml declares. Their datasets are resolved to a version when one is run."""
        return {"suites": [msgspec.to_builtins(s) for s in (await _of(keeper).suites()).values()]}

    @app.post("/api/evaluations", tags=["evaluations"], status_code=201)
    async def start(request: Request, asked: Asked) -> dict[str, Any]:
        """Begin an evaluation. Any release of an app may be evaluated, also one without traffic."""
        suite = await _suite(keeper, asked)
        plan = Plan(suite, asked.app, asked.release, asked.concurrency, asked.fresh, actor(request), asked.id)
        return _shown(_of(keeper), await _of(keeper).start(plan))

    @app.get("/api/evaluations", tags=["evaluations"])
    async def several(app: str = "", suite: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        """Evaluations, newest first."""
        found = await _of(keeper).all(app=app, suite=suite)
        return {"evaluations": [_shown(_of(keeper), e) for e in found[:limit]], "total": len(found)}

    @app.post("/api/evaluations/{id}/resume", tags=["evaluations"])
    async def resume(request: Request, id: str) -> dict[str, Any]:
        """Go on with one that failed, was stopped, or met failures; what was answered is not asked again."""
        return _shown(_of(keeper), await _of(keeper).resume(id, actor(request)))

    @app.post("/api/evaluations/{id}/stop", tags=["evaluations"])
    async def stop(request: Request, id: str) -> dict[str, Any]:
        """End one that runs."""
        return _shown(_of(keeper), await _of(keeper).stop(id, actor(request)))

    @app.delete("/api/evaluations/{id}", tags=["evaluations"])
    async def remove(request: Request, id: str) -> dict[str, Any]:
        """Forget one."""
        await _of(keeper).remove(id, actor(request))
        return {"id": id, "removed": True}

    @app.get("/internal/evaluation-pass", include_in_schema=False)
    async def passed(id: str) -> dict[str, Any]:
        return {"pass": await _of(keeper).passed(id)}


def _results(app: FastAPI, keeper: Keeper) -> None:
    @app.post("/api/evaluations/compare", tags=["evaluations"])
    async def compare(pair: Pair) -> Response:
        """Two evaluations of one suite, paired by item: differences with intervals, and a verdict for each metric."""
        first, second = await _of(keeper).whole(pair.first), await _of(keeper).whole(pair.second)
        asked = msgspec.msgpack.encode(
            {"first": first, "second": second, "margins": pair.margins, "confidence": pair.confidence}
        )
        return Response(await compared(asked), media_type="application/json")

    @app.get("/api/evaluations/{id}", tags=["evaluations"])
    async def one(id: str, items: bool = False) -> Response:
        """One evaluation as it stands; with `items`, every item of its report."""
        e = await _of(keeper).get(id)
        if items and e.report is not None:
            e = replace(e, report=await _of(keeper).whole(id))
        return Response(msgspec.json.encode(_shown(_of(keeper), e)), media_type="application/json")

    @app.get("/api/evaluations/{id}/report", tags=["evaluations"])
    async def report(id: str, lang: Literal["en", "zh"] = "en") -> Response:
        """The report as one HTML page that needs nothing else."""
        from noria.evaluate.report import page

        whole = await _of(keeper).whole(id)
        others = [await _of(keeper).whole(e.id) for e in await _of(keeper).alike(whole)]
        text = await asyncio.to_thread(page, [whole, *others], lang=lang)
        headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"}
        return Response(text, media_type="text/html; charset=utf-8", headers=headers)


def _shown(evaluations: Evaluations, e: Evaluation) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(e)
    return shown | {"progress": evaluations.progress(e) if e.state != "done" else {}}
