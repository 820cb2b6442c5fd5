"""Applied to every request, one middleware per job; `HTTP_MIDDLEWARE` lists them, outermost first."""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter

from prometheus_client import Histogram
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import TRY_AGAIN, Problem, answer

MAX_BODY = 64 * 1024  # bytes; the largest order that the contract allows has about 10 KB
DEADLINE = 2.8  # response deadline, in seconds
REQUESTS = Histogram("http_request_seconds", "until the response begins", ["method", "status"])


class HttpMiddleware:
    """Runs `handle` for each HTTP request; other scopes pass unchanged."""

    def __init__(self, app: ASGIApp, handle: Callable[[ASGIApp, Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app, self.handle = app, handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.handle(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)


async def measure(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Measure the time until the response begins."""
    began = perf_counter()

    async def send_measured(message: Message) -> None:
        if message["type"] == "http.response.start":
            REQUESTS.labels(scope["method"], message["status"]).observe(perf_counter() - began)
        await send(message)

    await app(scope, receive, send_measured)


async def answer_errors(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every error with a problem. (FastAPI's own handler of `Exception` logs an error twice.)"""
    started = False

    async def note_start(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    try:
        await app(scope, receive, note_start)
    except Exception as error:
        if started:
            raise
        response = await answer(Request(scope), error)
        await response(scope, receive, send)


async def limit_time(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Raise 503 when no response has begun within `DEADLINE`. Once begun, it may last: an event stream does."""

    async def send_in_time(message: Message) -> None:
        deadline.reschedule(None)  # an error once the deadline has expired: the response would be cut short
        await send(message)

    try:
        async with asyncio.timeout(DEADLINE) as deadline:
            await app(scope, receive, send_in_time)
    except Exception:
        if not deadline.expired():
            raise
    if deadline.expired():  # whether or not the application let its cancellation through
        raise Problem(503, f"no answer in time; {TRY_AGAIN}")


async def limit_body(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a body over `MAX_BODY`. (FastAPI's `max_body_size` answers in plain text.)"""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY:
            raise Problem(413, "the body is larger than 64 KiB")
        return message

    await app(scope, receive_limited, send)


HTTP_MIDDLEWARE = [Middleware(HttpMiddleware, handle) for handle in (measure, answer_errors, limit_time, limit_body)]
