"""Call the saga's activities, and show its status in Temporal."""

from typing import Any

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


def start(step: Step, order_id: str) -> workflow.ActivityHandle[Any]:
    """Start a step. Cancelling it does not wait for the attempt in flight, which then runs into a fence."""
    handle = workflow.start_activity_method(
        step.activity,
        OrderRef(order_id=order_id),
        start_to_close_timeout=step.start_to_close,
        schedule_to_close_timeout=step.schedule_to_close,
        retry_policy=step.retry_policy,
        summary=step.name,
    )
    handle.add_done_callback(lambda task: task.cancelled() or task.exception())  # retrieved, even if not awaited
    return handle


async def compensate(step: Step, progress: OrderProgress, *, forever: bool = False) -> bool:
    """Compensate a step and add it to `progress`; return False if it keeps failing and `forever` is not set."""
    retries = steps.RETRY_FOREVER if forever else steps.RETRY_BEFORE_ATTENTION
    try:
        ref = OrderRef(order_id=progress.order_id)
        await _call(step.compensation, ref, f"compensate {step.name}", retry_policy=retries)
    except ActivityError:
        return False
    progress.compensated.append(step.name)
    return True


async def update_status(update: StatusUpdate) -> OrderState:
    state: OrderState = await _call(steps.UPDATE_STATUS, update, update.status, retry_policy=steps.RETRY_FOREVER)
    return state


async def change_address(change: AddressChange) -> bool:
    """Apply a proposed address; raises ActivityError if MongoDB does not answer in time."""
    timeout = steps.ADDRESS_CHANGE_TIMEOUT
    return bool(await _call(steps.CHANGE_ADDRESS, change, "change address", schedule_to_close_timeout=timeout))


async def _call(activity: Any, argument: object, summary: str, **options: Any) -> Any:
    return await workflow.execute_activity_method(
        activity, argument, start_to_close_timeout=steps.SHORT_ATTEMPT, summary=summary, **options
    )


def show_status(status: OrderStatus, *, waiting: bool = True) -> None:
    """Set the search attribute if it has changed. An order that no longer waits for approval is in progress."""
    shown = IN_PROGRESS if status in NOT_SHOWN or not waiting else status.value
    if workflow.info().typed_search_attributes.get(ORDER_STATUS) != shown:
        workflow.upsert_search_attributes([ORDER_STATUS.value_set(shown)])
