"""The saga on the real servers: its steps, its undos, its waits."""

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

from app.models import Address, AddressChange, ApprovalDecision, CancelRequest, OrderStatus
from app.workflows import steps
from app.workflows.order import OrderWorkflow
from tests.support import ADDRESS, Shop, eventually, steps_of
from tests.workflows.faults import (
    CHARGE,
    CONFIRM,
    REFUND,
    RELEASE,
    RESERVE,
    SHIP,
    UNSHIP,
    Fails,
    Handle,
    Hands,
    Pause,
    Services,
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
    """The names of the activities that the workflow asked for, in that order, but for those that only mark."""
    history = await handle.fetch_history()
    names = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    ]
    return [name for name in names if name != "MarkOrder"]


async def status_of(handle: Handle) -> OrderStatus:
    return (await handle.query(OrderWorkflow.status)).status


# --- forward, and back


async def test_an_order_completes(shop: Shop, worker: None) -> None:
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
        ({"lines": {"MUG": 11}}, "out_of_stock", [RESERVE, RELEASE]),
        ({"payment_method": "pm_card_declined"}, "payment_declined", [RESERVE, CHARGE, REFUND, RELEASE]),
        (
            {"shipping_address": UNSERVICEABLE},
            "address_unserviceable",
            [RESERVE, CHARGE, SHIP, UNSHIP, REFUND, RELEASE],
        ),
    ],
    ids=["out of stock", "declined", "unserviceable"],
)
async def test_what_failed_is_undone_in_reverse(
    skipping: Shop, worker: None, changes: dict[str, Any], code: str, activities: list[str]
) -> None:
    handle = await skipping.start(price=100, **changes)
    result = await handle.result()
    assert (result.status, result.failure and result.failure.code) == (OrderStatus.FAILED, code)
    assert await activities_of(handle) == activities
    assert (await skipping.available(), await skipping.held()) == (10, 0)
    assert await skipping.net_money(result.order_id) == 0


async def test_the_table_of_steps_is_what_temporal_is_told(shop: Shop, worker: None) -> None:
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
    for name, step in {
        RESERVE: steps.RESERVE_INVENTORY,
        CHARGE: steps.CHARGE_PAYMENT,
        SHIP: steps.CREATE_SHIPMENT,
    }.items():
        told = scheduled[name]
        assert told.start_to_close_timeout.ToTimedelta() == step.attempt
        assert told.schedule_to_close_timeout.ToTimedelta() == step.in_all
        assert told.retry_policy.maximum_interval.ToTimedelta() == step.pause_at_most
    for undo in [RELEASE, REFUND, UNSHIP]:
        assert scheduled[undo].retry_policy.maximum_attempts == steps.UNDO_TRIES_BEFORE_ATTENTION
        assert not scheduled[undo].schedule_to_close_timeout.ToTimedelta()  # an undo has no end


# --- an undo that fails


async def test_an_undo_that_fails_needs_attention_and_recovers(shop: Shop, skipper: TimeSkipper) -> None:
    """MongoDB does not let the pieces be released; all else is undone meanwhile."""
    await shop.stock(available=10)
    skipping = shop.with_client(skipper.client)
    pause = Pause()
    async with Services(skipping, CreateShipment=pause).worker():
        handle = await skipping.start(shipping_address=UNSERVICEABLE)
        await pause.reached.wait()
        await _refuse_reservations(shop, True)
        pause.go_on.set()

        order = await shop.reaches(handle, OrderStatus.NEEDS_ATTENTION)
        assert await shop.net_money(order.order_id) == 0
        assert steps_of(order) == {
            "reserve_inventory": "done",
            "charge_payment": "undone",
            "create_shipment": "failed",
        }
        progress = await handle.query(OrderWorkflow.status)
        assert (progress.status, progress.undone) == (
            OrderStatus.NEEDS_ATTENTION,
            ["create_shipment", "charge_payment"],
        )

        await _refuse_reservations(shop, False)
        result = await handle.result()
    assert result.status is OrderStatus.FAILED
    assert (await shop.available(), await shop.held()) == (10, 0)
    assert steps_of(await shop.order(handle))["reserve_inventory"] == "undone"


