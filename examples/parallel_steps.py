"""Two steps run in parallel, and both are compensated: reserve the products while the card is charged.

Problem: one step fails, or a cancel arrives, while the other step is in flight. Both have to be compensated, each after
its last attempt has ended, and nothing may interrupt the compensations.

Traps: `asyncio.gather` raises the first error and leaves the other step behind, to be retried for minutes.
`asyncio.TaskGroup` cancels the other, but raises an ExceptionGroup, which Temporal takes for a bug: the workflow stands
still. An activity that is cancelled raises at once by default, while its attempt continues: the compensation would
overtake it. `asyncio.shield` protects a compensation, not the `await` of it: the workflow ends before the rest starts.

Solution: cancel the steps, wait until both have ended (WAIT_CANCELLATION_COMPLETED), then compensate both, also the one
that failed: a failure says only that no success was seen. An attempt that timed out may still run; it finds a fence.

    python -m examples.parallel_steps    # three orders: one completes, one is declined, one is cancelled
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar
from uuid import uuid4

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ActivityError, ApplicationError, ApplicationErrorCategory
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from app.temporal import connect
    from worker import SANDBOX

TASK_QUEUE = "example-parallel-steps"
STEP = workflow.ActivityConfig(
    start_to_close_timeout=timedelta(seconds=10),  # a cancel waits for an attempt in flight, at most this long
    schedule_to_close_timeout=timedelta(minutes=10),
    cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
COMPENSATION = workflow.ActivityConfig(start_to_close_timeout=timedelta(seconds=10))  # retried without limit
T = TypeVar("T")


class Services:
    """The warehouse and the payment service, in memory. app/activities/order_step.py keeps such records in MongoDB."""

    def __init__(self, respond: Callable[[str, str], Awaitable[None]]) -> None:
        """`respond` is called with activity and order id before each takes effect: it takes its time, or raises."""
        self.records: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._respond = respond

    @activity.defn
    async def reserve(self, order_id: str) -> None:
        await self._record(order_id, "reserve", "done")

    @activity.defn
    async def release(self, order_id: str) -> None:
        await self._record(order_id, "reserve", "compensated")

    @activity.defn
    async def charge(self, order_id: str) -> None:
        await self._record(order_id, "charge", "done")

    @activity.defn
    async def refund(self, order_id: str) -> None:
        await self._record(order_id, "charge", "compensated")

    async def _record(self, order_id: str, step: str, record: str) -> None:
        await self._respond(activity.info().activity_type, order_id)
        if record == "done" and self.records[order_id].get(step) == "compensated":
            raise ApplicationError(f"cannot {step}: compensated before", non_retryable=True)
        self.records[order_id][step] = record  # a compensation without a step: the fence for a late attempt


async def uninterrupted(work: Awaitable[T]) -> T:
    """Wait until `work` has ended, although a cancel arrives: Temporal delivers it to the main task only."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await workflow.wait([task])
    return task.result()


@workflow.defn
class PrepareOrderWorkflow:
    @workflow.run
    async def run(self, order_id: str) -> None:
        steps = [workflow.start_activity_method(step, order_id, **STEP) for step in (Services.reserve, Services.charge)]
        try:
            await asyncio.gather(*steps)
        except (ActivityError, asyncio.CancelledError):
            await uninterrupted(self._compensate(order_id, steps))
            raise

    async def _compensate(self, order_id: str, steps: list[workflow.ActivityHandle[None]]) -> None:
        for step in steps:
            step.cancel()  # ends the retries; without effect on a step that has ended
        await asyncio.gather(*steps, return_exceptions=True)
        compensations = (Services.release, Services.refund)
        await asyncio.gather(*(workflow.execute_activity_method(c, order_id, **COMPENSATION) for c in compensations))


def build_worker(client: Client, services: Services, task_queue: str = TASK_QUEUE) -> Worker:
    workflows = [PrepareOrderWorkflow]
    activities = [services.reserve, services.release, services.charge, services.refund]
    return Worker(client, task_queue=task_queue, workflows=workflows, activities=activities, workflow_runner=SANDBOX)


async def main() -> None:
    async def respond(name: str, order_id: str) -> None:
        print(call := f"{name} {order_id}")
        if call.startswith("charge cancelled"):
            await client.get_workflow_handle(order_id).cancel()
        await asyncio.sleep(0.3)
        if call.startswith("charge declined"):
            raise ApplicationError("declined", non_retryable=True, category=ApplicationErrorCategory.BENIGN)

    client, services = await connect(), Services(respond)
    async with build_worker(client, services):
        for order_id in [f"{name}-{uuid4().hex[:8]}" for name in ("completed", "declined", "cancelled")]:
            with suppress(WorkflowFailureError):
                await client.execute_workflow(PrepareOrderWorkflow.run, order_id, id=order_id, task_queue=TASK_QUEUE)
            print(f"{order_id}: {dict(services.records[order_id])}")
    await asyncio.sleep(0.1)  # the SDK's threads end: see main() in worker.py


if __name__ == "__main__":
    asyncio.run(main())
