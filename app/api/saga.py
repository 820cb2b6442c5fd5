"""The table of steps over HTTP, so that a client needs no list of its own."""

from fastapi import APIRouter
from pydantic import BaseModel

from app.api.auth import OrderReader
from app.api.problems import responses
from app.api.route import ApiRoute
from app.domain import OrderStatus, StepName
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
    steps, before = [], OrderStatus.PLACED
    for step in STEPS:
        activity, compensation = activity_name(step.activity), step.compensation and activity_name(step.compensation)
        names = {"step": step.name, "activity": activity, "compensation": compensation}
        steps.append(SagaStep(**names, starts_from=before, status=step.status))
        before = step.status
    return Saga(steps=steps)
