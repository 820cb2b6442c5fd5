"""CreateShipment and CancelShipment; and the address, which can be changed until the payment is charged."""

from __future__ import annotations

from temporalio import activity

from app.activities.order_step import Dependencies, OrderStep
from app.domain import Order, StepName
from app.messages import AddressChange, OrderRef


class Shipping:
    def __init__(self, dependencies: Dependencies) -> None:
        self._orders = dependencies.orders
        self._carrier = dependencies.gateways.carrier
        self._step = OrderStep(dependencies.orders, StepName.CREATE_SHIPMENT)

    @activity.defn(name="CreateShipment")
    async def create(self, ref: OrderRef) -> None:
        async def ship(order: Order) -> str:
            return f"created {await self._carrier.ship(ref.order_id, order.shipping_address)}"

        await self._step.perform(ref.order_id, ship, compensate=lambda: self._carrier.cancel(ref.order_id))

    @activity.defn(name="CancelShipment")
    async def cancel(self, ref: OrderRef) -> None:
        await self._step.compensate(ref.order_id, lambda: self._carrier.cancel(ref.order_id))

    @activity.defn(name="ChangeShippingAddress")
    async def change_address(self, change: AddressChange) -> bool:
        """Returns whether it came in time."""
        return await self._orders.apply_address_change(change)
