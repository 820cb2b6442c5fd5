"""The table of steps over HTTP, so that a client needs no list of its own."""

from fastapi import APIRouter
from pydantic import BaseModel

from app.api.auth import OrderReader
from app.api.problems import responses
from app.api.route import ApiRoute
from app.domain import STATUS_BEFORE, OrderStatus, StepName
from app.workflows.steps import STEPS, activity_name

router = APIRouter(prefix="/saga", tags=["orders"], route_class=ApiRoute)


class SagaStep(BaseModel):
    """A step moves the order from `starts_from` to `status`; `compensation` is the activity that reverses it."""

    step: StepName
    activity: str
    compensation: str | None
    starts_from: OrderStatus
    status: OrderStatus


class Saga(BaseModel):
    steps: list[SagaStep]


@router.get("", responses=responses())
async def get_saga(_: OrderReader) -> Saga:
    """Return the steps in sequence; compensations run in reverse."""
    steps = [
        SagaStep(
            step=step.name,
            activity=activity_name(step.activity),
            compensation=step.compensation and activity_name(step.compensation),
            starts_from=STATUS_BEFORE[step.name],
            status=step.status,
        )
        for step in STEPS
    ]
    return Saga(steps=steps)
