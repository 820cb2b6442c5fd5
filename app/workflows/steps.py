"""The steps of the saga and their undos, with every timeout and retry in one table.

Change a figure here and only here. `attempt` is how long one try may take, `in_all` how long a step is tried before
the order fails; the pause between tries doubles from 0.5 s up to `pause_at_most`. An undo has no end: what took effect
has to be undone, so it is tried until it works.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from app.activities.inventory import Inventory
    from app.activities.notifications import Notifications
    from app.activities.payments import Payments
    from app.activities.shipping import Shipping
    from app.models import Failure, OrderRef, StepName

Activity = Callable[[Any, OrderRef], Awaitable[None]]


@dataclass(frozen=True)
class Step:
    """A step of the saga: what does it, what undoes it, and how long it is tried."""

    name: StepName
    do: Activity
    undo: Activity | None
    attempt: timedelta
    in_all: timedelta
    pause_at_most: timedelta
    in_vain: Failure
    """Why the order failed, when the step was tried for `in_all` in vain."""

    @property
    def retries(self) -> RetryPolicy:
        return RetryPolicy(initial_interval=FIRST_PAUSE, maximum_interval=self.pause_at_most)


FIRST_PAUSE = timedelta(milliseconds=500)  # most errors are over by then, and nobody has noticed

RESERVE_INVENTORY = Step(
    StepName.RESERVE_INVENTORY,
    do=Inventory.reserve,
    undo=Inventory.release,
    attempt=timedelta(seconds=15),  # one transaction of ours, with its own retries (10 s); no one else is asked
    in_all=timedelta(minutes=5),  # outlasts a failover of MongoDB; a customer who waits longer has gone elsewhere
    pause_at_most=timedelta(seconds=5),  # a customer waits, and our own database bears the question
    in_vain=Failure(code="inventory_unavailable", message="the stock could not be asked in time"),
)
CHARGE_PAYMENT = Step(
    StepName.CHARGE_PAYMENT,
    do=Payments.charge,
    undo=Payments.refund,
    attempt=timedelta(seconds=30),  # the slowest card check that is still a success
    in_all=timedelta(minutes=10),  # outages of payment services are short; meanwhile the pieces are held from others
    pause_at_most=timedelta(seconds=30),  # about 20 tries in the ten minutes: not a flood for a service in trouble
    in_vain=Failure(code="payment_unavailable", message="the payment service could not be reached in time"),
)
CREATE_SHIPMENT = Step(
    StepName.CREATE_SHIPMENT,
    do=Shipping.create,
    undo=Shipping.cancel,
    attempt=timedelta(seconds=30),  # carriers' interfaces are slow, but a minute is no answer
    in_all=timedelta(days=1),  # a carrier that is down is back by the next pick-up; the money is kept that long
    pause_at_most=timedelta(minutes=5),  # nobody waits at the screen any more; a pick-up is missed by hours
    in_vain=Failure(code="shipping_unavailable", message="the carrier could not be reached in time"),
)
SEND_CONFIRMATION = Step(
    StepName.SEND_CONFIRMATION,
    do=Notifications.confirm,
    undo=None,  # a shipped order is never undone
    attempt=timedelta(seconds=30),  # mail servers may take their time to greet
    in_all=timedelta(days=7),  # a confirmation later than a week confirms nothing: then a person has to look
    pause_at_most=timedelta(minutes=30),  # as mail servers themselves do
    in_vain=Failure(code="confirmation_not_sent", message="the confirmation could not be sent in time"),
)

# What an order may have to undo, in the order in which it was done.
SHIPMENT_STEPS = [RESERVE_INVENTORY, CHARGE_PAYMENT, CREATE_SHIPMENT]

# Undos, and marks on the order document: each try is short, and there is always another one.
SHORT_ATTEMPT = timedelta(seconds=30)  # longer than any transaction of ours, or answer of a service
UNDO_PAUSE_AT_MOST = timedelta(minutes=1)  # so that an order recovers within a minute once the cause is gone
UNDO_TRIES_BEFORE_ATTENTION = 8  # about a minute of tries; then somebody should know
ENDLESS = RetryPolicy(initial_interval=FIRST_PAUSE, maximum_interval=UNDO_PAUSE_AT_MOST)
BEFORE_ATTENTION = RetryPolicy(
    initial_interval=FIRST_PAUSE,
    maximum_interval=UNDO_PAUSE_AT_MOST,
    maximum_attempts=UNDO_TRIES_BEFORE_ATTENTION,
)

# The shipment waits for a change of address that was accepted, so the change has an end.
ADDRESS_CHANGE_IN_ALL = timedelta(minutes=1)  # who changes it waits at the screen
