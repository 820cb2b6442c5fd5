"""Large orders wait for approval."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowFailureError

from app.domain import OrderStatus
from app.messages import ApprovalDecision
from app.workflows.order import OrderWorkflow
from tests.kit.faults import FaultyGateways, Pause
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import COMPENSATIONS, Handle, activities_of

LARGE = 50_000  # needs approval


@pytest.fixture
async def awaiting(shop: Shop, worker: None) -> Handle:
    """The workflow of a large order that waits for approval, in real time."""
    await shop.stock(available=10)
    handle = await shop.start({"MUG": 1}, price=LARGE)
    await shop.wait_for_status(handle, OrderStatus.AWAITING_APPROVAL)
    return handle


async def test_approved_order_completes(awaiting: Handle) -> None:
    await eventually(lambda: awaiting.query(OrderWorkflow.status), lambda progress: progress.waiting_for == "approval")
    await awaiting.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
    assert (await awaiting.result()).status is OrderStatus.COMPLETED
    progress = await awaiting.query(OrderWorkflow.status)
    assert (progress.waiting_for, progress.approved) == (None, True)


async def test_rejected_order_starts_no_step(shop: Shop, awaiting: Handle) -> None:
    await awaiting.signal(OrderWorkflow.approve, ApprovalDecision(approved=False))
    result = await awaiting.result()
    assert (result.status, result.failure_code) == (OrderStatus.FAILED, "not_approved")
    order = await shop.order(awaiting)
    assert order.failure is not None
    assert order.failure.message == "not approved"
    assert await activities_of(awaiting) == COMPENSATIONS
    assert (await shop.available(), await shop.held()) == (10, 0)


async def test_first_approval_decision_counts(shop: Shop) -> None:
    await shop.stock()
    handle = await shop.start({"MUG": 1}, price=LARGE)
    await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=True))
    await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=False))
    async with FaultyGateways(shop).worker():  # the first workflow task delivers both signals
        assert (await handle.result()).status is OrderStatus.COMPLETED


async def test_approval_of_order_without_need_is_ignored(shop: Shop) -> None:
    await shop.stock()
    pause = Pause()
    async with FaultyGateways(shop, ChargePayment=pause).worker():
        handle = await shop.start()
        await pause.reached.wait()
        await handle.signal(OrderWorkflow.approve, ApprovalDecision(approved=False))
        assert (await handle.query(OrderWorkflow.status)).approved is None
        pause.resume.set()
        assert (await handle.result()).status is OrderStatus.COMPLETED


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_cancel_while_awaiting_approval_starts_no_step(shop: Shop, awaiting: Handle, how: str) -> None:
    if how == "signal":
        await awaiting.signal(OrderWorkflow.cancel)
        assert (await awaiting.result()).status is OrderStatus.CANCELLED
        order = await shop.order(awaiting)
        assert order.failure is not None
        assert order.failure.message == "cancelled"
    else:
        await awaiting.cancel()
        with pytest.raises(WorkflowFailureError):
            await awaiting.result()
        assert (await shop.order(awaiting)).status is OrderStatus.CANCELLED
    assert await activities_of(awaiting) == COMPENSATIONS
    assert (await awaiting.query(OrderWorkflow.status)).waiting_for is None
