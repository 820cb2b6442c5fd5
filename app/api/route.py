"""The route of every endpoint: sets a deadline, reads the body strictly, and answers errors as problems."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from app.api.auth import authenticate
from app.api.problems import TRY_AGAIN, Problem, answer, in_body, invalid

MAX_BODY = 64 * 1024  # bytes; the largest valid order has about 10 KB
DEADLINE = 2.8  # seconds until the response begins; an event stream may last longer


class ApiRoute(APIRoute):
    """Parses the body in place of FastAPI, which accepts JSON with another media type, in another encoding or with a
    duplicate field, and describes most parse errors in its own way.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_in_time(request: Request) -> Response:
            try:
                async with asyncio.timeout(DEADLINE) as deadline:
                    if self.body_field:
                        await authenticate(request)  # a stranger's body is not even parsed
                        await _read_body(request)
                    return await handle(request)
            except Exception as error:  # noqa: BLE001  (answered, and logged if it is unexpected)
                late = Problem(503, f"cannot answer in time; {TRY_AGAIN}")
                return await answer(request, late if deadline.expired() else error)

        return handle_in_time


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
                raise Problem(413, "the body must be at most 64 KiB")
        if body and not is_json:
            raise Problem(415, "the body must be sent as Content-Type: application/json, in UTF-8")
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
