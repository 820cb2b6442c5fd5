"""The workflow of the floor, in a module of its own: the sandbox imports it afresh for each run, like the saga's."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from app.messages import OrderInput, OrderRef
    from app.workflows.steps import STEPS, activity_name

ACTIVITIES = [(activity_name(step.activity), step) for step in STEPS]


@workflow.defn
class FloorWorkflow:
    """The activities of a completed order one after the other, with their options, and nothing else."""

    @workflow.run
    async def run(self, order: OrderInput) -> None:
        ref = OrderRef(order_id=order.order_id)
        for name, step in ACTIVITIES:
            await workflow.execute_activity(
                name,
                ref,
                start_to_close_timeout=step.start_to_close,
                schedule_to_close_timeout=step.schedule_to_close,
                retry_policy=step.retry_policy,
            )
