"""Temporal's data is lost and MongoDB's is not: an order begins again, with what was done already (G4, G6)."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from app.models import OrderResult, OrderStatus
from tests.support import ADDRESS, Shop, build_shop_worker, eventually

NOWHERE = {**ADDRESS, "postal_code": "99999"}  # the carrier is down

# How to keep an order at a status: by its payment method and its address.
KEPT_AT: dict[OrderStatus, dict[str, Any]] = {
    OrderStatus.RESERVED: {"payment_method": "pm_card_outage"},
    OrderStatus.CHARGED: {"shipping_address": NOWHERE},
}


async def lose(shop: Shop, handle: WorkflowHandle[Any, OrderResult]) -> None:
    request = DeleteWorkflowExecutionRequest(
        namespace=shop.client.namespace, workflow_execution=WorkflowExecution(workflow_id=handle.id)
    )
    await shop.client.workflow_service.delete_workflow_execution(request)

    async def is_lost() -> bool:
        try:
            await handle.describe()
        except RPCError as error:
            return error.status is RPCStatusCode.NOT_FOUND
        return False

    await eventually(is_lost)


@pytest.mark.parametrize("price", [1_000, 50_000], ids=["small", "large"])
@pytest.mark.parametrize("status", KEPT_AT)
async def test_a_cancel_undoes_what_the_lost_workflow_did(shop: Shop, status: OrderStatus, price: int) -> None:
    await shop.stock(available=10, price=price)
    async with build_shop_worker(shop):
        handle = await shop.start({"MUG": 2}, price=price, **KEPT_AT[status])
        if price == 50_000:
            await shop.reaches(handle, OrderStatus.AWAITING_APPROVAL)
            await handle.signal("approve", {"approved": True})
        order = await shop.reaches(handle, status)
        await lose(shop, handle)

        progress = await shop.sagas.cancel(order, "enough")
        assert progress is not None
        assert progress.cancel_requested
        result = await handle.result()
        assert result.status is OrderStatus.CANCELLED
        assert (await shop.available(), await shop.held()) == (10, 0)
        assert await shop.net_money(order.order_id) == 0


async def test_it_goes_on_and_is_not_approved_twice(shop: Shop) -> None:
    await shop.stock(available=10, price=50_000)
    async with build_shop_worker(shop):
        handle = await shop.start({"MUG": 2}, price=50_000, shipping_address=NOWHERE)
        await shop.reaches(handle, OrderStatus.AWAITING_APPROVAL)
        await handle.signal("approve", {"approved": True})
        order = await shop.reaches(handle, OrderStatus.CHARGED)
        await lose(shop, handle)

        await shop.mongo.orders.update_one({"_id": order.order_id}, {"$set": {"shipping_address": ADDRESS}})
        await shop.sagas.start(order)
        assert (await handle.result()).status is OrderStatus.COMPLETED
        assert (await shop.available(), await shop.held()) == (8, 2)
        assert await shop.net_money(order.order_id) == order.total.amount
