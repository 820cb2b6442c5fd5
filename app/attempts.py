"""The attempts of a workflow's activities, as Temporal's server sees them: a workflow does not know them."""

from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import BaseModel
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo

from app.domain import Failure, StepName
from app.workflows.steps import STEPS, activity_name

State = Literal["running", "queued", "waiting", "paused"]
STATES: dict[int, State] = {
    PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED: "queued",
    PendingActivityState.PENDING_ACTIVITY_STATE_PAUSED: "paused",
}
STEP_OF = {activity_name(each): step for step in STEPS for each in (step.activity, step.compensation) if each}


class PendingActivity(BaseModel):
    """An activity that Temporal has not completed yet.

    `state`: an attempt is running, queued for a worker, or waiting until `next_attempt_at`; or an operator has paused
    the activity. `attempt` is the number of that attempt, from 1, and `last_failure` the failure of the one before.
    """

    activity: str
    step: StepName | None
    compensates: bool
    state: State
    attempt: int
    last_failure: Failure | None
    next_attempt_at: datetime | None

    @classmethod
    def from_info(cls, info: PendingActivityInfo) -> Self:
        name = info.activity_type.name
        step = STEP_OF.get(name)
        retry_at = info.next_attempt_schedule_time.ToDatetime(UTC)  # 1970, if there is none
        state = STATES.get(info.state, "running")
        is_waiting = state == "queued" and retry_at > datetime.now(UTC)
        return cls(
            activity=name,
            step=step and step.name,
            compensates=step is not None and activity_name(step.activity) != name,
            state="waiting" if is_waiting else state,
            attempt=info.attempt,
            last_failure=_failure(info, step.service if step else "the database") if info.attempt > 1 else None,
            next_attempt_at=retry_at if is_waiting else None,
        )


def _failure(info: PendingActivityInfo, service: str) -> Failure:
    """Describe the failure of the last attempt, whose own text is not recorded (`app.activities.redaction`)."""
    kind = info.last_failure.application_failure_info.type
    if info.last_failure.HasField("timeout_failure_info"):
        return Failure(code="timeout", message=f"{service} did not answer in time")
    if kind == "Unavailable":
        return Failure(code="unavailable", message=f"{service} is unavailable")
    return Failure(code="unexpected_error", message=f"unexpected error {kind}: see the log of the worker")
