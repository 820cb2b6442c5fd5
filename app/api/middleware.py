"""Applied to every request, one middleware per job; app/api/main.py lists them, outermost first."""

from __future__ import annotations

import asyncio
from time import perf_counter

from prometheus_client import Histogram
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems

MAX_BODY = 64 * 1024  # bytes; the largest order that the contract allows has about 10 KB
DEADLINE = 2.8  # response deadline, in seconds
REQUESTS = Histogram("http_request_seconds", "until the response begins", ["method", "status"])


class HttpMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


class RequestMetrics(HttpMiddleware):
    """Measure the time until the response begins."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = perf_counter()

        async def measure(message: Message) -> None:
            if message["type"] == "http.response.start":
                REQUESTS.labels(scope["method"], message["status"]).observe(perf_counter() - began)
            await send(message)

        await self.app(scope, receive, measure)


class UnexpectedErrors(HttpMiddleware):
    """Turn an unexpected error into a problem, logged once. (FastAPI's handler of `Exception` logs it twice.)"""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, note_start)
        except Exception as error:
            if started:
                raise
            await problems.unexpected(error)(scope, receive, send)


class Deadline(HttpMiddleware):
    """Answer 503 when no response has begun within `DEADLINE`. Once begun, it may last: an event stream does."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            deadline.reschedule(None)  # an error once the deadline has expired: the response would be cut short
            await send(message)

        try:
            async with asyncio.timeout(DEADLINE) as deadline:
                await self.app(scope, receive, send_in_time)
        except Exception:
            if not deadline.expired():
                raise
        if deadline.expired():  # whatever the application made of its cancellation
            detail = "no answer in time; try again, with the same Idempotency-Key if you sent one"
            await problems.unavailable(detail)(scope, receive, send)


class BodyLimit(HttpMiddleware):
    """Refuse a body over `MAX_BODY`. (FastAPI's `max_body_size` answers in plain text.)"""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise HTTPException(413, "the body is larger than 64 KiB")
            return message

        await self.app(scope, receive_limited, send)
