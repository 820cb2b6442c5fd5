"""Liveness, readiness and metrics."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from pymongo.errors import PyMongoError

from app.api.auth import AnyCaller
from app.api.problems import responses
from app.api.route import ApiRoute
from app.order_workflows import TemporalUnavailable

router = APIRouter(tags=["health"], route_class=ApiRoute)

CHECK_TIMEOUT = 2.7  # seconds: the driver takes 2.5 to report why MongoDB is unavailable
REASONS = {  # by a pattern in the driver's or the SDK's message; the first match counts
    "refused|connect error": "connection refused",
    "no primary": "no primary, so nothing can be written",
    "authentication|unauthenticated|could not find user": "credentials rejected",
    "certificate": "untrusted certificate",
    "name or service|dns": "unknown host name",
    "": "no answer in time",
}


class Readiness(BaseModel):
    """`checks` has `ok` for each dependency, or the reason why it is unavailable."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]


@router.get("/healthz")
async def get_health() -> dict[Literal["status"], Literal["ok"]]:
    """Return 200 while the process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": Readiness, "description": "A dependency is unavailable"}})
async def get_readiness(request: Request, response: Response) -> Readiness:
    """Return 200 if MongoDB and Temporal answer; else 503, with the reason for each."""
    clients = request.app.state.clients
    mongodb, temporal = await asyncio.gather(_check(clients.mongo.ping), _check(clients.workflows.ping))
    ready = mongodb == temporal == "ok"
    response.status_code = 200 if ready else 503
    return Readiness(status="ready" if ready else "not_ready", checks={"mongodb": mongodb, "temporal": temporal})


async def _check(ping: Callable[[], Awaitable[object]]) -> str:
    """`ok`, or a readable reason that leaks no hosts or credentials."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            await ping()
    except (PyMongoError, TimeoutError, TemporalUnavailable) as error:
        message = str(error.__cause__ or error).lower()
        return next(f"unavailable: {reason}" for pattern, reason in REASONS.items() if re.search(pattern, message))
    return "ok"


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **responses()})
async def get_metrics(_: AnyCaller) -> Response:
    """Return the Prometheus metrics of this API process; for those of the worker, see WORKER_METRICS_ADDRESS."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
