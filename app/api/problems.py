"""Problem details (RFC 9457): every error that leaves the API, made in one place.

An endpoint raises what is wrong; its class carries the status, and the OpenAPI description says which can come.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pymongo.errors import PyMongoError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from app.domain import MAX_STOCK, KeyReused
from app.mongo import is_unavailable
from app.order_workflows import TemporalUnavailable
from app.products import ProductNotFound, StockLimitReached

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class FieldError(BaseModel):
    field: str
    message: str


class ProblemDetails(BaseModel):
    """What the body of every error looks like."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None


class Problem(Exception):
    """An error with a status. `type` is stable and meant for programs, `detail` for people."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, errors: list[FieldError] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors


class Unauthorized(Problem):
    status = 401
    title = "Unknown API key"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class NotFound(Problem):
    status = 404
    title = "Not found"


class Conflict(Problem):
    status = 409
    title = "Not possible any more"


class UnsupportedMediaType(Problem):
    status = 415
    title = "Not JSON"


class Invalid(Problem):
    """What the body's own form cannot tell: it names things that do not exist, or contradicts an earlier request."""

    status = 422
    title = "Invalid request"

    @classmethod
    def field(cls, field: str, message: str) -> Invalid:
        return cls(f"{field}: {message}", [FieldError(field=field, message=message)])


class Unavailable(Problem):
    status = 503
    title = "Temporarily unavailable"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}


OF_THE_DOMAIN: dict[type[Exception], Callable[[Exception], Problem]] = {
    KeyReused: lambda _: Invalid.field("Idempotency-Key", "was used for another request"),
    ProductNotFound: lambda error: NotFound(f"there is no product {error}"),
    StockLimitReached: lambda _: Conflict(f"cannot add: the stock of a product is at most {MAX_STOCK}"),
    TemporalUnavailable: lambda _: Unavailable("Temporal, or a worker, does not answer; try again"),
}

# Problems of any request.
ANYWHERE: tuple[type[Problem], ...] = (Unauthorized, Invalid, Unavailable)


def responses(*problems: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of these problems, and of those that can come anywhere."""
    return {problem.status: _described(problem.title) for problem in (*ANYWHERE, *problems)}


def body_responses(*problems: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """As `responses`, for an endpoint that takes a body."""
    described = responses(UnsupportedMediaType, *problems)
    described[413] = _described("Body over 64 KiB")
    return described


def _described(title: str) -> dict[str, Any]:
    return {"description": title, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}}


def install(app: FastAPI) -> None:
    """Turn every exception into a problem, and describe what one looks like in OpenAPI."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> JSONResponse:
        return _response(error.status, error.title, error.detail, error.errors, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # Never the input itself: it may be personal, and it may be anything.
        errors = [FieldError(field=_field(found["loc"]), message=found["msg"]) for found in error.errors()]
        detail = "; ".join(f"{found.field}: {found.message}" for found in errors[:3])
        return _response(422, Invalid.title, detail, errors)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the router itself names only the methods of the first route with this path
            for path, methods in app.openapi()["paths"].items():
                if compile_path(path)[0].match(request.url.path):
                    headers["Allow"] = ", ".join(sorted(methods)).upper()
        title = HTTPStatus(error.status_code).phrase
        return _response(error.status_code, title, str(error.detail), None, headers)

    @app.exception_handler(PyMongoError)
    async def mongo(_: Request, error: PyMongoError) -> JSONResponse:
        if is_unavailable(error):
            return unavailable("the database does not answer; try again, with the same Idempotency-Key if you sent one")
        return unexpected(error)

    def answer_with(make: Callable[[Exception], Problem]) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def handle(request: Request, error: Exception) -> Response:
            return await problem(request, make(error))

        return handle

    for error, make in OF_THE_DOMAIN.items():
        app.add_exception_handler(error, answer_with(make))

    described = app.openapi

    def openapi() -> dict[str, Any]:
        description = described()
        details = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
        description["components"]["schemas"].update({**details.pop("$defs"), "ProblemDetails": details})
        return description

    app.openapi = openapi  # type: ignore[method-assign]


def unexpected(error: Exception) -> JSONResponse:
    logger.error("unexpected error", exc_info=error)
    return _response(500, Problem.title, "something went wrong here; it has been logged")


def unavailable(detail: str) -> JSONResponse:
    return _response(503, Unavailable.title, detail, None, Unavailable.headers)


def _response(
    status: int,
    title: str,
    detail: str,
    errors: list[FieldError] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    kind = title.lower().replace(" ", "-")
    problem = ProblemDetails(type=f"urn:problem:{kind}", title=title, status=status, detail=detail, errors=errors)
    return JSONResponse(problem.model_dump(exclude_none=True), status, headers, media_type=MEDIA_TYPE)


def _field(location: tuple[Any, ...]) -> str:
    """`("body", "lines", 0, "sku")` is the caller's `lines.0.sku`."""
    _, *inner = location
    if not inner or isinstance(inner[0], int):  # nothing there, or no JSON from that character on
        return "body"
    return ".".join(str(part) for part in inner)
