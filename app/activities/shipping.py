"""CreateShipment and CancelShipment; and the address, which can be changed until then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio import activity

from app.activities.ledger import Ledger
from app.gateways.carrier import Carrier
from app.models import AddressChange, OrderRef, OrderStatus, StepName

if TYPE_CHECKING:
    from app.mongo import Mongo
    from app.orders import Orders


class Shipping:
    def __init__(self, mongo: Mongo, orders: Orders, carrier: Carrier) -> None:
        self._orders = orders
        self._carrier = carrier
        self._ledger = Ledger(
            mongo.shipments,
            orders,
            StepName.CREATE_SHIPMENT,
            done="created",
            undone="cancelled",
            status=OrderStatus.SHIPPED,
        )

    @activity.defn(name="CreateShipment")
    async def create(self, ref: OrderRef) -> None:
        order = await self._orders.settle_address(ref.order_id)
        await self._ledger.perform(
            ref.order_id,
            call=lambda: self._carrier.ship(ref.order_id, order.shipping_address),
            take_back=lambda: self._carrier.cancel(ref.order_id),
        )

    @activity.defn(name="CancelShipment")
    async def cancel(self, ref: OrderRef) -> None:
        await self._ledger.undo(ref.order_id, take_back=lambda: self._carrier.cancel(ref.order_id))

    @activity.defn(name="ChangeShippingAddress")
    async def change_address(self, change: AddressChange) -> None:
        await self._orders.take_over_address(change)
