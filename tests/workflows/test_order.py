"""The saga on the real servers: steps, compensations, waits."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import ActivityError
from temporalio.testing import TimeSkipper

from app.domain import Address, OrderStatus
from app.messages import AddressChange, ApprovalDecision, CancelRequest
from app.workflows import steps
from app.workflows.order import OrderWorkflow
from tests.kit.faults import Fails, FaultyGateways, Pause
from tests.kit.orders import ADDRESS, steps_of
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import (
    CHARGE,
    CONFIRM,
    REFUND,
    RELEASE,
    RESERVE,
    SHIP,
    UNSHIP,
    Handle,
    RestartableWorker,
    at_the_end_of,
)

UNSERVICEABLE = {**ADDRESS, "postal_code": "00000"}
LARGE = 50_000  # needs an approval
OPERATION_FAILED = 96  # an error code of MongoDB; not one for which a transaction is tried again


@pytest.fixture
async def skipping(shop: Shop, skipper: TimeSkipper) -> Shop:
    """The shop, whose orders do not wait for time to pass."""
    await shop.stock(available=10)
    return shop.with_client(skipper.client)


async def activities_of(handle: Handle) -> list[str]:
    """The names of the steps and compensations that the workflow scheduled, in that order."""
    history = await handle.fetch_history()
    names = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    ]
    return [name for name in names if name != "UpdateOrderStatus"]


async def status_of(handle: Handle) -> OrderStatus:
    return (await handle.query(OrderWorkflow.status)).status


# --- forward, and back


async def test_order_with_valid_input_completes(shop: Shop, worker: None) -> None:
    await shop.stock(available=10)
    handle = await shop.start({"MUG": 3})
    result = await handle.result()
    order = await shop.order(handle)

    assert result.status is order.status is OrderStatus.COMPLETED
    assert steps_of(order) == dict.fromkeys(
        ["reserve_inventory", "charge_payment", "create_shipment", "send_confirmation"], "done"
    )
    assert (await shop.available(), await shop.held()) == (7, 3)
    assert await shop.net_money(order.order_id) == order.total.amount == 3_000
    assert await activities_of(handle) == [RESERVE, CHARGE, SHIP, CONFIRM]


@pytest.mark.parametrize(
    ("changes", "code", "activities"),
    [
        ({"lines": {"MUG": 11}}, "out_of_stock", [RESERVE]),
        ({"payment_method": "pm_card_declined"}, "payment_declined", [RESERVE, CHARGE]),
        ({"shipping_address": UNSERVICEABLE}, "address_unserviceable", [RESERVE, CHARGE, SHIP]),
    ],
    ids=["out of stock", "declined", "unserviceable"],
)
async def test_failed_step_compensates_every_step_in_reverse(
    skipping: Shop, worker: None, changes: dict[str, Any], code: str, activities: list[str]
) -> None:
    handle = await skipping.start(price=100, **changes)
    result = await handle.result()
    assert (result.status, result.failure_code) == (OrderStatus.FAILED, code)
    assert await activities_of(handle) == [*activities, UNSHIP, REFUND, RELEASE]
    assert (await skipping.available(), await skipping.held()) == (10, 0)
    assert await skipping.net_money(result.order_id) == 0


async def test_timeouts_and_retries_come_from_the_table_of_steps(shop: Shop, worker: None) -> None:
    await shop.stock()
    handle = await shop.start(shipping_address=UNSERVICEABLE)
    await handle.result()
    history = await handle.fetch_history()
    told_of = [
        event.activity_task_scheduled_event_attributes
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    ]
    scheduled = {told.activity_type.name: told for told in told_of}
    for step in steps.REVERSIBLE_STEPS:
        told = scheduled[steps.activity_name(step.activity)]
        assert told.start_to_close_timeout.ToTimedelta() == step.start_to_close
        assert told.schedule_to_close_timeout.ToTimedelta() == step.schedule_to_close
        assert told.retry_policy.maximum_interval.ToTimedelta() == step.retry_policy.maximum_interval
        assert step.compensation is not None
        told = scheduled[steps.activity_name(step.compensation)]
        assert told.retry_policy.maximum_attempts == steps.RETRY_BEFORE_ATTENTION.maximum_attempts
        assert not told.schedule_to_close_timeout.ToTimedelta()  # retried without end


# --- a compensation that fails


async def test_failing_compensation_needs_attention_and_recovers(shop: Shop, skipper: TimeSkipper) -> None:
    """MongoDB refuses the release; all else is compensated meanwhile."""
    await shop.stock(available=10)
    skipping = shop.with_client(skipper.client)
    pause = Pause()
    async with FaultyGateways(skipping, CreateShipment=pause).worker():
        handle = await skipping.start(shipping_address=UNSERVICEABLE)
        await pause.reached.wait()
        await _refuse_releases(shop, True)
        pause.go_on.set()

        order = await shop.reaches(handle, OrderStatus.NEEDS_ATTENTION)
        assert await shop.net_money(order.order_id) == 0
        assert steps_of(order) == {
            "reserve_inventory": "done",
            "charge_payment": "compensated",
            "create_shipment": "failed",
        }
        # MongoDB has the status a moment before the workflow hears of it.
        await eventually(lambda: status_of(handle), lambda status: status is OrderStatus.NEEDS_ATTENTION)
        progress = await handle.query(OrderWorkflow.status)
        assert progress.compensated == ["create_shipment", "charge_payment"]
        await _refuse_releases(shop, False)
        result = await handle.result()
    assert result.status is OrderStatus.FAILED
    assert (await shop.available(), await shop.held()) == (10, 0)
    assert steps_of(await shop.order(handle))["reserve_inventory"] == "compensated"


async def _refuse_releases(shop: Shop, refuse: bool) -> None:
    """Let mongod refuse to read the stock of this test: its own fail point."""
    database = shop.mongo.database.name
    only = {"failCommands": ["find"], "appName": database, "namespace": f"{database}.inventory"}
    await shop.mongo.client.admin.command(
        {
            "configureFailPoint": "failCommand",
            "mode": "alwaysOn" if refuse else "off",
            "data": {**only, "errorCode": OPERATION_FAILED},
        }
    )


async def test_failing_compensations_recover_independently(skipping: Shop) -> None:
    """All three at once, and the first to recover does not wait for the others."""
    compensations = {name: Fails() for name in [RELEASE, REFUND, UNSHIP]}
    async with FaultyGateways(skipping, **compensations).worker():
        handle = await skipping.start(shipping_address=UNSERVICEABLE)
        await skipping.reaches(handle, OrderStatus.NEEDS_ATTENTION)
        compensations[RELEASE].times = 0
        await eventually(skipping.held, lambda held: held == 0)
        compensations[UNSHIP].times = compensations[REFUND].times = 0
        assert (await handle.result()).status is OrderStatus.FAILED
    assert await skipping.net_money(handle.id.removeprefix("order-")) == 0


async def test_cancel_during_compensation_is_ignored(skipping: Shop) -> None:
    refund = Fails()
    async with FaultyGateways(skipping, RefundPayment=refund).worker():
        handle = await skipping.start(shipping_address=UNSERVICEABLE)
        await skipping.reaches(handle, OrderStatus.NEEDS_ATTENTION)
        await handle.signal(OrderWorkflow.cancel)
        await handle.cancel()
        assert not (await handle.query(OrderWorkflow.status)).cancel_requested
        refund.times = 0
        result = await handle.result()
    assert (result.status, result.failure_code) == (OrderStatus.FAILED, "address_unserviceable")
    assert await skipping.net_money(result.order_id) == 0


# --- cancel


async def test_cancel_after_shipment_is_refused(skipping: Shop) -> None:
    pause = Pause()
    async with FaultyGateways(skipping, SendConfirmation=pause).worker():
        handle = await skipping.start()
        await pause.reached.wait()
        await handle.signal(OrderWorkflow.cancel)
        await handle.cancel()
        progress = await handle.query(OrderWorkflow.status)
        assert (progress.status, progress.cancel_requested) == (OrderStatus.SHIPPED, False)
        pause.go_on.set()
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert (await skipping.available(), await skipping.held()) == (8, 2)


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_cancel_between_retries_takes_effect_at_once(shop: Shop, worker: None, how: str) -> None:
    """In real time, while the next try is seconds away."""
    await shop.stock(available=10)
    handle = await shop.start(payment_method="pm_card_outage")

    async def attempt() -> int:
        return max((a.attempt for a in (await handle.describe()).raw_description.pending_activities), default=0)

    await eventually(attempt, lambda attempt: attempt >= 4)  # the pause is 4 s by now
    began = time.monotonic()
    await (handle.signal(OrderWorkflow.cancel) if how == "signal" else handle.cancel())
    await shop.reaches(handle, OrderStatus.CANCELLED)
    assert time.monotonic() - began < 2
    assert (await shop.available(), await shop.held()) == (10, 0)


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_cancel_before_first_workflow_task_starts_no_step(shop: Shop, how: str) -> None:
    await shop.stock(available=10)
    handle = await shop.start()
    await (handle.signal(OrderWorkflow.cancel) if how == "signal" else handle.cancel())
    async with FaultyGateways(shop).worker():
        with suppress(WorkflowFailureError):
            await handle.result()
    assert not {RESERVE, CHARGE, SHIP} & set(await activities_of(handle))
    assert (await shop.order(handle)).status is OrderStatus.CANCELLED


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_cancel_wins_over_simultaneous_decline(shop: Shop, how: str) -> None:
    """It was accepted, so the order ends as cancelled."""
    await shop.stock(available=10)
    gateways = FaultyGateways(shop)
    async with RestartableWorker(gateways) as restartable:
        handle = await at_the_end_of(
            CHARGE,
            gateways,
            restartable,
            lambda: shop.start(payment_method="pm_card_declined"),
            lambda handle: handle.signal(OrderWorkflow.cancel) if how == "signal" else handle.cancel(),
        )
        with suppress(WorkflowFailureError):
            await handle.result()
    order = await shop.order(handle)
    assert (order.status, order.failure and order.failure.code) == (OrderStatus.CANCELLED, "cancelled")
    assert (await shop.available(), await shop.held()) == (10, 0)


async def test_worker_shutdown_is_not_a_cancel(shop: Shop) -> None:
    """Stopped while it charges, with and without grace: another worker goes on."""
    await shop.stock(available=10)
    for grace in [timedelta(), timedelta(seconds=0.3)]:
        pause = Pause()
        gateways = FaultyGateways(shop, ChargePayment=pause)
        async with RestartableWorker(gateways) as restartable:
            restartable.start(graceful_shutdown_timeout=grace)
            handle = await shop.start({"MUG": 1})
            await pause.reached.wait()
            await restartable.stop()
            restartable.start()
            result = await handle.result()
        assert result.status is OrderStatus.COMPLETED
        assert await shop.net_money(result.order_id) == 1_000


# --- approval


@pytest.fixture
async def awaiting(shop: Shop, worker: None) -> Handle:
    """A large order that waits for an approval, in real time."""
    await shop.stock(available=10)
    handle = await shop.start({"MUG": 1}, price=LARGE)
    await shop.reaches(handle, OrderStatus.AWAITING_APPROVAL)
    return handle


async def test_approved_order_completes(awaiting: Handle) -> None:
    await eventually(lambda: awaiting.query(OrderWorkflow.status), lambda told: told.waiting_for == "approval")
    await awaiting.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
    assert (await awaiting.result()).status is OrderStatus.COMPLETED
    progress = await awaiting.query(OrderWorkflow.status)
    assert (progress.waiting_for, progress.approved) == (None, True)


async def test_rejected_order_begins_no_step(shop: Shop, awaiting: Handle) -> None:
    await awaiting.signal(OrderWorkflow.approve, ApprovalDecision(approved=False, reason="over budget"))
    result = await awaiting.result()
    assert (result.status, result.failure_code) == (OrderStatus.FAILED, "not_approved")
    order = await shop.order(awaiting)
    assert order.failure is not None
    assert order.failure.message == "over budget"
    assert await activities_of(awaiting) == [UNSHIP, REFUND, RELEASE]
    assert (await shop.available(), await shop.held()) == (10, 0)


async def test_approval_timeout_counts_as_rejection(skipping: Shop, worker: None) -> None:
    await skipping.stock(price=LARGE)
    took = []
    for _ in range(3):  # the machine may be busy with something else meanwhile
        began = time.monotonic()
        handle = await skipping.start({"MUG": 1}, price=LARGE)
        result = await handle.result()
        took.append(time.monotonic() - began)
        assert (result.status, result.failure_code) == (OrderStatus.FAILED, "not_approved")
        description = await handle.describe()
        assert description.close_time is not None
        assert description.close_time - description.start_time >= timedelta(hours=24)
    assert min(took) < 1


async def test_approval_within_timeout_counts(shop: Shop, worker: None, skipper: TimeSkipper) -> None:
    await shop.stock()
    handle = await shop.start({"MUG": 1}, price=LARGE)
    await shop.reaches(handle, OrderStatus.AWAITING_APPROVAL)
    await skipper.fast_forward(handle, timedelta(hours=23))
    await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
    assert (await handle.result()).status is OrderStatus.COMPLETED


async def test_first_approval_decision_counts(shop: Shop) -> None:
    await shop.stock()
    handle = await shop.start({"MUG": 1}, price=LARGE)
    await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
    await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=False))
    async with FaultyGateways(shop).worker():  # which learns of both at once
        assert (await handle.result()).status is OrderStatus.COMPLETED


async def test_approval_of_order_that_needs_none_is_ignored(shop: Shop) -> None:
    await shop.stock()
    pause = Pause()
    async with FaultyGateways(shop, ChargePayment=pause).worker():
        handle = await shop.start()
        await pause.reached.wait()
        await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=False))
        assert (await handle.query(OrderWorkflow.status)).approved is None
        pause.go_on.set()
        assert (await handle.result()).status is OrderStatus.COMPLETED


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_cancel_while_awaiting_approval_begins_no_step(shop: Shop, awaiting: Handle, how: str) -> None:
    if how == "signal":
        await awaiting.signal(OrderWorkflow.cancel, CancelRequest(reason="changed my mind"))
        assert (await awaiting.result()).status is OrderStatus.CANCELLED
        order = await shop.order(awaiting)
        assert order.failure is not None
        assert order.failure.message == "changed my mind"
    else:
        await awaiting.cancel()
        with pytest.raises(WorkflowFailureError):
            await awaiting.result()
        assert (await shop.order(awaiting)).status is OrderStatus.CANCELLED
    assert await activities_of(awaiting) == [UNSHIP, REFUND, RELEASE]
    assert (await awaiting.query(OrderWorkflow.status)).waiting_for is None


# --- a new shipping address


async def propose(shop: Shop, handle: Handle, city: str) -> AddressChange:
    address = Address.model_validate({**ADDRESS, "city": city})
    change = await shop.orders.propose_address(handle.id.removeprefix("order-"), address)
    assert change is not None
    return change


async def test_address_change_before_charge_is_applied_and_after_it_rejected(shop: Shop) -> None:
    await shop.stock()
    charge, ship = Pause(), Pause()
    async with FaultyGateways(shop, ChargePayment=charge, CreateShipment=ship).worker():
        handle = await shop.start()
        await charge.reached.wait()
        late = await propose(shop, handle, "Leeds")
        assert await handle.execute_update(OrderWorkflow.change_shipping_address, await propose(shop, handle, "Bath"))
        charge.go_on.set()
        await ship.reached.wait()
        with pytest.raises(WorkflowUpdateFailedError, match="update failed"):
            await handle.execute_update(OrderWorkflow.change_shipping_address, late)
        assert await shop.orders.propose_address(late.order_id, Address.model_validate(ADDRESS)) is None
        ship.go_on.set()
        await handle.result()
    assert (await shop.order(handle)).shipping_address.city == "Bath"


async def test_address_change_that_loses_against_the_charge_is_not_applied(shop: Shop) -> None:
    """The workflow accepts it while the payment is charged, and MongoDB holds its write up until that is done."""
    await shop.stock()
    charge, change_held = Pause(), Pause()
    gateways = FaultyGateways(shop, ChargePayment=charge, ChangeShippingAddress=change_held)
    async with gateways.worker():
        handle = await shop.start()
        await charge.reached.wait()
        change = await propose(shop, handle, "York")
        update = asyncio.create_task(handle.execute_update(OrderWorkflow.change_shipping_address, change))
        await change_held.reached.wait()
        charge.go_on.set()
        await shop.reaches(handle, OrderStatus.SHIPPED, OrderStatus.COMPLETED)
        change_held.go_on.set()
        assert not await update
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert (await shop.order(handle)).shipping_address.city == ADDRESS["city"]


async def test_address_change_that_keeps_failing_does_not_hold_up_the_order(skipping: Shop) -> None:
    charge = Pause()
    async with FaultyGateways(skipping, ChargePayment=charge, ChangeShippingAddress=Fails()).worker():
        handle = await skipping.start()
        await charge.reached.wait()
        change = await propose(skipping, handle, "York")
        update = asyncio.create_task(handle.execute_update(OrderWorkflow.change_shipping_address, change))
        await eventually(lambda: activities_of(handle), lambda names: "ChangeShippingAddress" in names)
        charge.go_on.set()
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await update
        assert isinstance(refused.value.cause, ActivityError)
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert (await skipping.order(handle)).shipping_address.city == ADDRESS["city"]


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_cancel_while_address_change_runs_waits_for_its_end(shop: Shop, how: str) -> None:
    await shop.stock(available=10)
    charge, change_held = Pause(), Pause()
    async with FaultyGateways(shop, ChargePayment=charge, ChangeShippingAddress=change_held).worker():
        handle = await shop.start()
        await charge.reached.wait()
        change = await propose(shop, handle, "York")
        update = asyncio.create_task(handle.execute_update(OrderWorkflow.change_shipping_address, change))
        await change_held.reached.wait()
        await (handle.signal(OrderWorkflow.cancel) if how == "signal" else handle.cancel())
        await shop.reaches(handle, OrderStatus.CANCELLED)
        assert (await handle.describe()).close_time is None
        change_held.go_on.set()
        assert not await update
        charge.go_on.set()
        await eventually(handle.describe, lambda description: description.close_time is not None)
    assert (await shop.available(), await shop.held()) == (10, 0)
