"""Hours pass in a moment: the approval timeout, an outage that ends, and one that outlasts all retries.

A workflow started by `skipper.client` has its own clock on the real server. The clock jumps ahead whenever the workflow
waits only for a timer or a retry.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio.testing import TimeSkipper

from app.domain import OrderStatus
from app.messages import ApprovalDecision
from app.workflows.order import OrderWorkflow
from app.workflows.steps import STEPS, activity_name
from tests.kit.faults import Fails, FaultyGateways
from tests.kit.shop import Shop
from tests.kit.workflows import CHARGE, Handle

LARGE = 50_000  # needs approval


async def elapsed(handle: Handle) -> timedelta:
    """The time from start to close, on the workflow's own clock."""
    description = await handle.describe()
    assert description.close_time is not None
    return description.close_time - description.start_time


async def test_approval_timeout_counts_as_rejection(skipping: Shop, worker: None) -> None:
    handle = await skipping.start({"MUG": 1}, price=LARGE)
    result = await handle.result()
    assert (result.status, result.failure_code) == (OrderStatus.FAILED, "not_approved")
    assert await elapsed(handle) >= timedelta(hours=24)


async def test_approval_within_timeout_counts(shop: Shop, worker: None, skipper: TimeSkipper) -> None:
    await shop.stock()
    handle = await shop.start({"MUG": 1}, price=LARGE)  # runs in real time until the test skips ahead
    await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
    await skipper.fast_forward(handle, timedelta(hours=23))
    await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
    assert (await handle.result()).status is OrderStatus.COMPLETED


async def test_carrier_outage_of_half_an_hour_delays_the_order(skipping: Shop) -> None:
    carrier = Fails(times=15)
    async with FaultyGateways(skipping, CreateShipment=carrier).worker():
        handle = await skipping.start()
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert carrier.calls == 16
    assert await elapsed(handle) > timedelta(minutes=30)


async def test_payment_outage_that_outlasts_all_retries_fails_the_order(skipping: Shop) -> None:
    (charge,) = (step for step in STEPS if activity_name(step.activity) == CHARGE)
    async with FaultyGateways(skipping, ChargePayment=Fails()).worker():
        handle = await skipping.start()
        result = await handle.result()
    assert (result.status, result.failure_code) == (OrderStatus.FAILED, "payment_unavailable")
    # The next retry would start after the schedule-to-close timeout, so Temporal fails the step at once.
    assert await elapsed(handle) > charge.schedule_to_close - 2 * timedelta(seconds=30)
    assert (await skipping.available(), await skipping.held()) == (10, 0)
