"""Errors of the management API in the one body that all of Noria answers with: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from noria.contracts.error import NoriaError, NotFound, RequestError
from noria.dialects.openai_error import error_answer, error_body


class ErrorDetail(BaseModel):
    """What is wrong, and with which parameter."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: ErrorDetail


_KINDS: tuple[int | str, ...] = ("4XX", 422)
MODEL: dict[int | str, dict[str, Any]] = {kind: {"model": ErrorBody} for kind in _KINDS}
"""Refusals in the OpenAPI description: one route gives the model, ..."""
_SCHEMA = {"schema": {"$ref": "#/components/schemas/ErrorBody"}}
REFERENCE: dict[int | str, dict[str, Any]] = {kind: {"content": {"application/json": _SCHEMA}} for kind in _KINDS}
"""... all others refer to it: each time that the model is given, a validator of it is built, which is long for 120 routes."""


def answer_of(error: NoriaError) -> Response:
    """The HTTP answer of an error of ours."""
    status, headers, body = error_answer(error)
    return Response(body, status, dict(headers), "application/json")


def install(app: FastAPI) -> None:
    """Give every refusal of `app` that body: ours, FastAPI's of a request's shape, Starlette's of a route, and mistakes."""

    @app.exception_handler(NoriaError)
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, NoriaError)
        return answer_of(error)

    @app.exception_handler(RequestValidationError)
    async def misshapen(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer_of(_of_shape(error.errors()))

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.scope["path"]
        made: RequestError = NotFound(f"There is no {path}.", code="unknown_url", hint="See /api/openapi.json.")
        if error.status_code != 404:
            code = "method_not_allowed" if error.status_code == 405 else "invalid_request"
            made = RequestError(f"{request.method} {path}: {error.detail}.", code=code, status=error.status_code)
        answer = answer_of(made)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def mistake(_: Request, __: Exception) -> Response:
        body = error_body("Noria made a mistake with this request.", "server_error", None, "internal_error")
        return Response(body, 500, media_type="application/json")


def _of_shape(errors: Any) -> RequestError:
    """The first mistake in a request's shape, in words; values are not repeated, they may be secrets."""
    first = errors[0]
    place = [str(p) for p in first["loc"] if p not in ("body", "query", "path")]
    param = ".".join(place) or None
    if first["type"] == "json_invalid":
        return RequestError("The body is no JSON.", code="invalid_json")
    what = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return RequestError(f"There is no {param!r} here.", code="unknown_parameter", param=param)
    code = "missing_parameter" if first["type"] == "missing" else "invalid_value"
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return RequestError(f"{param or 'The body'}: {what}.{more}", code=code, param=param)
