"""How the saga calls its activities, and shows its status in Temporal."""

from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    import app.workflows.steps as steps
    from app.domain import OrderStatus
    from app.messages import AddressChange, ApprovalDecision, OrderProgress, OrderRef, OrderState, StatusUpdate
    from app.temporal import IN_PROGRESS, ORDER_STATUS
    from app.workflows.steps import Step

# A forward status between two steps is not shown: each change costs an event of the history.
NOT_SHOWN = {OrderStatus.PLACED, *(step.status for step in steps.STEPS)} - {OrderStatus.COMPLETED}

TIMED_OUT = ApprovalDecision(approved=False, reason="no answer in time")


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
    handle.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen, also when it is not awaited
    return handle


async def compensate(step: Step, progress: OrderProgress, *, forever: bool = False) -> bool:
    """Compensate a step and tell `progress` of it; False when it kept failing and `forever` is not asked for."""
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
    """Raises: temporalio.exceptions.ActivityError: MongoDB did not answer in time."""
    timeout = steps.ADDRESS_CHANGE_TIMEOUT
    return bool(await _call(steps.CHANGE_ADDRESS, change, "change address", schedule_to_close_timeout=timeout))


async def _call(activity: Any, argument: object, summary: str, **options: Any) -> Any:
    timeout = steps.SHORT_ATTEMPT
    return await workflow.execute_activity_method(
        activity, argument, start_to_close_timeout=timeout, summary=summary, **options
    )


def show_status(status: OrderStatus, *, waiting: bool = True) -> None:
    """Set the search attribute, if it has changed; a decision that came ends `awaiting_approval`."""
    shown = IN_PROGRESS if status in NOT_SHOWN or not waiting else status.value
    if workflow.info().typed_search_attributes.get(ORDER_STATUS) != shown:
        workflow.upsert_search_attributes([ORDER_STATUS.value_set(shown)])
