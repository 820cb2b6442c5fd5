"""Liveness, readiness and metrics."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.auth import AnyCaller
from app.api.problems import responses
from app.api.route import ApiRoute
from app.health import Readiness

router = APIRouter(tags=["health"], route_class=ApiRoute)


@router.get("/healthz")
async def get_health() -> dict[Literal["status"], Literal["ok"]]:
    """Return 200 while the process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": Readiness, "description": "A dependency is unavailable"}})
async def get_readiness(request: Request, response: Response) -> Readiness:
    """Return 200 if MongoDB and Temporal answer; else 503, with the reason for each."""
    clients = request.app.state.clients
    readiness = await Readiness.of(clients.mongo.ping, clients.workflows.ping)
    response.status_code = 200 if readiness.status == "ready" else 503
    return readiness


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **responses()})
async def get_metrics(_: AnyCaller) -> Response:
    """Return the Prometheus metrics of this API process; for those of the worker, see WORKER_METRICS_ADDRESS."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
