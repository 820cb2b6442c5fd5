"""Is this process alive, can it do its work, and how much of it does it do."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from pymongo.errors import PyMongoError
from temporalio.service import RPCError

from app.api.dependencies import MongoDep, SagasDep

router = APIRouter(tags=["health"])

CHECK_TIMEOUT = 2.5  # seconds


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """`checks` says `ok` for each dependency, or what is wrong with it."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers. It needs nothing else for that."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "A dependency is missing"}})
async def readyz(mongo: MongoDep, sagas: SagasDep, response: Response) -> Readiness:
    """MongoDB and Temporal answer, and if not, which one and why."""

    async def check_mongo() -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await mongo.ping()
        except (PyMongoError, TimeoutError) as error:
            return f"unavailable: {type(error).__name__}"
        return "ok"

    async def check_temporal() -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await sagas.ping()
        except (RPCError, RuntimeError, TimeoutError) as error:
            return f"unavailable: {type(error).__name__}"
        return "ok"

    mongodb, temporal = await asyncio.gather(check_mongo(), check_temporal())
    ready = mongodb == temporal == "ok"
    response.status_code = 200 if ready else 503
    return Readiness(
        status="ready" if ready else "not_ready", checks={"mongodb": mongodb, "temporal": temporal}
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics() -> Response:
    """Prometheus metrics of this API process; the worker serves its own, see WORKER_METRICS_ADDRESS."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
