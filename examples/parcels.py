"""A child workflow per parcel, cancelled with its parent: an order is shipped in several parcels.

Problem: each parcel waits for its own pick-up, for days, and may fail alone. If the order is cancelled, each parcel
that was not picked up is taken back from the carrier, and the order may not end before that is done.

Traps: by default, Temporal terminates the children of a workflow that closes, and a terminated child compensates
nothing. If a cancel arrives while a child is being started, `execute_child_workflow` raises without waiting for it. If
it arrives while an activity is in flight that then succeeds, `execute_activity` returns, and nothing raises it again.

Solution: with REQUEST_CANCEL, the children compensate even if the parent is terminated. The parent starts all children,
uninterrupted, then waits until each one has ended (WAIT_CANCELLATION_COMPLETED, the default for children).

    python -m examples.parcels    # one of three parcels is picked up, then the order is cancelled
"""

import asyncio
from contextlib import suppress
from uuid import uuid4

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from app.temporal import connect
    from examples.parallel_steps import COMPENSATION, STEP, uninterrupted
    from worker import SANDBOX

TASK_QUEUE = "example-parcels"


class Carrier:
    """The carrier, in memory."""

    def __init__(self) -> None:
        self.bookings: dict[str, str] = {}

    @activity.defn
    async def book(self, parcel: str) -> None:
        if self.bookings.setdefault(parcel, "booked") == "cancelled":
            raise ApplicationError("cannot book: cancelled before", non_retryable=True)

    @activity.defn
    async def cancel_booking(self, parcel: str) -> None:
        self.bookings[parcel] = "cancelled"  # also if there is none: the fence for a late attempt


def raise_if_cancelled() -> None:
    if workflow.cancellation_reason() is not None:
        raise asyncio.CancelledError


@workflow.defn
class ParcelWorkflow:
    """One parcel, from its booking until the carrier has picked it up."""

    def __init__(self) -> None:
        self._picked_up = False

    @workflow.run
    async def run(self, parcel: str) -> str:
        try:
            await workflow.execute_activity_method(Carrier.book, parcel, **STEP)
            raise_if_cancelled()
            await workflow.wait_condition(lambda: self._picked_up)
        except (ActivityError, asyncio.CancelledError):
            if not self._picked_up:
                await uninterrupted(workflow.execute_activity_method(Carrier.cancel_booking, parcel, **COMPENSATION))
                raise
        return "picked up"

    @workflow.signal
    def picked_up(self) -> None:
        self._picked_up = True


@workflow.defn
class ShipmentWorkflow:
    """All parcels of an order; returns the outcome of each. A parcel that fails does not stop the others."""

    @workflow.run
    async def run(self, parcels: list[str]) -> dict[str, str]:
        children = await uninterrupted(asyncio.gather(*(self._start(parcel) for parcel in parcels)))
        if workflow.cancellation_reason() is not None:  # it came while they were started
            for child in children:
                child.cancel()
        outcomes = await asyncio.gather(*children, return_exceptions=True)  # a cancel reaches each, and waits for each
        raise_if_cancelled()
        return {p: o if isinstance(o, str) else "failed" for p, o in zip(parcels, outcomes, strict=True)}

    async def _start(self, parcel: str) -> workflow.ChildWorkflowHandle[ParcelWorkflow, str]:
        policy = workflow.ParentClosePolicy.REQUEST_CANCEL
        return await workflow.start_child_workflow(ParcelWorkflow.run, parcel, id=parcel, parent_close_policy=policy)


def build_worker(client: Client, carrier: Carrier, task_queue: str = TASK_QUEUE) -> Worker:
    workflows, activities = [ShipmentWorkflow, ParcelWorkflow], [carrier.book, carrier.cancel_booking]
    return Worker(client, task_queue=task_queue, workflows=workflows, activities=activities, workflow_runner=SANDBOX)


async def main() -> None:
    client, carrier, order_id = await connect(), Carrier(), f"parcels-{uuid4().hex[:8]}"
    parcels = [f"{order_id}-parcel-{number}" for number in (1, 2, 3)]
    async with build_worker(client, carrier):
        handle = await client.start_workflow(ShipmentWorkflow.run, parcels, id=order_id, task_queue=TASK_QUEUE)
        while len(carrier.bookings) < len(parcels):
            await asyncio.sleep(0.1)
        await client.get_workflow_handle(parcels[0]).signal(ParcelWorkflow.picked_up)
        await handle.cancel()
        with suppress(WorkflowFailureError):
            await handle.result()
        for parcel, booking in sorted(carrier.bookings.items()):
            ended = await client.get_workflow_handle(parcel).describe()
            print(f"{parcel}: {booking}, {ended.status.name if ended.status else ''}")
    await asyncio.sleep(0.1)  # the SDK's threads end: see main() in worker.py


if __name__ == "__main__":
    asyncio.run(main())
