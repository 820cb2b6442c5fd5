"""A cancel of the order reaches the workflow of each parcel, and the order ends after each one was compensated."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from examples.parcels import Carrier, ParcelWorkflow, ShipmentWorkflow, build_worker
from tests.kit.waiting import eventually
from tests.replay.histories import replayer

Handle = WorkflowHandle[ShipmentWorkflow, dict[str, str]]


class FaultyCarrier(Carrier):
    """Refuses parcel 2, or holds the activity `held` until `resume` is set."""

    def __init__(self, *, refuses: bool = False, held: str = "") -> None:
        super().__init__()
        self._refuses = refuses
        self._held = held
        self.waiting: set[str] = set()
        self.resume = asyncio.Event()

    @activity.defn
    async def book(self, parcel: str) -> None:
        if self._refuses and parcel.endswith("-2"):
            raise ApplicationError("refused", non_retryable=True, category=ApplicationErrorCategory.BENIGN)
        await self._wait("book", parcel)
        await super().book(parcel)

    @activity.defn
    async def cancel_booking(self, parcel: str) -> None:
        await self._wait("cancel_booking", parcel)
        await super().cancel_booking(parcel)

    async def _wait(self, name: str, parcel: str) -> None:
        if name == self._held:
            self.waiting.add(parcel)
            await self.resume.wait()

    async def wait_for_bookings(self, number: int) -> None:
        async def bookings() -> dict[str, str]:
            return self.bookings

        await eventually(bookings, lambda bookings: len(bookings) == number)

    async def wait_until_all_are_held(self) -> None:
        async def waiting() -> set[str]:
            return self.waiting

        await eventually(waiting, lambda parcels: len(parcels) == 3)


async def start(client: Client, task_queue: str, order_id: str = "") -> Handle:
    order_id = order_id or task_queue
    parcels = [f"{order_id}-parcel-{number}" for number in (1, 2, 3)]
    return await client.start_workflow(ShipmentWorkflow.run, parcels, id=order_id, task_queue=task_queue)


async def pick_up(client: Client, order_id: str, *numbers: int) -> None:
    for number in numbers:
        await client.get_workflow_handle(f"{order_id}-parcel-{number}").signal(ParcelWorkflow.picked_up)


async def statuses_of_parcels(client: Client, order_id: str) -> list[WorkflowExecutionStatus | None]:
    return [(await client.get_workflow_handle(f"{order_id}-parcel-{n}").describe()).status for n in (1, 2, 3)]


async def count(handle: WorkflowHandle[Any, Any], event_type: EventType.ValueType) -> int:
    return sum(event.event_type == event_type for event in (await handle.fetch_history()).events)


async def test_pick_up_of_every_parcel_completes_order(client: Client, task_queue: str) -> None:
    carrier = FaultyCarrier()
    async with build_worker(client, carrier, task_queue):
        handle = await start(client, task_queue)
        await carrier.wait_for_bookings(3)
        await pick_up(client, task_queue, 1, 2, 3)
        assert await handle.result() == {f"{task_queue}-parcel-{number}": "picked up" for number in (1, 2, 3)}


async def test_refused_parcel_fails_alone(client: Client, task_queue: str) -> None:
    carrier = FaultyCarrier(refuses=True)
    async with build_worker(client, carrier, task_queue):
        handle = await start(client, task_queue)
        await carrier.wait_for_bookings(3)  # one of them is the fence of the refused parcel
        await pick_up(client, task_queue, 1, 3)
        assert [*(await handle.result()).values()] == ["picked up", "failed", "picked up"]
    assert [*dict(sorted(carrier.bookings.items())).values()] == ["booked", "cancelled", "booked"]


async def test_cancel_order_compensates_each_parcel_before_order_ends(client: Client, task_queue: str) -> None:
    carrier = FaultyCarrier(held="cancel_booking")
    async with build_worker(client, carrier, task_queue):
        handle = await start(client, task_queue)
        await carrier.wait_for_bookings(3)
        await handle.cancel()
        await carrier.wait_until_all_are_held()
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
        carrier.resume.set()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        assert await statuses_of_parcels(client, task_queue) == [WorkflowExecutionStatus.CANCELED] * 3
        assert [*carrier.bookings.values()] == ["cancelled"] * 3
    assert await count(handle, EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED) == 3
    for workflow_class, workflow_id in ((ShipmentWorkflow, task_queue), (ParcelWorkflow, f"{task_queue}-parcel-1")):
        history = await client.get_workflow_handle(workflow_id).fetch_history()
        await replayer(workflow_class).replay_workflow(history)


async def test_cancel_order_while_parcels_are_booked_keeps_only_the_one_picked_up(
    client: Client, task_queue: str
) -> None:
    """The bookings succeed although they were cancelled; the cancel is not forgotten."""
    carrier = FaultyCarrier(held="book")
    async with build_worker(client, carrier, task_queue):
        handle = await start(client, task_queue)
        await carrier.wait_until_all_are_held()
        await pick_up(client, task_queue, 1)
        await handle.cancel()
        requested = EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED
        for number in (1, 2, 3):
            parcel = client.get_workflow_handle(f"{task_queue}-parcel-{number}")
            await eventually(partial(count, parcel, requested))
        carrier.resume.set()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        completed, cancelled = WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.CANCELED
        assert await statuses_of_parcels(client, task_queue) == [completed, cancelled, cancelled]
    assert [*dict(sorted(carrier.bookings.items())).values()] == ["booked", "cancelled", "cancelled"]


async def test_terminate_order_compensates_each_parcel(client: Client, task_queue: str) -> None:
    carrier = FaultyCarrier()
    async with build_worker(client, carrier, task_queue):
        handle = await start(client, task_queue)
        await carrier.wait_for_bookings(3)
        await handle.terminate()
        cancelled = [WorkflowExecutionStatus.CANCELED] * 3
        await eventually(lambda: statuses_of_parcels(client, task_queue), lambda statuses: statuses == cancelled)
    assert [*carrier.bookings.values()] == ["cancelled"] * 3


async def test_cancel_order_as_it_starts_leaves_no_parcel_behind(client: Client, task_queue: str) -> None:
    """The cancels come before the first workflow task, while the children are started, or soon after."""
    carrier = FaultyCarrier()
    early = await start(client, task_queue, f"{task_queue}-0")
    await early.cancel()

    async def start_and_cancel(number: int) -> Handle:
        handle = await start(client, task_queue, f"{task_queue}-{number}")
        started = EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED
        if number % 2:
            await eventually(partial(count, handle, started))
        await handle.cancel()
        return handle

    async with build_worker(client, carrier, task_queue):
        for handle in [early, *await asyncio.gather(*(start_and_cancel(number) for number in range(1, 3)))]:
            with pytest.raises(WorkflowFailureError):
                await handle.result()
            open_parcels = WorkflowExecutionStatus.RUNNING
            assert open_parcels not in await statuses_of_parcels(client, handle.id)
    assert {*carrier.bookings.values()} <= {"cancelled"}
