"""CreateShipment and CancelShipment; ChangeShippingAddress, which is possible until the payment is charged."""

from temporalio import activity

from app.activities.order_step import Dependencies, OrderStep
from app.domain import Order, StepName
from app.messages import AddressChange, OrderRef


class Shipping:
    def __init__(self, dependencies: Dependencies) -> None:
        self._orders = dependencies.orders
        self._carrier = dependencies.gateways.carrier
        self._step = OrderStep(dependencies.orders, StepName.CREATE_SHIPMENT, self._carrier.cancel)

    @activity.defn(name="CreateShipment")
    async def create(self, ref: OrderRef) -> None:
        async def ship(order: Order) -> str:
            return f"created {await self._carrier.ship(ref.order_id, order.shipping_address)}"

        await self._step.perform(ref.order_id, ship)

    @activity.defn(name="CancelShipment")
    async def cancel(self, ref: OrderRef) -> None:
        await self._step.compensate(ref.order_id)

    @activity.defn(name="ChangeShippingAddress")
    async def change_address(self, change: AddressChange) -> bool:
        """Return False if it is too late."""
        return await self._orders.apply_address_change(change)
