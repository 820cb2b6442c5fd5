"""Another version of the workflow: neither version can replay a history of the other."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from app.messages import OrderInput, OrderResult, OrderState
    from app.names import WORKFLOW_TYPE
    from app.workflows.order import OrderWorkflow


@workflow.defn(name=WORKFLOW_TYPE)
class NextOrderWorkflow(OrderWorkflow):
    @workflow.init
    def __init__(self, order: OrderInput) -> None:
        super().__init__(order)

    @workflow.run
    async def run(self, order: OrderInput) -> OrderResult:
        return await super().run(order)

    async def _saga(self) -> OrderState:
        await workflow.sleep(timedelta(milliseconds=1))  # the other version begins with an activity
        return await super()._saga()
