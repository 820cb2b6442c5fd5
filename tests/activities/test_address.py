"""An address can be changed until the carrier is told one, and not after, however late an attempt comes."""

from __future__ import annotations

import secrets

from temporalio.testing import ActivityEnvironment

from app.activities.shipping import Shipping
from app.gateways.sandbox import SandboxCarrier
from app.models import Address, AddressChange, OrderRef
from app.mongo import Mongo
from app.orders import Orders
from tests.support import ADDRESS, Shop

ELSEWHERE = Address.model_validate({**ADDRESS, "city": "Paris"})


async def test_a_change_is_taken_over_until_the_carrier_is_told(mongo: Mongo, shop: Shop) -> None:
    order = await shop.place()
    await _change(mongo, order.order_id)
    assert (await shop.order(order.order_id)).shipping_address == ELSEWHERE


async def test_a_change_that_comes_late_is_not_taken_over(mongo: Mongo, shop: Shop) -> None:
    order = await shop.place()
    await ActivityEnvironment().run(_shipping(mongo).create, OrderRef(order_id=order.order_id))
    await _change(mongo, order.order_id)
    assert (await shop.order(order.order_id)).shipping_address == order.shipping_address


async def _change(mongo: Mongo, order_id: str) -> None:
    change = AddressChange(order_id=order_id, change_id=secrets.token_hex(8))
    await Orders(mongo).propose_address(change, ELSEWHERE)
    await ActivityEnvironment().run(_shipping(mongo).change_address, change)


def _shipping(mongo: Mongo) -> Shipping:
    return Shipping(mongo, Orders(mongo), SandboxCarrier(mongo.sandbox))
