"""How every endpoint is called: within a deadline, its body read strictly, its errors answered as problems."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from app.api.problems import TRY_AGAIN, Problem, answer, in_body, invalid

MAX_BODY = 64 * 1024  # bytes; the largest order that the contract allows has about 10 KB
DEADLINE = 2.8  # seconds until the response begins; once begun, it may last: an event stream does


class ApiRoute(APIRoute):
    """Parses a body before FastAPI would, which accepts JSON under another media type, in another encoding, or with a
    duplicate field, and reports most of what it cannot parse in words of its own.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_in_time(request: Request) -> Response:
            try:
                async with asyncio.timeout(DEADLINE) as deadline:
                    if self.body_field:
                        await _read_body(request)
                    return await handle(request)
            except Exception as error:  # noqa: BLE001  (answered, and logged if it is unexpected)
                late = Problem(503, f"no answer in time; {TRY_AGAIN}")
                return await answer(request, late if deadline.expired() else error)

        return handle_in_time


async def _read_body(request: Request) -> None:
    """Read and parse the body, if there is one, to where FastAPI finds it parsed."""
    content = Message()
    content["content-type"] = request.headers.get("content-type", "")
    is_json = content.get_content_type() == "application/json" and content.get_content_charset("utf-8") == "utf-8"
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise Problem(413, "the body is larger than 64 KiB")
        if body and not is_json:
            raise Problem(415, "send the body as Content-Type: application/json, which is always UTF-8")
        if body:
            request._json = json.loads(body.decode(), object_pairs_hook=_unique_fields)
        request._body = body
    except ClientDisconnect as error:
        raise invalid(in_body("incomplete", "is incomplete")) from error
    except (ValueError, RecursionError) as error:  # how deep is too deep depends on the version of Python
        raise invalid(in_body("not_json", f"cannot be read as JSON: {error}")) from error


def _unique_fields(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(fields)) < len(fields):
        raise ValueError("duplicate field")
    return dict(fields)
