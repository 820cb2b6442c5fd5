"""An address can be changed until the payment is charged. Of several changes, the last proposed one wins."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from app.activities.payments import Payments
from app.activities.shipping import Shipping
from app.domain import Address, OrderStatus
from app.messages import AddressChange, OrderRef
from app.mongo import Mongo
from app.orders import KEPT_ADDRESSES, OrderRepository
from tests.kit.attempts import attempt
from tests.kit.orders import ADDRESS
from tests.kit.shop import Shop, dependencies

BEFORE_THE_CHARGE = list(itertools.takewhile(lambda status: status is not OrderStatus.CHARGED, OrderStatus))


def _to(city: str) -> Address:
    return Address.model_validate({**ADDRESS, "city": city})


async def _propose(shop: Shop, order_id: str, city: str) -> AddressChange:
    change = await shop.orders.propose_address(order_id, _to(city))
    assert change is not None
    return change


async def _apply(shop: Shop, change: AddressChange) -> bool:
    return await attempt(Shipping(dependencies(shop.mongo)).change_address, change)


async def _city(shop: Shop, order_id: str) -> str:
    return str((await shop.order(order_id)).shipping_address.city)


@pytest.mark.parametrize("status", OrderStatus)
async def test_address_change_is_applied_until_payment_is_charged(shop: Shop, status: OrderStatus) -> None:
    order = await shop.place()
    change = await _propose(shop, order.order_id, "Paris")
    await shop.mongo.orders.update_one({"_id": order.order_id}, {"$set": {"status": status}})
    in_time = status in BEFORE_THE_CHARGE
    assert (await shop.orders.propose_address(order.order_id, _to("Rome")) is not None) == in_time
    for _ in range(2):  # the activity may be retried
        assert await _apply(shop, change) == in_time
        assert await shop.order(order.order_id) == (await shop.order(order.order_id)).model_copy(
            update={"shipping_address": _to("Paris") if in_time else order.shipping_address}
        )


async def test_address_change_after_cancel_is_refused(shop: Shop) -> None:
    order = await shop.place()
    change = await _propose(shop, order.order_id, "Paris")
    await shop.orders.request_cancellation(order.order_id, None)
    assert await shop.orders.propose_address(order.order_id, _to("Rome")) is None
    assert not await _apply(shop, change)
    assert await _city(shop, order.order_id) == "London"


async def test_address_change_of_removed_order_is_refused(shop: Shop) -> None:
    assert await shop.orders.propose_address("gone", _to("Paris")) is None
    assert not await _apply(shop, AddressChange(order_id="gone", number=1))
    assert await shop.mongo.orders.count_documents({}) == 0


async def test_address_changes_applied_in_any_order_keep_the_last_proposed(shop: Shop) -> None:
    for applied in itertools.permutations(range(3)):
        order = await shop.place()
        changes = [await _propose(shop, order.order_id, city) for city in ("Paris", "Rome", "Oslo")]
        assert [change.number for change in changes] == [1, 2, 3]
        cities = []
        for index in applied:
            assert await _apply(shop, changes[index])
            cities.append(await _city(shop, order.order_id))
        # After each change, the order has the latest proposal that was applied so far.
        assert cities == [("Paris", "Rome", "Oslo")[max(applied[: count + 1])] for count in range(3)]


async def test_more_address_changes_than_stored_keep_the_last_proposed(shop: Shop) -> None:
    order = await shop.place()
    cities = [f"City {number}" for number in range(KEPT_ADDRESSES + 3)]
    changes = [await _propose(shop, order.order_id, city) for city in cities]
    assert await _apply(shop, changes[0])  # superseded: its address is no longer stored
    assert await _city(shop, order.order_id) == "London"
    for change in reversed(changes[1:]):
        assert await _apply(shop, change)
        assert await _city(shop, order.order_id) == cities[-1]
    document = await shop.mongo.orders.find_one({"_id": order.order_id}) or {}
    assert len(document["address_changes"]) == KEPT_ADDRESSES


async def test_concurrent_address_changes_keep_the_last_proposed(shop: Shop) -> None:
    order = await shop.place()

    async def change(city: str) -> tuple[int, str]:
        proposed = await _propose(shop, order.order_id, city)
        await asyncio.sleep(random.uniform(0, 0.02))
        assert await _apply(shop, proposed)
        return proposed.number, city

    changes = await asyncio.gather(*(change(f"City {number}") for number in range(30)))
    assert {number for number, _ in changes} == set(range(1, 31))
    assert await _city(shop, order.order_id) == max(changes)[1]


async def test_shipment_uses_the_stored_address(shop: Shop, mongo: Mongo) -> None:
    """Changes race with charge and shipment. The carrier must receive the last address that was accepted."""
    shipped_to: dict[str, str] = {}

    class Carrier:
        async def ship(self, idempotency_key: str, address: Address) -> str:
            shipped_to[idempotency_key] = address.city
            return "trk"

        async def cancel(self, idempotency_key: str) -> bool:
            return False

    needed = dependencies(mongo, carrier=Carrier())
    orders = OrderRepository(mongo)

    async def saga(order_id: str) -> None:
        await attempt(Payments(needed).charge, OrderRef(order_id=order_id))
        await attempt(Shipping(needed).create, OrderRef(order_id=order_id))

    async def changes(order_id: str) -> str:
        city = "London"
        for number in itertools.count():
            change = await orders.propose_address(order_id, _to(f"City {number}"))
            if change is None or not await attempt(Shipping(needed).change_address, change):
                return city
            city = f"City {number}"
        raise AssertionError

    for _ in range(10):
        order = await shop.place(status="reserved")
        _, city = await asyncio.gather(saga(order.order_id), changes(order.order_id))
        assert shipped_to[order.order_id] == city == await _city(shop, order.order_id)


@pytest.mark.parametrize("city", ["$status", "$$NOW"])
async def test_address_with_dollar_sign_is_stored_literally(shop: Shop, city: str) -> None:
    order = await shop.place()
    assert await _apply(shop, await _propose(shop, order.order_id, city))
    assert await _city(shop, order.order_id) == city
