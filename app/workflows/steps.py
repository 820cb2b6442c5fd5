"""The table of steps: their sequence, their compensations, all timeouts and retry policies.

The workflow, the worker's activities, `GET /saga`, the order desk, `make demo` and the failure matrix of the tests
follow it. A new step needs a class of activities, a row here, and its name and status in `app.domain`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from app.activities.inventory import Inventory
    from app.activities.notifications import Notifications
    from app.activities.payments import Payments
    from app.activities.shipping import Shipping
    from app.activities.tracking import Tracking
    from app.domain import POINT_OF_NO_RETURN, STATUS_AFTER, Failure, OrderStatus, StepName
    from app.messages import OrderRef

Activity = Callable[[Any, OrderRef], Awaitable[None]]


def retry(maximum_interval: timedelta, maximum_attempts: int = 0) -> RetryPolicy:
    """Retry at intervals that double from 0.5 s (most transient errors clear by then); by default without limit."""
    first = timedelta(milliseconds=500)
    return RetryPolicy(initial_interval=first, maximum_interval=maximum_interval, maximum_attempts=maximum_attempts)


class OrderStopped(Exception):
    """A step failed for good, an approval was refused, or a cancel was accepted."""

    def __init__(self, failure: Failure, step: StepName | None = None) -> None:
        self.failure, self.step = failure, step


@dataclass(frozen=True)
class Step:
    """A step of the saga: its activity, its compensation, and the limits of its attempts.

    `start_to_close` limits one attempt, `schedule_to_close` all of them; `timed_out` is the order's failure after that.
    `service` names in messages what the activity calls.
    A compensation has no such limit: it is retried until it succeeds.
    `since` is the patch id of a step that was added later: orders that began without the step go on without it.
    """

    name: StepName
    activity: Activity
    compensation: Activity | None
    start_to_close: timedelta
    schedule_to_close: timedelta
    retry_policy: RetryPolicy
    service: str
    timed_out: Failure
    since: str | None = None

    @property
    def status(self) -> OrderStatus:
        """The order's status once the step is done."""
        return STATUS_AFTER[self.name]

    def failure(self, error: ActivityError) -> Failure:
        """Return the order's failure. MongoDB has the message of a service; an exception's text is never shown."""
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.non_retryable and cause.type:
            return Failure(code=cause.type, message=cause.message)
        return self.timed_out


STEPS = [
    Step(
        StepName.RESERVE_INVENTORY,
        activity=Inventory.reserve,
        compensation=Inventory.release,
        start_to_close=timedelta(seconds=15),  # one transaction, with its own retries (10 s)
        schedule_to_close=timedelta(minutes=5),  # survives a MongoDB failover
        retry_policy=retry(timedelta(seconds=5)),
        service="the inventory",
        timed_out=Failure(code="inventory_unavailable", message="the inventory did not answer in time"),
    ),
    Step(
        StepName.CHARGE_PAYMENT,
        activity=Payments.charge,
        compensation=Payments.refund,
        start_to_close=timedelta(seconds=30),  # covers the slowest card check
        schedule_to_close=timedelta(minutes=10),  # payment outages are short, and the stock is held meanwhile
        retry_policy=retry(timedelta(seconds=30)),
        service="the payment service",
        timed_out=Failure(code="payment_unavailable", message="the payment service did not answer in time"),
    ),
    Step(
        StepName.CREATE_SHIPMENT,
        activity=Shipping.create,
        compensation=Shipping.cancel,
        start_to_close=timedelta(seconds=30),
        schedule_to_close=timedelta(days=1),  # a carrier that is down is back by the next pick-up
        retry_policy=retry(timedelta(minutes=5)),
        service="the carrier",
        timed_out=Failure(code="shipping_unavailable", message="the carrier did not answer in time"),
    ),
    Step(
        StepName.SEND_CONFIRMATION,
        activity=Notifications.confirm,
        compensation=None,
        start_to_close=timedelta(seconds=30),
        schedule_to_close=timedelta(days=7),  # after a week, a person has to look
        retry_policy=retry(timedelta(minutes=30)),  # as mail servers do
        service="the mail service",
        timed_out=Failure(code="confirmation_not_sent", message="the confirmation could not be sent in time"),
    ),
]

# Before the point of no return, a failure or a cancel compensates all of these, also those that this run has not
# started: an earlier run may have started them (a reset, lost data), and a fence is harmless.
COMPENSATABLE_STEPS = [step for step in STEPS if step.compensation]
_REVERSIBLE_COUNT = STEPS.index(COMPENSATABLE_STEPS[-1]) + 1
REVERSIBLE_STEPS, FINAL_STEPS = STEPS[:_REVERSIBLE_COUNT], STEPS[_REVERSIBLE_COUNT:]

# Activities that are not steps.
UPDATE_STATUS = Tracking.update_status
CHANGE_ADDRESS = Shipping.change_address

# For compensations and status updates: each attempt is short, because it is always retried.
SHORT_ATTEMPT = timedelta(seconds=30)
RETRY_FOREVER = retry(timedelta(minutes=1))  # recovers within a minute once the cause is gone
RETRY_BEFORE_ATTENTION = retry(timedelta(minutes=1), maximum_attempts=8)  # about a minute
ADDRESS_CHANGE_TIMEOUT = timedelta(minutes=1)  # for all attempts: the customer waits for the answer


def all_activities() -> list[Callable[..., Any]]:
    """Return every activity that the workflow may call, for the worker to register."""
    steps = [function for step in STEPS for function in (step.activity, step.compensation) if function]
    return [*steps, UPDATE_STATUS, CHANGE_ADDRESS]


def activity_name(function: Callable[..., Any]) -> str:
    """Return the registered name of an activity; raises TypeError if the function is not an activity."""
    definition = activity._Definition.from_callable(function)
    if definition is None or definition.name is None:
        raise TypeError(f"{function.__qualname__} is not an activity: decorate it with @activity.defn")
    return definition.name


def check_table() -> None:
    """Compare the table with the names in `app.domain`, whose import already checks that each has a status.

    Raises:
        TypeError: a step is missing, in the wrong place, or not made of activities; the message names it.
    """
    if (names := [step.name for step in STEPS]) != list(StepName):
        raise TypeError(f"app.domain.StepName has {list(map(str, StepName))}, the table has {list(map(str, names))}")
    if REVERSIBLE_STEPS[-1].status is not POINT_OF_NO_RETURN:
        raise TypeError(f"app.domain.POINT_OF_NO_RETURN must be {REVERSIBLE_STEPS[-1].status}")
    for function in all_activities():
        activity_name(function)
