"""What must not be done to a workflow that is under way: two steps have changed places."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from app.models import OrderInput, OrderRef
    from app.workflows.saga import Saga
    from app.workflows.steps import CHARGE_PAYMENT, CREATE_SHIPMENT, RESERVE_INVENTORY, SEND_CONFIRMATION


@workflow.defn
class OrderWorkflow:
    @workflow.run
    async def run(self, order: OrderInput) -> None:
        saga = Saga(OrderRef(order_id=order.order_id))
        for step in [CHARGE_PAYMENT, RESERVE_INVENTORY, CREATE_SHIPMENT, SEND_CONFIRMATION]:
            await saga.run(step)
