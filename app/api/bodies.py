"""How a request's body is read: strictly, and once."""

import json
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from app.api.problems import FieldError, Problem, invalid


class JsonRoute(APIRoute):
    """Parses a body before FastAPI would, which accepts JSON under another media type, in another encoding, or with a
    duplicate field, and reports most of what it cannot parse in words of its own.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            if self.body_field:
                await _parse_body(request)
            return await handle(request)

        return handle_json


async def _parse_body(request: Request) -> None:
    """Parse the body, if there is one, to where FastAPI finds it parsed."""
    content = Message()
    content["content-type"] = request.headers.get("content-type", "")
    is_json = content.get_content_type() == "application/json" and content.get_content_charset("utf-8") == "utf-8"
    try:
        body = await request.body()
        if body and not is_json:
            raise Problem(415, "send the body as Content-Type: application/json, which is always UTF-8")
        if body:
            request._json = json.loads(body.decode(), object_pairs_hook=_unique_fields)
    except ClientDisconnect as error:
        raise invalid(FieldError("body", "is incomplete")) from error
    except (ValueError, RecursionError) as error:  # how deep is too deep depends on the version of Python
        raise invalid(FieldError("body", f"cannot be read as JSON: {error}")) from error


def _unique_fields(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(fields)) < len(fields):
        raise ValueError("duplicate field")
    return dict(fields)
