"""Problem details (RFC 9457): every error response of the API is made here.

An endpoint raises a `Problem` or an error of the domain; the OpenAPI description lists the problems of each endpoint.
"""

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import Counter
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from pymongo.errors import PyMongoError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from app.api.tokens import IssuerUnavailable, Unauthenticated
from app.domain import MAX_STOCK, KeyReused, NotFound
from app.mongo import is_unavailable
from app.order_workflows import TemporalUnavailable
from app.products import StockLimitReached
from app.validation import explain

logger = logging.getLogger(__name__)

UNAUTHENTICATED = Counter("http_unauthenticated", "Requests answered with 401.", ["reason"])

MEDIA_TYPE = "application/problem+json"
TITLES = {  # a problem's type, which is stable and meant for programs, is derived from its title
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    409: "Not possible any more",
    413: "Request entity too large",
    415: "Not JSON",
    421: "Wrong host name",
    422: "Invalid request",
    500: "Internal error",
    503: "Temporarily unavailable",
}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "2"}}
COMMON_PROBLEMS = (401, 403, 422, 503)  # of any request
BODY_PROBLEMS = (413, 415)  # of any request with a body
MAX_ERRORS = 50  # in one answer, which is otherwise many times larger than the request
TRY_AGAIN = "try again, with the same Idempotency-Key if you sent one"


@dataclass(frozen=True)
class FieldError:
    """An invalid field of the body, with a JSON Pointer (RFC 6901), or an invalid parameter or header."""

    field: str
    code: str
    message: str
    pointer: str | None = None


class ProblemDetails(BaseModel):
    """The body of every error response."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None


class Problem(HTTPException):
    """An error with a status; `detail` is meant for people."""

    def __init__(self, status: int, detail: str, *errors: FieldError) -> None:
        super().__init__(status, detail, HEADERS.get(status))
        self.errors = list(errors) or None


def invalid(*errors: FieldError) -> Problem:
    """Make a 422 of invalid fields, including those that name unknown things or contradict an earlier request."""
    return Problem(422, "; ".join(f"{error.field}: {error.message}" for error in errors[:3]), *errors)


def in_body(code: str, message: str, *path: str | int) -> FieldError:
    """Make the error of a field of the body or, without a path, of the whole body."""
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return FieldError(".".join(map(str, path)) or "body", code, message, pointer)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of these problems and of the common ones."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {status: {"description": TITLES[status], "content": content} for status in (*COMMON_PROBLEMS, *statuses)}


def schemas() -> dict[str, Any]:
    """Return the OpenAPI schemas that `responses` refers to."""
    details = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**details.pop("$defs"), "ProblemDetails": details}


async def answer(request: Request, error: Exception) -> JSONResponse:
    """Return the response to an error of any kind."""
    problem = _problem(error)
    status, headers = problem.status_code, dict(problem.headers or {})
    if status == 405:  # the router names only the methods of the first route with this path
        for path, methods in request.app.openapi()["paths"].items():
            if compile_path(path)[0].match(request.url.path):
                headers["Allow"] = ", ".join(sorted(methods)).upper()
    title = TITLES.get(status) or HTTPStatus(status).phrase
    kind, errors = f"urn:problem:{title.lower().replace(' ', '-')}", getattr(problem, "errors", None)
    details = ProblemDetails(type=kind, title=title, status=status, detail=problem.detail, errors=errors)
    return JSONResponse(details.model_dump(exclude_none=True), status, headers, media_type=MEDIA_TYPE)


def _problem(error: Exception) -> HTTPException:  # noqa: PLR0911
    match error:
        case HTTPException():
            return error
        case RequestValidationError():
            return invalid(*map(_field_error, error.errors()[:MAX_ERRORS]))
        case KeyReused():
            return invalid(FieldError("Idempotency-Key", "key_reused", "was used for a different request"))
        case NotFound():
            return Problem(404, f"{error} does not exist")
        case StockLimitReached():
            return Problem(409, f"cannot restock: the stock of a product is at most {MAX_STOCK}")
        case Unauthenticated():
            UNAUTHENTICATED.labels(str(error)).inc()
            logger.warning("401: %s", error)
            return Problem(401, f"cannot authenticate: {error}; send an API key or a token as Authorization: Bearer")
        case IssuerUnavailable():
            return Problem(503, "cannot verify the token yet: its key is new, or its issuer is unavailable; try again")
        case TemporalUnavailable():
            return Problem(503, "Temporal or the worker is unavailable; try again")
        case PyMongoError() if is_unavailable(error):
            return Problem(503, f"the database is unavailable; {TRY_AGAIN}")
        case _:
            logger.error("unexpected error", exc_info=error)
            return Problem(500, "unexpected error, which has been logged")


def _field_error(error: ErrorDetails) -> FieldError:
    place, *path = error["loc"]
    return in_body(*explain(error), *path) if place == "body" else FieldError(str(path[0]), *explain(error))
