"""How a request's body is read: strictly, and once."""

import json
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from app.api.problems import Invalid, UnsupportedMediaType


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
    """Parse the body, if there is one.

    Raises:
        UnsupportedMediaType, Invalid
    """
    try:
        body = await request.body()
    except ClientDisconnect as error:
        raise Invalid.field("body", "is incomplete") from error
    if not body:
        return
    content = Message()
    content["content-type"] = request.headers.get("content-type", "")
    if content.get_content_type() != "application/json" or content.get_content_charset("utf-8") != "utf-8":
        raise UnsupportedMediaType("send the body as Content-Type: application/json, which is always UTF-8")
    try:
        request._json = json.loads(body.decode(), object_pairs_hook=_unique_fields)  # where FastAPI finds it parsed
    except (ValueError, RecursionError) as error:  # how deep is too deep depends on the version of Python
        raise Invalid.field("body", f"cannot be read as JSON: {error}") from error


def _unique_fields(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(fields)) < len(fields):
        raise ValueError("duplicate field")
    return dict(fields)
