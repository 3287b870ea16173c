"""Query parameters that a path of the management API does not have are mistakes: `?filtr=` would show everything."""

from __future__ import annotations

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from noria.contracts.error import NotFound, RequestError


async def known(request: Request) -> None:
    """A dependency of every route. Raises `RequestError` that names the nearest parameter."""
    route = request.scope.get("route")
    if not request.query_params or not isinstance(route, APIRoute) or not route.path.startswith("/api/"):
        return
    names = sorted(_names(route.dependant))
    for name in request.query_params:
        if name not in names:
            near = NotFound.nearest("query parameter", name[:100], names)
            hint = near.hint if names else "This path takes none."
            raise RequestError(near.message, code="unknown_parameter", param=name[:100], hint=hint)


def _names(dependant: Dependant) -> set[str]:
    """What a route reads of the query, its dependencies included."""
    return {p.alias for p in dependant.query_params}.union(*map(_names, dependant.dependencies))
