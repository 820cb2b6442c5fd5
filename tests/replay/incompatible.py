"""A change that breaks workflows in progress: two steps are swapped."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from app.domain import OrderStatus
    from app.messages import OrderInput, OrderProgress
    from app.names import WORKFLOW_TYPE
    from app.workflows import calls
    from app.workflows.steps import STEPS


@workflow.defn(name=WORKFLOW_TYPE)
class OrderWorkflow:
    @workflow.run
    async def run(self, order: OrderInput) -> None:
        for step in [STEPS[1], STEPS[0], *STEPS[2:]]:
            await calls.start(step, OrderProgress(order_id=order.order_id, status=OrderStatus.PLACED))
