"""Changes of the shipping address before and after the charge."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ActivityError

from app.domain import Address, OrderStatus
from app.messages import AddressChange
from app.names import WORKFLOW_ID_PREFIX
from app.workflows.order import OrderWorkflow
from tests.kit.faults import Fails, FaultyGateways, Pause
from tests.kit.orders import ADDRESS
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import Handle, activities_of


async def propose(shop: Shop, handle: Handle, city: str) -> AddressChange:
    address = Address.model_validate({**ADDRESS, "city": city})
    change = await shop.orders.propose_address(handle.id.removeprefix(WORKFLOW_ID_PREFIX), address)
    assert change is not None
    return change


async def test_address_change_before_charge_is_applied_and_after_it_rejected(shop: Shop) -> None:
    await shop.stock()
    charge, ship = Pause(), Pause()
    async with FaultyGateways(shop, ChargePayment=charge, CreateShipment=ship).worker():
        handle = await shop.start()
        await charge.reached.wait()
        late = await propose(shop, handle, "Leeds")
        assert await handle.execute_update(OrderWorkflow.change_shipping_address, await propose(shop, handle, "Bath"))
        charge.resume.set()
        await ship.reached.wait()
        with pytest.raises(WorkflowUpdateFailedError, match="update failed"):
            await handle.execute_update(OrderWorkflow.change_shipping_address, late)
        assert await shop.orders.propose_address(late.order_id, Address.model_validate(ADDRESS)) is None
        ship.resume.set()
        await handle.result()
    assert (await shop.order(handle)).shipping_address.city == "Bath"


async def test_address_change_that_loses_to_charge_is_not_applied(shop: Shop) -> None:
    """The workflow accepts the change during the charge, but MongoDB delays its write until after the charge."""
    await shop.stock()
    charge, change_held = Pause(), Pause()
    gateways = FaultyGateways(shop, ChargePayment=charge, ChangeShippingAddress=change_held)
    async with gateways.worker():
        handle = await shop.start()
        await charge.reached.wait()
        change = await propose(shop, handle, "York")
        update = asyncio.create_task(handle.execute_update(OrderWorkflow.change_shipping_address, change))
        await change_held.reached.wait()
        charge.resume.set()
        await shop.wait_for_status(handle, OrderStatus.SHIPPED, OrderStatus.COMPLETED)
        change_held.resume.set()
        assert not await update
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert (await shop.order(handle)).shipping_address.city == ADDRESS["city"]


async def test_failing_address_change_does_not_block_the_order(skipping: Shop) -> None:
    charge = Pause()
    async with FaultyGateways(skipping, ChargePayment=charge, ChangeShippingAddress=Fails()).worker():
        handle = await skipping.start()
        await charge.reached.wait()
        change = await propose(skipping, handle, "York")
        update = asyncio.create_task(handle.execute_update(OrderWorkflow.change_shipping_address, change))
        await eventually(lambda: activities_of(handle), lambda names: "ChangeShippingAddress" in names)
        charge.resume.set()
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await update
        assert isinstance(refused.value.cause, ActivityError)
        assert (await handle.result()).status is OrderStatus.COMPLETED
    assert (await skipping.order(handle)).shipping_address.city == ADDRESS["city"]


@pytest.mark.parametrize("how", ["signal", "temporal"])
async def test_cancel_while_address_change_runs_waits_for_its_end(shop: Shop, how: str) -> None:
    await shop.stock(available=10)
    charge, change_held = Pause(), Pause()
    async with FaultyGateways(shop, ChargePayment=charge, ChangeShippingAddress=change_held).worker():
        handle = await shop.start()
        await charge.reached.wait()
        change = await propose(shop, handle, "York")
        update = asyncio.create_task(handle.execute_update(OrderWorkflow.change_shipping_address, change))
        await change_held.reached.wait()
        await (handle.signal(OrderWorkflow.cancel) if how == "signal" else handle.cancel())
        await shop.wait_for_status(handle, OrderStatus.CANCELLED)
        assert (await handle.describe()).close_time is None
        change_held.resume.set()
        assert not await update
        charge.resume.set()
        await eventually(handle.describe, lambda description: description.close_time is not None)
    assert (await shop.available(), await shop.held()) == (10, 0)
