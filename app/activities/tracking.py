"""UpdateOrderStatus: the statuses that no step writes, and decisions on approvals."""

from temporalio import activity

from app.activities.order_step import Dependencies
from app.messages import OrderState, StatusUpdate


class Tracking:
    def __init__(self, dependencies: Dependencies) -> None:
        self._orders = dependencies.orders

    @activity.defn(name="UpdateOrderStatus")
    async def update_status(self, update: StatusUpdate) -> OrderState:
        """Return the order's state after the update, which differs from it if it came too late."""
        return await self._orders.update_status(update)