async def _refuse_reservations(shop: Shop, refuse: bool) -> None:
    """Let mongod refuse to read this test's reservations: its own fail point."""
    database = shop.mongo.database.name
    only = {"failCommands": ["find"], "appName": database, "namespace": f"{database}.reservations"}
    await shop.mongo.client.admin.command(
        {
            "configureFailPoint": "failCommand",
            "mode": "alwaysOn" if refuse else "off",
            "data": {**only, "errorCode": OPERATION_FAILED},
        }
    )


async def test_every_undo_that_fails_recovers(skipping: Shop) -> None:
    """All three at once, and the first to recover does not wait for the others."""
    undos = {name: Fails() for name in [RELEASE, REFUND, UNSHIP]}
    async with Services(skipping, **undos).worker():
        handle = await skipping.start(shipping_address=UNSERVICEABLE)
        await skipping.reaches(handle, OrderStatus.NEEDS_ATTENTION)
        undos[RELEASE].times = 0
        await eventually(skipping.held, lambda held: held == 0)
        undos[UNSHIP].times = undos[REFUND].times = 0
        assert (await handle.result()).status is OrderStatus.FAILED
    assert await skipping.net_money(handle.id.removeprefix("order-")) == 0


async def test_a_cancel_during_needs_attention_changes_nothing(skipping: Shop) -> None:
    refund = Fails()
    async with Services(skipping, RefundPayment=refund).worker():
        handle = await skipping.start(shipping_address=UNSERVICEABLE)
        await skipping.reaches(handle, OrderStatus.NEEDS_ATTENTION)
        await handle.signal(OrderWorkflow.cancel)
        await handle.cancel()
        assert not (await handle.query(OrderWorkflow.status)).cancel_requested
        refund.times = 0
        result = await handle.result()
    assert (result.status, result.failure and result.failure.code) == (
        OrderStatus.FAILED,
        "address_unserviceable",
    )
    assert await skipping.net_money(result.order_id) == 0


# --- a cancel is answered honestly, and at once


async def test_a_cancel_after_shipment_is_refused(skipping: Shop) -> None:
    pause = Pause()
    async with Services(skipping, SendConfirmation=pause).worker():
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
async def test_a_cancel_in_an_outage_does_not_wait_for_the_next_retry(shop: Shop, worker: None, how: str) -> None:
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
async def test_a_cancel_before_the_first_workflow_task_starts_nothing(shop: Shop, how: str) -> None:
    await shop.stock(available=10)
    handle = await shop.start()
    await (handle.signal(OrderWorkflow.cancel) if how == "signal" else handle.cancel())
    async with Services(shop).worker():
        with suppress(WorkflowFailureError):
            await handle.result()
    assert not {RESERVE, CHARGE, SHIP} & set(await activities_of(handle))
    assert (await shop.order(handle)).status is OrderStatus.CANCELLED


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_a_cancel_as_a_step_is_refused_is_what_happened(shop: Shop, how: str) -> None:
    """It was accepted, so that is how the order ends."""
    await shop.stock(available=10)
    services = Services(shop)
    async with Hands(services) as hands:
        handle = await at_the_end_of(
            CHARGE,
            services,
            hands,
            lambda: shop.start(payment_method="pm_card_declined"),
            lambda handle: handle.signal(OrderWorkflow.cancel) if how == "signal" else handle.cancel(),
        )
        with suppress(WorkflowFailureError):
            await handle.result()
    order = await shop.order(handle)
    assert (order.status, order.failure and order.failure.code) == (OrderStatus.CANCELLED, "cancelled")
    assert (await shop.available(), await shop.held()) == (10, 0)


async def test_a_worker_that_stops_is_no_cancel(shop: Shop) -> None:
    """Stopped while it charges, with and without grace: another worker goes on."""
    await shop.stock(available=10)
    for grace in [timedelta(), timedelta(seconds=0.3)]:
        pause = Pause()
        services = Services(shop, ChargePayment=pause)
        async with Hands(services) as hands:
            hands.start(graceful_shutdown_timeout=grace)
            handle = await shop.start({"MUG": 1})
            await pause.reached.wait()
            await hands.stop()
            hands.start()
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


