"""A cancel in the same workflow task as another event, with and without the SDK's single-batch flag (G3 to G6).

The flag, which the SDK will enable by default later, applies all jobs of an activation in one batch. `wait_condition`
then raises Temporal's cancel even if its condition became true in the same batch. Orders must end the same with and
without the flag: a failed order never closes as Canceled, and a cancelled order never as Completed with another status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.worker import Worker
from temporalio.worker._workflow_instance import _WorkflowLogicFlag

from app.domain import Address, OrderStatus
from app.gateways.sandbox import records
from app.messages import AddressChange, ApprovalDecision
from app.names import WORKFLOW_ID_PREFIX
from app.workflows.order import OrderWorkflow
from tests.kit.faults import FaultyGateways, Pause
from tests.kit.orders import ADDRESS
from tests.kit.pairs import case
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import (
    CHARGE,
    CONFIRM,
    REFUND,
    RELEASE,
    RESERVE,
    SHIP,
    UNSHIP,
    Handle,
    RestartableWorker,
    pending,
)

SINGLE_BATCH = _WorkflowLogicFlag.PROCESS_WORKFLOW_ACTIVATION_JOBS_AS_SINGLE_BATCH
STOCK, QUANTITY = 10, 2
LARGE = 50_000  # needs approval
DECLINED: dict[str, Any] = {"payment_method": "pm_card_declined"}
UNSERVICEABLE: dict[str, Any] = {"shipping_address": {**ADDRESS, "postal_code": "00000"}}
COMPLETED, FAILED, CANCELLED = OrderStatus.COMPLETED, OrderStatus.FAILED, OrderStatus.CANCELLED


class SingleBatchGateways(FaultyGateways):
    def __init__(self, shop: Shop, *, single_batch: bool) -> None:
        super().__init__(shop)
        self._single_batch = single_batch

    def worker(self, **changes: Any) -> Worker:
        # The time that a workflow task waits for a stopped worker, 10 s by default.
        changes["sticky_queue_schedule_to_start_timeout"] = timedelta(seconds=0.5)
        worker = super().worker(**changes)
        if worker._workflow_worker is not None:
            worker._workflow_worker._set_default_workflow_logic_flag(SINGLE_BATCH, enabled=self._single_batch)
        return worker


class SceneRun:
    """One order, its activity worker and workflow worker, and the kind of cancel."""

    def __init__(self, shop: Shop, gateways: SingleBatchGateways, worker: RestartableWorker, how: str) -> None:
        self.shop, self.gateways, self._worker, self._how = shop, gateways, worker, how
        self.closes_as_cancelled = how == "temporal"
        self._updates: list[asyncio.Task[bool]] = []

    async def start(self, **order: Any) -> Handle:
        await self.shop.stock(available=STOCK, price=order.get("price", 1_000))
        return await self.shop.start({"MUG": QUANTITY}, **order)

    def pause(self, activity: str) -> Pause:
        """Block the next call of an activity."""
        pause = self.gateways.faults[activity] = Pause()
        return pause

    @asynccontextmanager
    async def one_workflow_task(self, handle: Handle | None = None) -> AsyncIterator[None]:
        """Deliver all events of the `async with` block to the workflow in one workflow task."""

        async def is_idle() -> bool:  # an interrupted workflow task would cost 10 s
            assert handle is not None
            raw = (await handle.describe()).raw_description
            paused = all(each.activity_type.name in self.gateways.faults for each in raw.pending_activities)
            return paused and not raw.HasField("pending_workflow_task")

        if handle is not None:
            await eventually(is_idle)
        await self._worker.stop()
        yield
        self._worker.start(activities=[])

    async def cancel(self, handle: Handle) -> None:
        await (handle.signal(OrderWorkflow.cancel) if self._how == "signal" else handle.cancel())

    async def cancel_the_other_way(self, handle: Handle) -> None:
        """Send the other kind of cancel first, so that it takes effect."""
        self.closes_as_cancelled = self._how == "signal"
        await (handle.cancel() if self._how == "signal" else handle.signal(OrderWorkflow.cancel))

    async def cancel_as_activity_ends(self, activity: str, handle: Handle, pause: Pause) -> Handle:
        async def is_pending() -> bool:
            return any(each.activity_type.name == activity for each in await pending(handle))

        await pause.reached.wait()
        async with self.one_workflow_task(handle):
            await self.cancel(handle)
            pause.resume.set()
            await eventually(is_pending, lambda is_pending: not is_pending)
        return handle

    async def change_address(self, handle: Handle) -> None:
        """Send the update. Its handler runs until the activity ends."""
        order_id = handle.id.removeprefix(WORKFLOW_ID_PREFIX)
        address = Address.model_validate({**ADDRESS, "city": "Bath"})
        change = await self.shop.orders.propose_address(order_id, address)
        assert isinstance(change, AddressChange)
        update = handle.execute_update(OrderWorkflow.change_shipping_address, change)
        self._updates.append(asyncio.create_task(update))

    async def updates_answered(self) -> None:
        with suppress(WorkflowUpdateFailedError):  # rejected, because the cancel came first
            await asyncio.gather(*self._updates)


Scene = Callable[[SceneRun], Awaitable[Handle]]


def end_of(activity: str, **order: Any) -> Scene:
    """A cancel in the same workflow task as the end of an activity."""

    async def scene(run: SceneRun) -> Handle:
        pause = run.pause(activity)
        return await run.cancel_as_activity_ends(activity, await run.start(**order), pause)

    return scene


async def _before_first_task(run: SceneRun) -> Handle:
    async with run.one_workflow_task():
        handle = await run.start()
        await run.cancel(handle)
    return handle


async def _with_last_write(run: SceneRun) -> Handle:
    release = run.pause(RELEASE)
    handle = await run.start(**DECLINED)
    await release.reached.wait()
    write = run.pause("UpdateOrderStatus")  # the next update, which writes `failed`
    release.resume.set()
    return await run.cancel_as_activity_ends("UpdateOrderStatus", handle, write)


async def _as_declined_order_is_compensated(run: SceneRun) -> Handle:
    refund = run.pause(REFUND)
    handle = await run.start(**UNSERVICEABLE)
    await refund.reached.wait()
    await run.cancel(handle)
    refund.resume.set()
    return handle


async def _second_cancel(run: SceneRun) -> Handle:
    """A second cancel in the task in which a compensation ends that the first cancel caused."""
    ship, refund = run.pause(SHIP), run.pause(REFUND)
    handle = await run.start()
    await ship.reached.wait()
    await run.cancel_the_other_way(handle)
    return await run.cancel_as_activity_ends(REFUND, handle, refund)


def decided(*, approved: bool, cancel_first: bool = False) -> Scene:
    async def scene(run: SceneRun) -> Handle:
        handle = await run.start(price=LARGE)
        await run.shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
        async with run.one_workflow_task(handle):
            if cancel_first:
                await run.cancel(handle)
            await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=approved))
            if not cancel_first:
                await run.cancel(handle)
        return handle

    return scene


async def _with_address_change(run: SceneRun) -> Handle:
    charge = run.pause(CHARGE)
    handle = await run.start()
    await charge.reached.wait()
    async with run.one_workflow_task(handle):
        await run.change_address(handle)
        await run.cancel(handle)
    return handle


async def _with_end_of_address_change(run: SceneRun) -> Handle:
    charge, change = run.pause(CHARGE), run.pause("ChangeShippingAddress")
    handle = await run.start()
    await charge.reached.wait()
    await run.change_address(handle)
    return await run.cancel_as_activity_ends("ChangeShippingAddress", handle, change)


async def _with_address_change_of_failed_order(run: SceneRun) -> Handle:
    """The saga has ended, and the workflow waits only for its update handler."""
    charge, change = run.pause(CHARGE), run.pause("ChangeShippingAddress")
    handle = await run.start(**DECLINED)
    await charge.reached.wait()
    await run.change_address(handle)
    await change.reached.wait()
    charge.resume.set()
    await run.shop.wait_for_status(handle, OrderStatus.FAILED)
    return await run.cancel_as_activity_ends("ChangeShippingAddress", handle, change)


SCENES: dict[str, tuple[Scene, set[OrderStatus]]] = {
    "before the first workflow task": (_before_first_task, {CANCELLED}),
    "with a reservation": (end_of(RESERVE), {CANCELLED}),
    "with a decline": (end_of(CHARGE, **DECLINED), {CANCELLED}),
    "with a charge": (end_of(CHARGE), {CANCELLED}),
    "with a shipment": (end_of(SHIP), {COMPLETED}),
    "with the confirmation": (end_of(CONFIRM), {COMPLETED}),
    "with the write of a decline": (end_of("UpdateOrderStatus", **DECLINED), {FAILED}),
    "with the first compensation": (end_of(UNSHIP, **DECLINED), {FAILED}),
    "with the last compensation": (end_of(RELEASE, **DECLINED), {FAILED}),
    "with the last write": (_with_last_write, {FAILED}),
    "as a declined order is compensated": (_as_declined_order_is_compensated, {FAILED}),
    "with a compensation of a cancelled order": (_second_cancel, {CANCELLED}),
    "with an approval": (decided(approved=True), {CANCELLED}),
    "before an approval": (decided(approved=True, cancel_first=True), {CANCELLED}),
    # Both are correct: without the flag, a signal is applied before Temporal's cancel, in any sequence of arrival.
    "with a rejection": (decided(approved=False), {CANCELLED, FAILED}),
    "with an address change": (_with_address_change, {CANCELLED}),
    "with the end of an address change": (_with_end_of_address_change, {CANCELLED}),
    "with an address change of a failed order": (_with_address_change_of_failed_order, {FAILED}),
}


# A normal run has each scene once, with the kinds of cancel and the flag in turn; `--exhaustive` has every combination.
WAYS = [("signal", True), ("temporal", False), ("signal", False), ("temporal", True)]
CASES = [
    case(scene, *way, chosen=way == WAYS[number % len(WAYS)]) for number, scene in enumerate(SCENES) for way in WAYS
]


@pytest.fixture
async def run(shop: Shop, how: str, single_batch: bool) -> AsyncIterator[SceneRun]:
    gateways = SingleBatchGateways(shop, single_batch=single_batch)
    async with RestartableWorker(gateways) as worker:
        worker.start(workflows=[])
        worker.start(activities=[])
        yield SceneRun(shop, gateways, worker, how)


@pytest.mark.parametrize(("scene", "how", "single_batch"), CASES)
async def test_cancel_ends_the_same_with_all_jobs_in_one_batch(run: SceneRun, single_batch: bool, scene: str) -> None:
    run_scene, statuses = SCENES[scene]
    async with asyncio.timeout(30):
        handle = await run_scene(run)
        with suppress(WorkflowFailureError):
            await handle.result()
        await run.updates_answered()

    order = await run.shop.order(handle)
    assert order.status in statuses
    if order.status is CANCELLED:
        assert order.failure is not None
        assert order.failure.code == "cancelled"

    description = await handle.describe()
    if order.status is CANCELLED and run.closes_as_cancelled:
        assert description.status is WorkflowExecutionStatus.CANCELED
    else:
        assert description.status is WorkflowExecutionStatus.COMPLETED
        assert (await handle.result()).status is order.status
    progress = await handle.query(OrderWorkflow.status)
    assert (progress.status, progress.cancel_requested) == (order.status, order.status is CANCELLED)

    completed = order.status is COMPLETED
    assert {record.status for record in order.steps} <= ({"done"} if completed else {"compensated", "failed"})
    held = QUANTITY if completed else 0
    assert (await run.shop.available(), await run.shop.held()) == (STOCK - held, held)
    assert await run.shop.net_money(order.order_id) == (order.total.amount if completed else 0)
    parcel = await records(run.shop.mongo).find_one({"_id": f"shipment:{order.order_id}"}) or {}
    assert parcel.get("shipped", False) - parcel.get("called_off", False) == completed
    await _check_history(handle, single_batch=single_batch)


async def _check_history(handle: Handle, *, single_batch: bool) -> None:
    """Check that no workflow task failed, and that the flag was enabled if requested."""
    history = await handle.fetch_history()
    failed = [e for e in history.events if e.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED]
    assert not failed, failed[0].workflow_task_failed_event_attributes.failure.message
    metadata = [event.workflow_task_completed_event_attributes.sdk_metadata for event in history.events]
    flags = {flag for each in metadata for flag in each.lang_used_flags}
    assert (SINGLE_BATCH in flags) is single_batch
