"""`temporal workflow reset` of orders in any state, to any point, keeps stock and money correct (G3 to G7).

The run after a reset does not know the effects of the earlier run, so MongoDB has to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.service import RPCError, RPCStatusCode

from app.domain import TERMINAL, OrderStatus
from app.gateways.sandbox import records
from app.messages import ApprovalDecision
from app.names import WORKFLOW_ID_PREFIX
from app.workflows.order import OrderWorkflow
from tests.kit.faults import FaultyGateways, Pause
from tests.kit.orders import ADDRESS, CHARGING
from tests.kit.pairs import case
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import Handle, reset, reset_points

LARGE = 50_000  # needs approval
CARRIER_DOWN = {"shipping_address": {**ADDRESS, "postal_code": "99999"}}
UNSERVICEABLE: dict[str, Any] = {"shipping_address": {**ADDRESS, "postal_code": "00000"}}

Then = Callable[[Shop, Handle], Awaitable[object]]


async def _nothing(shop: Shop, handle: Handle) -> None: ...


@contextmanager
def _unless_closed() -> Iterator[None]:
    """After a reset to a late point, the workflow may end first. It then refuses a signal and a cancel."""
    try:
        yield
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise


async def _signal(shop: Shop, handle: Handle) -> None:
    with _unless_closed():
        await handle.signal(OrderWorkflow.cancel)


async def _temporal(shop: Shop, handle: Handle) -> None:
    with _unless_closed():
        await handle.cancel()


async def _api(shop: Shop, handle: Handle) -> None:
    order = await shop.orders.request_cancellation(handle.id.removeprefix(WORKFLOW_ID_PREFIX), "changed my mind")
    if order.cancellation and order.status not in TERMINAL:
        await shop.workflows.start(order)


async def _approve(shop: Shop, handle: Handle) -> None:
    await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
    await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))


AFTER_RESET: dict[str, Then] = {"nothing": _nothing, "signal": _signal, "temporal": _temporal, "api": _api}


@dataclass(frozen=True)
class State:
    """An order, the status at which its workflow is reset, and the actions that lead there."""

    status: OrderStatus
    order: dict[str, Any] = field(default_factory=dict)
    before: Then = _nothing
    at: OrderStatus | None = None
    then: Then = _nothing


STATES = {
    "completed": State(OrderStatus.COMPLETED),
    "completed, cancel refused": State(OrderStatus.COMPLETED, at=OrderStatus.COMPLETED, then=_signal),
    "approved": State(OrderStatus.COMPLETED, {"price": LARGE}, before=_approve),
    "declined": State(OrderStatus.FAILED, {"payment_method": "pm_card_declined"}),
    "unserviceable": State(OrderStatus.FAILED, UNSERVICEABLE),
    "awaiting approval": State(OrderStatus.AWAITING_APPROVAL, {"price": LARGE}),
    "charging": State(CHARGING, {"payment_method": "pm_card_outage"}),
    "shipping": State(OrderStatus.CHARGED, CARRIER_DOWN),
    "approved and shipping": State(OrderStatus.CHARGED, CARRIER_DOWN | {"price": LARGE}, before=_approve),
    "cancelled": State(OrderStatus.CANCELLED, CARRIER_DOWN, at=OrderStatus.CHARGED, then=_signal),
    "cancelled by the API": State(OrderStatus.CANCELLED, CARRIER_DOWN, at=OrderStatus.CHARGED, then=_api),
}


# Each state without a cancel, and every other one with one kind of cancel in turn. `--exhaustive` adds the others.
NOTHING, *CANCELS = AFTER_RESET
CASES = [
    case(state, after, chosen=after == NOTHING or (number % 2 == 1 and after == CANCELS[number % len(CANCELS)]))
    for number, state in enumerate(STATES)
    for after in AFTER_RESET
]


@pytest.mark.parametrize(("state", "after"), CASES)
async def test_reset_to_any_point_keeps_stock_and_money_right(
    shop: Shop, worker: None, state: str, after: str, exhaustive: bool
) -> None:
    """One order is reset to one point of its first run after the other; one that a cancel ends, to one of them.

    A normal run takes the first point and the last, and without a cancel the middle; there, `--exhaustive` takes all.
    """
    await shop.stock(available=1_000)
    first = await _reach(shop, STATES[state])
    last = len(await reset_points(first)) - 1
    middle = range(last + 1) if exhaustive else [last // 2]
    points = sorted({0, last, *(middle if after == NOTHING else [])})
    if STATES[state].status in TERMINAL or after == NOTHING:
        resets = [(first, points)]
    else:
        others = await asyncio.gather(*(_reach(shop, STATES[state]) for _ in points[1:]))
        resets = [(handle, [point]) for handle, point in zip([first, *others], points, strict=True)]
    await asyncio.gather(*(_reset(shop, handle, each, STATES[state], AFTER_RESET[after]) for handle, each in resets))
    completed = [h for h, _ in resets if (await shop.order(h)).status is OrderStatus.COMPLETED]
    assert (await shop.available(), await shop.held()) == (1_000 - len(completed), len(completed))


async def _reach(shop: Shop, state: State) -> Handle:
    handle = await shop.start({"MUG": 1}, **state.order)
    await state.before(shop, handle)
    if state.at:
        await shop.wait_for_status(handle, state.at)
        with suppress(Exception):  # a closed workflow refuses the signal
            await state.then(shop, handle)
    await shop.wait_for_status(handle, state.status)
    if state.status in TERMINAL:
        await _closed(handle)
    return handle


async def _closed(handle: Handle) -> None:
    with suppress(WorkflowFailureError):
        await handle.result()


async def _reset(shop: Shop, handle: Handle, chosen: list[int], state: State, after: Then) -> None:
    run_id = (await handle.describe()).run_id
    first_run: Handle = shop.client.get_workflow_handle_for(OrderWorkflow.run, handle.id, run_id=run_id)
    points = await reset_points(first_run)
    for point in chosen:
        await reset(first_run, points[min(point, len(points) - 1)])
        await after(shop, handle)
        if state.status in TERMINAL or after is not _nothing:
            await _check_end(shop, handle, state)
        else:  # it waits where it waited before
            await eventually(lambda: handle.query(OrderWorkflow.status), lambda told: told.status is state.status)
            assert (await shop.order(handle)).status is state.status
    if state.status not in TERMINAL and after is _nothing:  # it goes on from there
        await _api(shop, handle)
        await _check_end(shop, handle, state)


async def _check_end(shop: Shop, handle: Handle, state: State) -> None:
    await _closed(handle)
    order = await shop.wait_for_status(handle, *TERMINAL)
    assert order.status is (state.status if state.status in TERMINAL else OrderStatus.CANCELLED)
    shipped = order.status is OrderStatus.COMPLETED
    assert {record.status for record in order.steps} <= ({"done"} if shipped else {"compensated", "failed"})
    assert await shop.net_money(order.order_id) == (order.total.amount if shipped else 0)
    parcel = await records(shop.mongo).find_one({"_id": f"shipment:{order.order_id}"}) or {}
    assert parcel.get("shipped", False) - parcel.get("called_off", False) == shipped
    result = (await handle.query(OrderWorkflow.status)).status
    assert result is order.status


async def test_reset_during_compensation_completes_it(shop: Shop) -> None:
    """An attempt of the run before the reset is still running."""
    await shop.stock(available=10)
    refund = Pause()
    async with FaultyGateways(shop, RefundPayment=refund).worker():
        handle = await shop.start({"MUG": 1}, **UNSERVICEABLE)
        await refund.reached.wait()
        await reset(handle, (await reset_points(handle))[0])
        result = await handle.result()
        refund.resume.set()
    assert (result.status, result.failure_code) == (OrderStatus.FAILED, "address_unserviceable")
    assert (await shop.available(), await shop.net_money(result.order_id)) == (10, 0)
