"""The API: `uvicorn app.api.main:app`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from app import logs, temporal
from app.api import events, health, inventory, orders, problems
from app.mongo import Mongo
from app.orders import Orders
from app.sagas import Sagas
from app.settings import Settings

MAX_BODY = 64 * 1024  # bytes; the largest order that the contract allows has about 10 KB
DEADLINE = 2.8  # seconds for an answer: later than that, the client has better things to do than to wait
STATIC = Path(__file__).parent / "static"


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

    app = FastAPI(title="Order saga", version="1.0.0", lifespan=lifespan, max_body_size=MAX_BODY)
    problems.install(app)
    app.add_middleware(Deadline)
    for module in (events, orders, inventory, health):  # /orders/events before /orders/{order_id}
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        """The order desk."""
        return FileResponse(STATIC / "index.html")

    return app


class Deadline:
    """Ends a request that takes too long with 503, so that no outage makes a caller wait; event streams are exempt."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith("/events"):
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(DEADLINE):
                await self.app(scope, receive, send)
        except TimeoutError:
            response = problems.unavailable(
                "no answer in time; try again, with the same Idempotency-Key if you sent one"
            )
            await response(scope, receive, send)


def __getattr__(name: str) -> FastAPI:
    """`app` is made when it is asked for, so that importing this module needs no environment."""
    if name != "app":
        raise AttributeError(name)
    settings = Settings.load()
    logs.configure(settings.log_level)
    return create_app(settings)
