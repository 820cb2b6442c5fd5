"""Call the saga's activities, and show its progress in Temporal."""

from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    import app.workflows.steps as steps
    from app.domain import OrderStatus
    from app.messages import AddressChange, ApprovalDecision, OrderProgress, OrderRef, OrderState, StatusUpdate
    from app.temporal import IN_PROGRESS, ORDER_STATUS
    from app.workflows.steps import Step

# Statuses between two steps are not shown: each change costs a history event.
NOT_SHOWN = {OrderStatus.PLACED, *(step.status for step in steps.STEPS)} - {OrderStatus.COMPLETED}

TIMED_OUT = ApprovalDecision(approved=False, timed_out=True)

P = ParamSpec("P")
T = TypeVar("T")


def update(description: str) -> Callable[[Callable[P, Awaitable[T]]], workflow.UpdateMethodMultiParam[P, T]]:
    """Return `workflow.update` with a description; the SDK's own overload has the wrong type for async handlers."""
    return workflow.update(description=description)  # type: ignore[return-value]


def is_known(step: Step) -> bool:
    """Return False if the step was added after this order began."""
    return step.since is None or workflow.patched(step.since)


def start(step: Step, progress: OrderProgress) -> workflow.ActivityHandle[Any]:
    """Start a step. Cancelling it does not wait for the attempt in flight, which then runs into a fence."""
    progress.step = step.name
    show(progress)
    handle = workflow.start_activity_method(
        step.activity,
        OrderRef(order_id=progress.order_id),
        start_to_close_timeout=step.start_to_close,
        schedule_to_close_timeout=step.schedule_to_close,
        retry_policy=step.retry_policy,
    )
    handle.add_done_callback(lambda task: task.cancelled() or task.exception())  # retrieved, even if not awaited
    return handle


async def compensate(step: Step, progress: OrderProgress, *, forever: bool = False) -> bool:
    """Compensate a step and add it to `progress`; return False if it keeps failing and `forever` is not set."""
    if not is_known(step):
        return True
    retries = steps.RETRY_FOREVER if forever else steps.RETRY_BEFORE_ATTENTION
    try:
        ref = OrderRef(order_id=progress.order_id)
        await call(step.compensation, ref, f"after {progress.failure_code}", retry_policy=retries)
    except ActivityError:
        return False
    progress.compensated.append(step.name)
    show(progress)
    return True


async def update_status(update: StatusUpdate) -> OrderState:
    summary = f"{update.status}: {update.failure.code}" if update.failure else update.status
    state: OrderState = await call(steps.UPDATE_STATUS, update, summary, retry_policy=steps.RETRY_FOREVER)
    return state


async def change_address(change: AddressChange) -> bool:
    """Apply a proposed address; raises ActivityError if MongoDB does not answer in time."""
    timeout = steps.ADDRESS_CHANGE_TIMEOUT
    return bool(await call(steps.CHANGE_ADDRESS, change, f"change {change.number}", schedule_to_close_timeout=timeout))


async def call(activity: Any, argument: object, summary: str, **options: Any) -> Any:
    # The summary says what the activity's type does not; a step needs none.
    defaults = {"start_to_close_timeout": steps.SHORT_ATTEMPT, "summary": summary}
    return await workflow.execute_activity_method(activity, argument, **{**defaults, **options})


def enter(status: OrderStatus, progress: OrderProgress) -> None:
    progress.enter(status)
    show(progress)


def show(progress: OrderProgress) -> None:
    """Show the progress in Temporal's UI, and set the search attribute if it has changed."""
    workflow.set_current_details(progress.in_markdown())
    is_approved = progress.status is OrderStatus.AWAITING_APPROVAL and progress.approved
    shown = IN_PROGRESS if is_approved or progress.status in NOT_SHOWN else progress.status.value
    if workflow.info().typed_search_attributes.get(ORDER_STATUS) != shown:
        workflow.upsert_search_attributes([ORDER_STATUS.value_set(shown)])