async def test_an_approved_order_completes(awaiting: Handle) -> None:
    assert (await awaiting.query(OrderWorkflow.status)).waiting_for == "approval"
    await awaiting.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
    assert (await awaiting.result()).status is OrderStatus.COMPLETED
    progress = await awaiting.query(OrderWorkflow.status)
    assert (progress.waiting_for, progress.approved) == (None, True)


async def test_an_order_that_is_not_approved_takes_nothing(shop: Shop, awaiting: Handle) -> None:
    await awaiting.signal(OrderWorkflow.approve, ApprovalDecision(approved=False, reason="over budget"))
    result = await awaiting.result()
    assert result.failure is not None
    assert (result.status, result.failure.code, result.failure.message) == (
        OrderStatus.FAILED,
        "not_approved",
        "over budget",
    )
    assert await activities_of(awaiting) == []
    assert (await shop.available(), await shop.held()) == (10, 0)


async def test_no_answer_within_a_day_is_a_no(skipping: Shop, worker: None) -> None:
    await skipping.stock(price=LARGE)
    took = []
    for _ in range(3):  # the machine may be busy with something else meanwhile
        began = time.monotonic()
        handle = await skipping.start({"MUG": 1}, price=LARGE)
        result = await handle.result()
        took.append(time.monotonic() - began)
        assert result.failure is not None
        assert (result.status, result.failure.code) == (OrderStatus.FAILED, "not_approved")
        description = await handle.describe()
        assert description.close_time is not None
        assert description.close_time - description.start_time >= timedelta(hours=24)
    assert min(took) < 1


async def test_an_answer_within_the_day_counts(shop: Shop, worker: None, skipper: TimeSkipper) -> None:
    await shop.stock()
    handle = await shop.start({"MUG": 1}, price=LARGE)
    await shop.reaches(handle, OrderStatus.AWAITING_APPROVAL)
    await skipper.fast_forward(handle, timedelta(hours=23))
    await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
    assert (await handle.result()).status is OrderStatus.COMPLETED


async def test_the_first_answer_counts(shop: Shop) -> None:
    await shop.stock()
    handle = await shop.start({"MUG": 1}, price=LARGE)
    await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
    await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=False))
    async with Services(shop).worker():  # which learns of both at once
        assert (await handle.result()).status is OrderStatus.COMPLETED


async def test_an_answer_that_nobody_waits_for_changes_nothing(shop: Shop) -> None:
    await shop.stock()
    pause = Pause()
    async with Services(shop, ChargePayment=pause).worker():
        handle = await shop.start()
        await pause.reached.wait()
        await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=False))
        assert (await handle.query(OrderWorkflow.status)).approved is None
        pause.go_on.set()
        assert (await handle.result()).status is OrderStatus.COMPLETED


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_a_cancel_while_it_waits_for_an_approval(shop: Shop, awaiting: Handle, how: str) -> None:
    if how == "signal":
        await awaiting.signal(OrderWorkflow.cancel, CancelRequest(reason="changed my mind"))
        result = await awaiting.result()
        assert result.failure is not None
        assert (result.status, result.failure.message) == (OrderStatus.CANCELLED, "changed my mind")
    else:
        await awaiting.cancel()
        with pytest.raises(WorkflowFailureError):
            await awaiting.result()
        assert (await shop.order(awaiting)).status is OrderStatus.CANCELLED
    assert await activities_of(awaiting) == []
    assert (await awaiting.query(OrderWorkflow.status)).waiting_for is None


# --- a new shipping address


async def propose(shop: Shop, handle: Handle, city: str) -> AddressChange:
    change = AddressChange(order_id=handle.id.removeprefix("order-"), change_id=f"change-{handle.id}-{city}")
    await shop.orders.propose_address(change, Address.model_validate({**ADDRESS, "city": city}))
    return change


