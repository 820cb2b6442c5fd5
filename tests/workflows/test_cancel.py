"""Cancels at every stage of an order, by signal and by Temporal's own cancel (G6)."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from temporalio.client import WorkflowFailureError

from app.domain import OrderStatus
from app.workflows.order import OrderWorkflow
from tests.kit.faults import Fails, FaultyGateways, Pause
from tests.kit.orders import UNSERVICEABLE
from tests.kit.shop import Shop
from tests.kit.workflows import (
    CHARGE,
    RESERVE,
    SHIP,
    RestartableWorker,
    act_as_step_ends,
    activities_of,
    reconfigure,
    wait_for_retry_delay,
)


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_cancel_before_first_workflow_task_starts_no_step(shop: Shop, how: str) -> None:
    await shop.stock(available=10)
    handle = await shop.start()
    await (handle.signal(OrderWorkflow.cancel) if how == "signal" else handle.cancel())
    async with FaultyGateways(shop).worker():
        with suppress(WorkflowFailureError):
            await handle.result()
    assert not {RESERVE, CHARGE, SHIP} & set(await activities_of(handle))
    assert (await shop.order(handle)).status is OrderStatus.CANCELLED


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_cancel_between_retries_takes_effect_at_once(shop: Shop, worker: None, how: str) -> None:
    """Runs in real time, with the next attempt an hour away."""
    await shop.stock(available=10)
    handle = await shop.start(payment_method="pm_card_outage")
    await wait_for_retry_delay(handle)
    await reconfigure(handle, CHARGE, pause=timedelta(hours=1))
    await (handle.signal(OrderWorkflow.cancel) if how == "signal" else handle.cancel())
    await shop.wait_for_status(handle, OrderStatus.CANCELLED)
    assert (await shop.available(), await shop.held()) == (10, 0)


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_cancel_wins_over_simultaneous_decline(shop: Shop, how: str) -> None:
    """The cancel was accepted, so the order ends as cancelled."""
    await shop.stock(available=10)
    gateways = FaultyGateways(shop)
    async with RestartableWorker(gateways) as restartable:
        handle = await act_as_step_ends(
            CHARGE,
            gateways,
            restartable,
            lambda: shop.start(payment_method="pm_card_declined"),
            lambda handle: handle.signal(OrderWorkflow.cancel) if how == "signal" else handle.cancel(),
        )
        with suppress(WorkflowFailureError):
            await handle.result()
    order = await shop.order(handle)
    assert (order.status, order.failure and order.failure.code) == (OrderStatus.CANCELLED, "cancelled")
    assert (await shop.available(), await shop.held()) == (10, 0)


async def test_cancel_during_compensation_is_ignored(skipping: Shop) -> None:
    refund = Fails()
    async with FaultyGateways(skipping, RefundPayment=refund).worker():
        handle = await skipping.start(shipping_address=UNSERVICEABLE)
        await skipping.wait_for_status(handle, OrderStatus.NEEDS_ATTENTION)
        await handle.signal(OrderWorkflow.cancel)
        await handle.cancel()
        assert not (await handle.query(OrderWorkflow.status)).cancel_requested
        refund.times = 0
        result = await handle.result()
    assert (result.status, result.failure_code) == (OrderStatus.FAILED, "address_unserviceable")
    assert await skipping.net_money(result.order_id) == 0


async def test_cancel_after_shipment_is_refused(skipping: Shop) -> None:
    pause = Pause()
    async with FaultyGateways(skipping, SendConfirmation=pause).worker():
        handle = await skipping.start()
        await pause.reached.wait()
        await handle.signal(OrderWorkflow.cancel)
        await handle.cancel()
        progress = await handle.query(OrderWorkflow.status)
        assert (progress.status, progress.cancel_requested) == (OrderStatus.SHIPPED, False)
        pause.resume.set()
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert (await skipping.available(), await skipping.held()) == (8, 2)


async def test_worker_shutdown_is_not_a_cancel(shop: Shop) -> None:
    """The worker stops during a charge, with and without a grace period. Another worker continues."""
    await shop.stock(available=10)
    for grace in [timedelta(), timedelta(seconds=0.3)]:
        pause = Pause()
        gateways = FaultyGateways(shop, ChargePayment=pause)
        async with RestartableWorker(gateways) as restartable:
            restartable.start(graceful_shutdown_timeout=grace)
            handle = await shop.start({"MUG": 1})
            await pause.reached.wait()
            await restartable.stop()
            restartable.start()
            result = await handle.result()
        assert result.status is OrderStatus.COMPLETED
        assert await shop.net_money(result.order_id) == 1_000
