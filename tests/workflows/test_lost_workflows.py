"""If the workflow of an open order is lost, a new one continues the order from its state (G1, G3, G4, G6)."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError

from app import relay
from app.domain import OrderStatus
from app.gateways.sandbox import records
from app.messages import ApprovalDecision
from app.workflows.order import OrderWorkflow
from tests.kit.faults import Fails, FaultyGateways
from tests.kit.orders import ADDRESS, CHARGING
from tests.kit.relay import running_relay
from tests.kit.shop import Shop, build_shop_worker
from tests.kit.waiting import eventually
from tests.kit.workflows import Handle, delete_workflow

CARRIER_DOWN = {**ADDRESS, "postal_code": "99999"}
LARGE = 50_000

# Order fields that keep an order at a status.
KEPT_AT: dict[OrderStatus, dict[str, Any]] = {
    CHARGING: {"payment_method": "pm_card_outage"},
    OrderStatus.CHARGED: {"shipping_address": CARRIER_DOWN},
}


async def is_running(handle: Handle) -> bool:
    try:
        return (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
    except RPCError:
        return False


@pytest.fixture
def frequent_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the relay sweep every half second."""
    monkeypatch.setattr(relay, "SWEEP_INTERVAL", 0.5)


@pytest.mark.parametrize("price", [1_000, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("status", KEPT_AT)
async def test_cancel_of_lost_workflow_compensates_its_steps(shop: Shop, status: OrderStatus, price: int) -> None:
    await shop.stock(available=10, price=price)
    async with build_shop_worker(shop):
        handle = await shop.start({"MUG": 2}, price=price, **KEPT_AT[status])
        if price == LARGE:
            await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
            await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
        order = await shop.wait_for_status(handle, status)
        await delete_workflow(shop.client, handle)

        await shop.workflows.start(await shop.orders.request_cancellation(order.order_id, "enough"))
        assert (await handle.result()).status is OrderStatus.CANCELLED
        assert (await shop.available(), await shop.held()) == (10, 0)
        assert await shop.net_money(order.order_id) == 0


@pytest.mark.parametrize("how", ["deleted", "terminated"])
async def test_lost_workflow_of_approved_order_continues_without_new_approval(
    shop: Shop, frequent_sweeps: None, how: str
) -> None:
    await shop.stock(available=10, price=LARGE)
    async with build_shop_worker(shop), running_relay(shop):
        handle = await shop.start({"MUG": 2}, price=LARGE, shipping_address=CARRIER_DOWN)
        await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
        await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
        order = await shop.wait_for_status(handle, OrderStatus.CHARGED)
        await (delete_workflow(shop.client, handle) if how == "deleted" else handle.terminate())
        await eventually(lambda: is_running(handle))

        await shop.mongo.orders.update_one({"_id": order.order_id}, {"$set": {"shipping_address": ADDRESS}})
        await shop.wait_for_status(handle, OrderStatus.COMPLETED)
        assert (await shop.available(), await shop.held()) == (8, 2)
        assert await shop.net_money(order.order_id) == order.total.amount


async def test_recorded_approval_survives_loss_of_workflow(shop: Shop, frequent_sweeps: None) -> None:
    """The decision is written to MongoDB first. Here, the signal to the workflow is never sent."""
    await shop.stock(available=10, price=LARGE)
    async with build_shop_worker(shop):
        handle = await shop.start({"MUG": 1}, price=LARGE)
        order = await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
        await shop.orders.decide_approval(order.order_id, approved=True, reason="a good customer")
        await delete_workflow(shop.client, handle)
        async with running_relay(
            shop
        ):  # started only now, because its sweep would deliver the decision to the first workflow
            await shop.wait_for_status(handle, OrderStatus.COMPLETED)


async def test_workflow_lost_during_compensation_completes_it(shop: Shop, frequent_sweeps: None) -> None:
    """A new workflow must not charge or ship an order that is being compensated."""
    await shop.stock(available=10)
    refund = Fails()
    async with FaultyGateways(shop, RefundPayment=refund).worker(), running_relay(shop):
        handle = await shop.start({"MUG": 1}, shipping_address={**ADDRESS, "postal_code": "00000"})
        order = await shop.wait_for_status(handle, OrderStatus.COMPENSATING)
        await shop.mongo.orders.update_one({"_id": order.order_id}, {"$set": {"shipping_address": ADDRESS}})
        await delete_workflow(shop.client, handle)
        refund.times = 0
        order = await shop.wait_for_status(handle, OrderStatus.FAILED)
    assert order.failure is not None
    assert order.failure.code == "address_unserviceable"
    assert (await shop.available(), await shop.net_money(order.order_id)) == (10, 0)
    parcel = await records(shop.mongo).find_one({"_id": f"shipment:{order.order_id}"}) or {}
    assert not parcel.get("shipped")


async def test_order_removed_and_placed_again_completes(shop: Shop, frequent_sweeps: None) -> None:
    """A closed workflow with the same id exists, and the gateways know the idempotency key."""
    await shop.stock(available=10)
    async with build_shop_worker(shop), running_relay(shop):
        handle = await shop.start({"MUG": 1}, _id="again")
        await handle.result()
        await shop.mongo.orders.delete_one({"_id": "again"})
        await shop.place({"MUG": 1}, _id="again")
        order = await shop.wait_for_status(handle, OrderStatus.COMPLETED)
        assert await shop.net_money(order.order_id) == order.total.amount


@pytest.mark.parametrize("decision", ["cancel", "approval"])
async def test_lost_signal_is_repeated(shop: Shop, frequent_sweeps: None, decision: str) -> None:
    """The decision is in MongoDB, but the signal was not sent: Temporal was down, or the API was killed."""
    await shop.stock(available=10, price=LARGE)
    async with build_shop_worker(shop), running_relay(shop):
        handle = await shop.start({"MUG": 1}, price=LARGE)
        order = await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
        if decision == "cancel":
            await shop.orders.request_cancellation(order.order_id, "enough")
        else:
            await shop.orders.decide_approval(order.order_id, approved=True)
        await shop.wait_for_status(handle, OrderStatus.CANCELLED if decision == "cancel" else OrderStatus.COMPLETED)
