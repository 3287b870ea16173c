"""The console's routes: one-time login links and the built pages; mounted beside the management API."""

from __future__ import annotations

from fastapi import FastAPI, Response
from fastapi.responses import RedirectResponse

from noria.app.keeper import Keeper
from noria.contracts.error import NotFound, Unauthorized
from noria.govern.access import COOKIE, COOKIE_RULES
from noria.web import pages


def mount(app: FastAPI, keeper: Keeper) -> None:
    """Add the console to the keeper's application; it takes every path that nothing else has taken."""

    @app.get("/login", include_in_schema=False)
    async def login(code: str = "") -> Response:
        if not code:
            return _page("/login")
        try:
            session = keeper.redeem(code)
        except Unauthorized:
            return RedirectResponse("/login?used=1", 303)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, session, **COOKIE_RULES)
        return answer

    @app.get("/{path:path}", include_in_schema=False)
    async def page(path: str) -> Response:
        if path.startswith(("api/", "internal/")):
            raise NotFound("There is nothing here.", code="not_found")
        return _page("/" + path)


def _page(path: str) -> Response:
    found = pages.asset(path) or pages.index()
    return Response(found.body, headers=dict(found.headers), media_type=found.content_type)
