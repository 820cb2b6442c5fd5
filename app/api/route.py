"""The route of every endpoint: a deadline, a strict reading of query and body, errors as problems, ETags."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine, Iterable
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from app.api.auth import authenticate
from app.api.problems import MAX_ERRORS, TRY_AGAIN, FieldError, Problem, answer, in_body, invalid

MAX_BODY = 64 * 1024  # bytes; the largest valid order has about 10 KB
DEADLINE = 2.8  # seconds from arrival until the response begins; an event stream may last longer


class ApiRoute(APIRoute):
    """Parses the body in place of FastAPI, which accepts JSON with another media type, in another encoding or with a
    duplicate field, and describes most parse errors in its own way.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known = {field.alias for field in get_flat_params(self.dependant) if isinstance(field.field_info, Query)}

        async def handle_in_time(request: Request) -> Response:
            try:
                async with asyncio.timeout_at(request.state.arrived + DEADLINE) as deadline:
                    request.state.deadline = deadline
                    if 401 in self.responses:
                        await authenticate(request)  # a stranger's query and body are not even parsed
                        _refuse_unknown(request.query_params.keys() - known)
                    if self.body_field:
                        await _read_body(request)
                    return _without_known(request, await handle(request))
            except Exception as error:  # noqa: BLE001  (answered, and logged if it is unexpected)
                late = Problem("deadline-exceeded", f"cannot answer in time; {TRY_AGAIN}")
                return await answer(request, late if deadline.expired() else error)

        return handle_in_time


def link_to_next(request: Request, response: Response, cursor: str | None) -> None:
    """Set a `Link` header (RFC 8288) to the next page, if there is one, relative to this API's host."""
    if cursor:
        query = request.url.include_query_params(cursor=cursor).query
        response.headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'


def _refuse_unknown(parameters: Iterable[str]) -> None:
    if names := sorted(parameters)[:MAX_ERRORS]:
        raise invalid(*(FieldError(name[:64], "unknown_parameter", "unknown query parameter") for name in names))


def _without_known(request: Request, response: Response) -> Response:
    """Return the response without what the client does not need: a body that it knows by ETag, a stream after HEAD."""
    if isinstance(response, StreamingResponse):
        return StreamingResponse((), headers=response.headers) if request.scope.get("is_head") else response
    if request.method == "GET" and response.status_code == 200 and hasattr(response, "body"):
        etag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
        response.headers["ETag"] = etag
        if etag in request.headers.get("If-None-Match", ""):  # also a weak one, among others
            return Response(status_code=304, headers={"ETag": etag})
    return response


async def _read_body(request: Request) -> None:
    """Read and parse the body, if any, and put it where FastAPI looks for a parsed body."""
    content = Message()
    content["content-type"] = request.headers.get("content-type", "")[:100]  # a long one takes minutes to parse
    is_json = content.get_content_type() == "application/json" and content.get_content_charset("utf-8") == "utf-8"
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise Problem("body-too-large", "the body must be at most 64 KiB")
        if body and not is_json:
            raise Problem("not-json", "the body must be sent as Content-Type: application/json, in UTF-8")
        if body:
            request._json = json.loads(body.decode(), object_pairs_hook=_unique_fields)
        request._body = body
    except ClientDisconnect as error:
        raise invalid(in_body("incomplete", "must be complete")) from error
    except (ValueError, RecursionError) as error:  # the maximum depth depends on the Python version
        raise invalid(in_body("not_json", f"must be valid JSON: {error}")) from error


def _unique_fields(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(fields)) < len(fields):
        raise ValueError("duplicate field")
    return dict(fields)
