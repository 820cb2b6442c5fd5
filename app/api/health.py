"""Liveness, readiness and metrics."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from pymongo.errors import PyMongoError

from app.api.dependencies import ClientsDep
from app.order_workflows import TemporalUnavailable

router = APIRouter(tags=["health"])

CHECK_TIMEOUT = 2.7  # seconds: the driver takes 2.5 to say why MongoDB is away


SILENT = "unavailable: it does not answer in time"
REASONS = {  # by what the driver's or the SDK's message says
    "refused": "nothing answers at its address",
    "connect error": "nothing answers at its address",
    "no primary": "it has no primary: nothing can be written",
    "authentication": "it does not accept the credentials",
    "unauthenticated": "it does not accept the credentials",
    "name or service": "its host name is not known",
    "dns": "its host name is not known",
}


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """`checks` says `ok` for each dependency, or what is wrong with it."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "A dependency is missing"}})
async def readyz(clients: ClientsDep, response: Response) -> Readiness:
    """MongoDB and Temporal answer, and if not, which one and why."""

    async def check(name: str, ask: Callable[[], Awaitable[None]]) -> tuple[str, str]:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await ask()
        except (PyMongoError, TimeoutError, TemporalUnavailable) as error:
            return name, _why(error.__cause__ or error)
        return name, "ok"

    checks = dict(await asyncio.gather(check("mongodb", clients.mongo.ping), check("temporal", clients.workflows.ping)))
    ready = set(checks.values()) == {"ok"}
    response.status_code = 200 if ready else 503
    return Readiness(status="ready" if ready else "not_ready", checks=checks)


def _why(error: BaseException) -> str:
    """A readable reason that leaks no hosts or credentials."""
    text = str(error).lower()
    return next((f"unavailable: {why}" for sign, why in REASONS.items() if sign in text), SILENT)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics() -> Response:
    """Prometheus metrics of this API process; the worker serves its own, see WORKER_METRICS_ADDRESS."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
