"""The console's routes: one-time login links and the built pages; mounted beside the management API."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from noria.app.keeper import Keeper
from noria.contracts.error import NotFound, Unauthorized
from noria.govern.access import COOKIE, COOKIE_RULES
from noria.kit.http_head import CODING
from noria.web import pages


def mount(app: FastAPI, keeper: Keeper) -> None:
    """Add the console to the keeper's application; it takes every path that nothing else has taken."""

    @app.get("/login", include_in_schema=False)
    async def login(request: Request, code: str = "") -> Response:
        if not code:
            return _page(request)
        try:
            session = keeper.redeem(code)
        except Unauthorized:
            return RedirectResponse("/login?used=1", 303)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, session, **COOKIE_RULES)
        return answer

    @app.get("/{path:path}", include_in_schema=False)
    async def page(request: Request, path: str) -> Response:
        if path.startswith(("api/", "internal/")):
            raise NotFound("There is nothing here.", code="not_found")
        return _page(request)


def _page(request: Request) -> Response:
    relayed = request.headers.get(CODING)
    accepted = request.headers.get("accept-encoding", "") if relayed is None else relayed
    found = pages.page(request.url.path, gzip="gzip" in accepted)
    if found is None:
        raise NotFound("This file belongs to another build of the console.", code="not_found", hint="Load the page again.")
    headers = {CODING if relayed is not None and k == "content-encoding" else k: v for k, v in found.headers}
    return Response(found.body, found.status, headers, found.content_type)
