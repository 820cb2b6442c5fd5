"""The API: `uvicorn app.api.main:app`."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any

from fastapi import FastAPI
from pydantic.alias_generators import to_camel
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.staticfiles import StaticFiles

from app import logs, temporal, tracing
from app.api import description, events, health, inventory, orders, pages, problems, saga
from app.api.admission import UNLIMITED, Admission
from app.api.api_keys import ApiKeys
from app.api.dependencies import Clients
from app.api.guard import Guard
from app.api.hub import Hub
from app.api.tokens import Tokens
from app.names import NAME, TITLE
from app.settings import ApiSettings

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 2.0  # seconds


def create_app(settings: ApiSettings, **temporal_options: Any) -> FastAPI:
    """Create the API. It starts, and answers what it can, while MongoDB or Temporal is unavailable."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        clients = Clients(settings, await temporal.connect(lazy=True, **temporal_options))
        app.state.clients, app.state.hub = clients, Hub(clients)
        yield
        # Closing waits for MongoDB, which may hang. An `await` would give uvicorn time to log a traceback for
        # each event stream that it has just cancelled.
        closing = Thread(target=clients.mongo.close, daemon=True)
        closing.start()
        tracing.shutdown()
        closing.join(CLOSE_TIMEOUT)

    app = FastAPI(
        title=TITLE,
        version="1.0.0",
        lifespan=lifespan,
        openapi_url=None,  # `description` has it, for callers only
        redirect_slashes=False,
        generate_unique_id_function=lambda route: to_camel(route.name),
        telemetry={"operation_spans": False, "auto_configure": False, "exclude": _is_untraced},
        middleware=[Middleware(Guard, open=settings.api_open), Middleware(Admission)],
        exception_handlers={HTTPException: problems.answer, Exception: problems.answer},  # outside any `ApiRoute`
    )
    app.state.settings = settings
    app.state.authenticators = [ApiKeys(settings), Tokens(settings)]
    app.include_router(events.router)  # /orders/events before /orders/{order_id}
    for module in (orders, inventory, saga, health, description):
        app.include_router(module.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=pages.STATIC, check_dir=False), name="static")
    return app


def _is_untraced(scope: Any) -> bool:
    """Return True for health checks, files, and event streams, which may last for a day."""
    return bool(UNLIMITED.fullmatch(scope["path"]))


def __getattr__(name: str) -> FastAPI:
    """Create `app` on access, so that importing this module needs no environment."""
    if name != "app":
        raise AttributeError(name)
    settings = ApiSettings.load()
    logs.configure(settings.log_level)
    temporal.configure_core()
    if settings.api_open:
        logger.warning("the API is open: it serves every caller, under loopback host names only")
    tracing.configure(f"{NAME}-api")
    app = globals()[name] = create_app(settings)  # uvicorn accesses it twice
    return app
