"""Problem details (RFC 9457): every error response of the API is made here.

An endpoint raises a `Problem` or an error of the domain; the OpenAPI description lists the problems of each endpoint.
"""

import json
import logging
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
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

from app import logs
from app.domain import MAX_STOCK, KeyReused, NotFound
from app.mongo import is_unavailable
from app.order_workflows import NoWorker, TemporalUnavailable
from app.products import StockLimitReached
from app.validation import explain

logger = logging.getLogger(__name__)

UNAUTHENTICATED = Counter("http_unauthenticated", "Requests answered with 401.", ["reason"])

MEDIA_TYPE = "application/problem+json"
KINDS: dict[str, tuple[int, str]] = json.loads((Path(__file__).parent / "problems.json").read_text())
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "2"}}
_UNANSWERED = ("issuer-unavailable", "database-unavailable", "deadline-exceeded", "overloaded")
COMMON_PROBLEMS = ("not-authenticated", "not-allowed", "invalid-request", *_UNANSWERED)  # of any request
BODY_PROBLEMS = ("foreign-origin", "body-too-large", "not-json")  # of any request with a body
MAX_ERRORS = 50  # in one answer, which is otherwise many times larger than the request
TRY_AGAIN = "try again, with the same Idempotency-Key if you sent one"


@dataclass(frozen=True)
class FieldError:
    """An invalid field of the body, with a JSON Pointer (RFC 6901), or an invalid parameter or header."""

    field: str
    code: str
    message: str
    pointer: str | None = None


class Unauthenticated(Exception):
    """The credentials are missing, unknown or not valid any more. The text is the reason, without what was sent."""


class ProblemDetails(BaseModel):
    """The body of every error response (RFC 9457).

    `type` is for programs: `urn:problem:` and a name that never changes, such as `urn:problem:too-late-to-cancel`.
    `request_id` is that of the response's header and of the log.
    """

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None
    request_id: str | None


class Problem(HTTPException):
    """An error of one of `KINDS`; `detail` is meant for people."""

    def __init__(self, kind: str, detail: str, *errors: FieldError) -> None:
        status, _ = KINDS[kind]
        super().__init__(status, detail, HEADERS.get(status))
        self.kind, self.errors = kind, list(errors) or None


def invalid(*errors: FieldError, kind: str = "invalid-request") -> Problem:
    """Make a 422 of invalid fields, including those that name unknown things or contradict an earlier request."""
    return Problem(kind, "; ".join(f"{error.field}: {error.message}" for error in errors[:3]), *errors)


def in_body(code: str, message: str, *path: str | int) -> FieldError:
    """Make the error of a field of the body or, without a path, of the whole body."""
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return FieldError(".".join(map(str, path)) or "body", code, message, pointer)


def responses(*kinds: str, common: tuple[str, ...] = COMMON_PROBLEMS) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of these problems and of the common ones."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    found: dict[int | str, dict[str, Any]] = {}
    for kind in (*common, *kinds):
        status, meaning = KINDS[kind]
        same = found.setdefault(status, {"description": "Problem types:", "content": content})
        same["description"] += f"\n- `{kind}`: {meaning}"
    return found


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
                headers["Allow"] = headers["Allow"].replace("GET", "GET, HEAD")
    kind = getattr(problem, "kind", HTTPStatus(status).phrase.lower().replace(" ", "-"))
    # An operator finds its request id here; there may be no access log. Under overload, lines would add to the load.
    if status == 503 and kind != "overloaded":
        logger.warning("503: %s", kind)
    details = ProblemDetails(
        type=f"urn:problem:{kind}",
        title=kind.replace("-", " ").capitalize(),
        status=status,
        detail=problem.detail,
        errors=getattr(problem, "errors", None),
        request_id=logs.request_id.get(),
    )
    return JSONResponse(details.model_dump(exclude_none=True), status, headers, media_type=MEDIA_TYPE)


def _problem(error: Exception) -> HTTPException:  # noqa: PLR0911
    match error:
        case HTTPException():
            return error
        case RequestValidationError():
            return invalid(*map(_field_error, error.errors()[:MAX_ERRORS]))
        case KeyReused():
            reused = FieldError("Idempotency-Key", "key_reused", "was used for a different request")
            return invalid(reused, kind="idempotency-key-reused")
        case NotFound():
            return Problem("not-found", f"{error} does not exist")
        case StockLimitReached():
            return Problem("stock-limit-reached", f"cannot restock: the stock of a product is at most {MAX_STOCK}")
        case Unauthenticated():
            UNAUTHENTICATED.labels(str(error)).inc()
            logger.warning("401: %s", error)
            text = f"cannot authenticate: {error}; send an API key or a token as Authorization: Bearer"
            return Problem("not-authenticated", text)
        case NoWorker():
            return Problem("no-worker", "no worker answers: none runs, or none on code that fits the order")
        case TemporalUnavailable():
            return Problem("temporal-unavailable", "Temporal is unavailable; try again")
        case PyMongoError() if is_unavailable(error):
            return Problem("database-unavailable", f"the database is unavailable; {TRY_AGAIN}")
        case _:
            logger.error("unexpected error", exc_info=error)
            return Problem("internal-error", "unexpected error, which has been logged")


def _field_error(error: ErrorDetails) -> FieldError:
    place, *path = error["loc"]
    return in_body(*explain(error), *path) if place == "body" else FieldError(str(path[0]), *explain(error))