async def test_an_address_can_be_changed_until_shipping_begins(shop: Shop) -> None:
    await shop.stock()
    charge, ship = Pause(), Pause()
    async with Services(shop, ChargePayment=charge, CreateShipment=ship).worker():
        handle = await shop.start()
        await charge.reached.wait()
        await handle.execute_update(OrderWorkflow.change_shipping_address, await propose(shop, handle, "Bath"))
        charge.go_on.set()
        await ship.reached.wait()
        with pytest.raises(WorkflowUpdateFailedError, match="update failed"):
            await handle.execute_update(OrderWorkflow.change_shipping_address, await propose(shop, handle, "Leeds"))
        ship.go_on.set()
        await handle.result()
    assert (await shop.order(handle)).shipping_address.city == "Bath"


async def test_shipping_waits_for_a_change_that_was_accepted(shop: Shop) -> None:
    """The change is held up by MongoDB until the payment is charged and shipping would begin."""
    await shop.stock()
    charge = Pause()
    async with Services(shop, ChargePayment=charge).worker():
        handle = await shop.start()
        await charge.reached.wait()
        change = AddressChange(order_id=handle.id.removeprefix("order-"), change_id="late")
        # Its first attempts fail: the address is not in MongoDB yet in a form that can be read.
        await shop.mongo.address_changes.insert_one({"_id": "late", "order_id": change.order_id, "address": {}})
        update = asyncio.create_task(handle.execute_update(OrderWorkflow.change_shipping_address, change))
        await eventually(lambda: activities_of(handle), lambda names: "ChangeShippingAddress" in names)
        charge.go_on.set()
        await shop.reaches(handle, OrderStatus.CHARGED)
        await eventually(lambda: status_of(handle), lambda status: status is OrderStatus.CHARGED)
        assert SHIP not in await activities_of(handle)
        await shop.mongo.address_changes.update_one({"_id": "late"}, {"$set": {"address": {**ADDRESS, "city": "York"}}})
        await update
        await handle.result()
    assert (await activities_of(handle)).index("ChangeShippingAddress") < (await activities_of(handle)).index(SHIP)
    assert (await shop.order(handle)).shipping_address.city == "York"


async def test_a_change_of_address_that_cannot_be_made_does_not_stop_the_order(skipping: Shop) -> None:
    charge = Pause()
    async with Services(skipping, ChargePayment=charge).worker():
        handle = await skipping.start()
        await charge.reached.wait()
        change = AddressChange(order_id=handle.id.removeprefix("order-"), change_id="bad")
        await skipping.mongo.address_changes.insert_one({"_id": "bad", "order_id": change.order_id, "address": {}})
        update = asyncio.create_task(handle.execute_update(OrderWorkflow.change_shipping_address, change))
        await eventually(lambda: activities_of(handle), lambda names: "ChangeShippingAddress" in names)
        charge.go_on.set()
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await update
        assert isinstance(refused.value.cause, ActivityError)
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert (await skipping.order(handle)).shipping_address.city == ADDRESS["city"]


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_a_cancel_while_a_change_of_address_runs(shop: Shop, how: str) -> None:
    """The order is undone, and ends when the change has ended, too."""
    await shop.stock(available=10)
    charge = Pause()
    async with Services(shop, ChargePayment=charge).worker():
        handle = await shop.start()
        await charge.reached.wait()
        change = AddressChange(order_id=handle.id.removeprefix("order-"), change_id=f"slow-{how}")
        document = {"_id": change.change_id, "order_id": change.order_id, "address": {}}
        await shop.mongo.address_changes.insert_one(document)
        update = asyncio.create_task(handle.execute_update(OrderWorkflow.change_shipping_address, change))
        await eventually(lambda: activities_of(handle), lambda names: "ChangeShippingAddress" in names)
        await (handle.signal(OrderWorkflow.cancel) if how == "signal" else handle.cancel())
        await shop.reaches(handle, OrderStatus.CANCELLED)
        await shop.mongo.address_changes.update_one({"_id": change.change_id}, {"$set": {"address": ADDRESS}})
        await update
        charge.go_on.set()
        await eventually(handle.describe, lambda description: description.close_time is not None)
    assert (await shop.available(), await shop.held()) == (10, 0)
