"""The API: `uvicorn app.api.main:app`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from prometheus_client import Histogram
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs, temporal
from app.api import events, health, inventory, orders, problems
from app.mongo import Mongo
from app.orders import Orders
from app.sagas import Sagas
from app.settings import Settings

MAX_BODY = 64 * 1024  # bytes; the largest order that the contract allows has about 10 KB
DEADLINE = 2.8  # seconds for an answer: later than that, the client has better things to do than to wait
REQUESTS = Histogram("http_request_seconds", "until the answer begins", ["method", "status"])
STATIC = Path(__file__).parent / "static"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_app(settings: Settings, **temporal_options: Any) -> FastAPI:
    """Make the API. It starts, and answers what it can, while MongoDB or Temporal are away."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        mongo = Mongo(settings.mongodb_uri, settings.mongodb_database)
        app.state.settings = settings
        app.state.mongo = mongo
        app.state.orders = Orders(mongo)
        app.state.hub = events.Hub(mongo)
        app.state.sagas = Sagas(await temporal.connect(lazy=True, **temporal_options), settings)
        yield
        mongo.close()

    app = FastAPI(title="Order saga", version="1.0.0", lifespan=lifespan, redirect_slashes=False)
    problems.install(app)
    app.add_middleware(Limits)
    for module in (events, orders, inventory, health):  # /orders/events before /orders/{order_id}
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        """The order desk. It loads nothing from elsewhere, and runs nothing that is written into it."""
        return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})

    return app


class Limits:
    """Holds for every request: a body of at most `MAX_BODY`, an answer that begins within `DEADLINE`, and no stack
    trace in it. (FastAPI's `max_body_size` answers in plain text, and its handler of all exceptions logs each twice.)
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = perf_counter()
        received = 0
        answering = False

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise HTTPException(413, "the body is larger than 64 KiB")
            return message

        async def send_in_time(message: Message) -> None:
            nonlocal answering
            if not answering:
                REQUESTS.labels(scope["method"], message["status"]).observe(perf_counter() - began)
            answering = True
            deadline.reschedule(None)  # an event stream lasts
            await send(message)

        try:
            async with asyncio.timeout(DEADLINE) as deadline:
                await self.app(scope, receive_limited, send_in_time)
        except Exception as error:
            if answering:
                raise
            if isinstance(error, TimeoutError):
                response = problems.unavailable(
                    "no answer in time; try again, with the same Idempotency-Key if you sent one"
                )
            else:
                response = problems.unexpected(error)
            REQUESTS.labels(scope["method"], response.status_code).observe(perf_counter() - began)
            await response(scope, receive, send)


def __getattr__(name: str) -> FastAPI:
    """`app` is made when it is asked for, so that importing this module needs no environment."""
    if name != "app":
        raise AttributeError(name)
    settings = Settings.load()
    logs.configure(settings.log_level)
    return create_app(settings)
