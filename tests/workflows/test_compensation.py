"""A failed step compensates all steps. Failed compensations are retried (G4)."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.testing import TimeSkipper

from app.domain import OrderStatus
from app.names import WORKFLOW_ID_PREFIX
from app.workflows.order import OrderWorkflow
from app.workflows.steps import COMPENSATABLE_STEPS
from tests.kit.faults import Fails, FaultyGateways, Pause
from tests.kit.orders import UNSERVICEABLE, steps_of
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import (
    ACTIVITIES,
    CHARGE,
    COMPENSATIONS,
    REFUND,
    RELEASE,
    RESERVE,
    SHIP,
    UNSHIP,
    Handle,
    activities_of,
)

OPERATION_FAILED = 96  # a MongoDB error code for which transactions are not retried


async def status_of(handle: Handle) -> OrderStatus:
    return (await handle.query(OrderWorkflow.status)).status


@pytest.mark.parametrize(
    ("changes", "code", "last"),
    [
        ({"lines": {"MUG": 11}}, "out_of_stock", RESERVE),
        ({"payment_method": "pm_card_declined"}, "payment_declined", CHARGE),
        ({"shipping_address": UNSERVICEABLE}, "address_unserviceable", SHIP),
    ],
    ids=["out of stock", "declined", "unserviceable"],
)
async def test_failed_step_compensates_every_step_in_reverse(
    skipping: Shop, worker: None, changes: dict[str, Any], code: str, last: str
) -> None:
    handle = await skipping.start(price=100, **changes)
    result = await handle.result()
    assert (result.status, result.failure_code) == (OrderStatus.FAILED, code)
    assert await activities_of(handle) == [*ACTIVITIES[: ACTIVITIES.index(last) + 1], *COMPENSATIONS]
    assert (await skipping.available(), await skipping.held()) == (10, 0)
    assert await skipping.net_money(result.order_id) == 0


async def test_failing_compensation_needs_attention_and_recovers(shop: Shop, skipper: TimeSkipper) -> None:
    """MongoDB refuses the release, while the other steps are compensated."""
    await shop.stock(available=10)
    skipping = shop.with_client(skipper.client)
    pause = Pause()
    async with FaultyGateways(skipping, CreateShipment=pause).worker():
        handle = await skipping.start(shipping_address=UNSERVICEABLE)
        await pause.reached.wait()
        await _refuse_releases(shop, True)
        pause.resume.set()

        order = await shop.wait_for_status(handle, OrderStatus.NEEDS_ATTENTION)
        assert await shop.net_money(order.order_id) == 0
        steps = steps_of(order)
        assert (steps.pop("reserve_inventory"), steps.pop("create_shipment")) == ("done", "failed")
        assert set(steps.values()) == {"compensated"}
        # MongoDB has the status shortly before the workflow does.
        await eventually(lambda: status_of(handle), lambda status: status is OrderStatus.NEEDS_ATTENTION)
        progress = await handle.query(OrderWorkflow.status)
        assert progress.compensated == [step.name for step in reversed(COMPENSATABLE_STEPS[1:])]
        await _refuse_releases(shop, False)
        result = await handle.result()
    assert result.status is OrderStatus.FAILED
    assert (await shop.available(), await shop.held()) == (10, 0)
    assert steps_of(await shop.order(handle))["reserve_inventory"] == "compensated"


async def _refuse_releases(shop: Shop, refuse: bool) -> None:
    """Make mongod refuse reads of this test's inventory, with a fail point."""
    database = shop.mongo.database.name
    only = {"failCommands": ["find"], "appName": database, "namespace": f"{database}.inventory"}
    await shop.mongo.client.admin.command(
        {
            "configureFailPoint": "failCommand",
            "mode": "alwaysOn" if refuse else "off",
            "data": {**only, "errorCode": OPERATION_FAILED},
        }
    )


async def test_failing_compensations_recover_independently(skipping: Shop) -> None:
    """All three fail; each recovers without waiting for the others."""
    compensations = {name: Fails() for name in [RELEASE, REFUND, UNSHIP]}
    async with FaultyGateways(skipping, **compensations).worker():
        handle = await skipping.start(shipping_address=UNSERVICEABLE)
        await skipping.wait_for_status(handle, OrderStatus.NEEDS_ATTENTION)
        compensations[RELEASE].times = 0
        await eventually(skipping.held, lambda held: held == 0)
        compensations[UNSHIP].times = compensations[REFUND].times = 0
        assert (await handle.result()).status is OrderStatus.FAILED
    assert await skipping.net_money(handle.id.removeprefix(WORKFLOW_ID_PREFIX)) == 0
