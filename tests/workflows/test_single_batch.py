"""A cancel that the workflow learns of together with something else, also as the next SDK will tell of it (G3 to G6).

The SDK has a flag, off by default until older workers are gone, that hands all jobs of an activation to the workflow at
once; `wait_condition` then raises Temporal's cancel in every task whose condition came true with it. Orders end alike
with it and without: a failed order never closes as Canceled, nor a cancelled one as Completed with another status.
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
from app.messages import AddressChange, ApprovalDecision
from app.workflows.order import OrderWorkflow
from tests.kit.faults import FaultyGateways, Pause
from tests.kit.orders import ADDRESS
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
LARGE = 50_000  # needs an approval
DECLINED: dict[str, Any] = {"payment_method": "pm_card_declined"}
UNSERVICEABLE: dict[str, Any] = {"shipping_address": {**ADDRESS, "postal_code": "00000"}}
COMPLETED, FAILED, CANCELLED = OrderStatus.COMPLETED, OrderStatus.FAILED, OrderStatus.CANCELLED


class Gateways(FaultyGateways):
    def __init__(self, shop: Shop, *, single_batch: bool) -> None:
        super().__init__(shop)
        self._single_batch = single_batch

    def worker(self, **changes: Any) -> Worker:
        # A stopped worker's tasks wait for it for so long: 10 s by default.
        changes["sticky_queue_schedule_to_start_timeout"] = timedelta(seconds=0.5)
        worker = super().worker(**changes)
        if worker._workflow_worker is not None:
            worker._workflow_worker._set_default_workflow_logic_flag(SINGLE_BATCH, enabled=self._single_batch)
        return worker


class Trial:
    """One order, its workers (one for activities, one for workflows), and the kind of cancel."""

    def __init__(self, shop: Shop, gateways: Gateways, worker: RestartableWorker, how: str) -> None:
        self.shop, self.gateways, self._worker, self._how = shop, gateways, worker, how
        self.closes_as_cancelled = how == "temporal"
        self._updates: list[asyncio.Task[bool]] = []

    async def start(self, **order: Any) -> Handle:
        await self.shop.stock(available=STOCK, price=order.get("price", 1_000))
        return await self.shop.start({"MUG": QUANTITY}, **order)

    def pause(self, activity: str) -> Pause:
        """Let the next call of an activity wait."""
        pause = self.gateways.faults[activity] = Pause()
        return pause

    @asynccontextmanager
    async def one_workflow_task(self, handle: Handle | None = None) -> AsyncIterator[None]:
        """The workflow learns of all that happens here in one workflow task."""

        async def waits() -> bool:  # for a paused activity or a person; a task that is cut off would cost 10 s
            assert handle is not None
            raw = (await handle.describe()).raw_description
            paused = all(each.activity_type.name in self.gateways.faults for each in raw.pending_activities)
            return paused and not raw.HasField("pending_workflow_task")

        if handle is not None:
            await eventually(waits)
        await self._worker.stop()
        yield
        self._worker.start(activities=[])

    async def cancel(self, handle: Handle) -> None:
        await (handle.signal(OrderWorkflow.cancel) if self._how == "signal" else handle.cancel())

    async def cancel_otherwise(self, handle: Handle) -> None:
        """The cancel that counts, so that the other comes second."""
        self.closes_as_cancelled = self._how == "signal"
        await (handle.cancel() if self._how == "signal" else handle.signal(OrderWorkflow.cancel))

    async def cancel_at_the_end_of(self, activity: str, handle: Handle, pause: Pause) -> Handle:
        async def is_pending() -> bool:
            return any(each.activity_type.name == activity for each in await pending(handle))

        await pause.reached.wait()
        async with self.one_workflow_task(handle):
            await self.cancel(handle)
            pause.go_on.set()
            await eventually(is_pending, lambda is_pending: not is_pending)
        return handle

    async def change_address(self, handle: Handle) -> None:
        """Send the update; its handler runs until the activity ends."""
        order_id = handle.id.removeprefix("order-")
        address = Address.model_validate({**ADDRESS, "city": "Bath"})
        change = await self.shop.orders.propose_address(order_id, address)
        assert isinstance(change, AddressChange)
        update = handle.execute_update(OrderWorkflow.change_shipping_address, change)
        self._updates.append(asyncio.create_task(update))

    async def updates_answered(self) -> None:
        with suppress(WorkflowUpdateFailedError):  # rejected: the cancel came first
            await asyncio.gather(*self._updates)


Scene = Callable[[Trial], Awaitable[Handle]]


def end_of(activity: str, **order: Any) -> Scene:
    """Cancelled together with the end of an activity."""

    async def play(trial: Trial) -> Handle:
        pause = trial.pause(activity)
        return await trial.cancel_at_the_end_of(activity, await trial.start(**order), pause)

    return play


async def _before_first_task(trial: Trial) -> Handle:
    async with trial.one_workflow_task():
        handle = await trial.start()
        await trial.cancel(handle)
    return handle


async def _with_last_write(trial: Trial) -> Handle:
    release = trial.pause(RELEASE)
    handle = await trial.start(**DECLINED)
    await release.reached.wait()
    write = trial.pause("UpdateOrderStatus")  # the next one, of `failed`
    release.go_on.set()
    return await trial.cancel_at_the_end_of("UpdateOrderStatus", handle, write)


async def _as_declined_order_is_compensated(trial: Trial) -> Handle:
    refund = trial.pause(REFUND)
    handle = await trial.start(**UNSERVICEABLE)
    await refund.reached.wait()
    await trial.cancel(handle)
    refund.go_on.set()
    return handle


async def _second_cancel(trial: Trial) -> Handle:
    """Together with the end of a compensation that the first cancel, of the other kind, has caused."""
    ship, refund = trial.pause(SHIP), trial.pause(REFUND)
    handle = await trial.start()
    await ship.reached.wait()
    await trial.cancel_otherwise(handle)
    return await trial.cancel_at_the_end_of(REFUND, handle, refund)


def decided(*, approved: bool, cancel_first: bool = False) -> Scene:
    async def play(trial: Trial) -> Handle:
        handle = await trial.start(price=LARGE)
        await trial.shop.reaches(handle, OrderStatus.AWAITING_APPROVAL)
        async with trial.one_workflow_task(handle):
            if cancel_first:
                await trial.cancel(handle)
            await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=approved))
            if not cancel_first:
                await trial.cancel(handle)
        return handle

    return play


async def _with_address_change(trial: Trial) -> Handle:
    charge = trial.pause(CHARGE)
    handle = await trial.start()
    await charge.reached.wait()
    async with trial.one_workflow_task(handle):
        await trial.change_address(handle)
        await trial.cancel(handle)
    return handle


async def _with_end_of_address_change(trial: Trial) -> Handle:
    charge, change = trial.pause(CHARGE), trial.pause("ChangeShippingAddress")
    handle = await trial.start()
    await charge.reached.wait()
    await trial.change_address(handle)
    return await trial.cancel_at_the_end_of("ChangeShippingAddress", handle, change)


async def _with_address_change_of_failed_order(trial: Trial) -> Handle:
    """The saga is done, and the workflow waits for nothing but its handler."""
    charge, change = trial.pause(CHARGE), trial.pause("ChangeShippingAddress")
    handle = await trial.start(**DECLINED)
    await charge.reached.wait()
    await trial.change_address(handle)
    await change.reached.wait()
    charge.go_on.set()
    await trial.shop.reaches(handle, OrderStatus.FAILED)
    return await trial.cancel_at_the_end_of("ChangeShippingAddress", handle, change)


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
    # Both are right: without the flag, a signal counts before Temporal's cancel, whichever came first.
    "with a rejection": (decided(approved=False), {CANCELLED, FAILED}),
    "with an address change": (_with_address_change, {CANCELLED}),
    "with the end of an address change": (_with_end_of_address_change, {CANCELLED}),
    "with an address change of a failed order": (_with_address_change_of_failed_order, {FAILED}),
}


@pytest.fixture(params=["signal", "temporal"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["as now", "single batch"])
def single_batch(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
async def trial(shop: Shop, how: str, single_batch: bool) -> AsyncIterator[Trial]:
    gateways = Gateways(shop, single_batch=single_batch)
    async with RestartableWorker(gateways) as worker:
        worker.start(workflows=[])
        worker.start(activities=[])
        yield Trial(shop, gateways, worker, how)


@pytest.mark.parametrize("scene", SCENES)
async def test_cancel_ends_the_same_with_all_jobs_in_one_batch(trial: Trial, single_batch: bool, scene: str) -> None:
    play, statuses = SCENES[scene]
    async with asyncio.timeout(30):
        handle = await play(trial)
        with suppress(WorkflowFailureError):
            await handle.result()
        await trial.updates_answered()

    order = await trial.shop.order(handle)
    assert order.status in statuses
    if order.status is CANCELLED:
        assert order.failure is not None
        assert order.failure.code == "cancelled"

    description = await handle.describe()
    if order.status is CANCELLED and trial.closes_as_cancelled:
        assert description.status is WorkflowExecutionStatus.CANCELED
    else:
        assert description.status is WorkflowExecutionStatus.COMPLETED
        assert (await handle.result()).status is order.status
    progress = await handle.query(OrderWorkflow.status)
    assert (progress.status, progress.cancel_requested) == (order.status, order.status is CANCELLED)

    completed = order.status is COMPLETED
    assert {record.status for record in order.steps} <= ({"done"} if completed else {"compensated", "failed"})
    held = QUANTITY if completed else 0
    assert (await trial.shop.available(), await trial.shop.held()) == (STOCK - held, held)
    assert await trial.shop.net_money(order.order_id) == (order.total.amount if completed else 0)
    parcel = await trial.shop.mongo.sandbox.find_one({"_id": f"shipment:{order.order_id}"}) or {}
    assert parcel.get("shipped", False) - parcel.get("called_off", False) == completed
    await _check_history(handle, single_batch=single_batch)


async def _check_history(handle: Handle, *, single_batch: bool) -> None:
    """No workflow task failed, and the flag was in force if it was asked for."""
    history = await handle.fetch_history()
    failed = [e for e in history.events if e.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED]
    assert not failed, failed[0].workflow_task_failed_event_attributes.failure.message
    metadata = [event.workflow_task_completed_event_attributes.sdk_metadata for event in history.events]
    flags = {flag for each in metadata for flag in each.lang_used_flags}
    assert (SINGLE_BATCH in flags) is single_batch
