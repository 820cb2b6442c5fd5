"""UpdateOrderStatus: the statuses that no step writes by itself, and decisions on approvals."""

from temporalio import activity

from app.activities.order_step import Dependencies
from app.messages import OrderState, StatusUpdate


class Tracking:
    def __init__(self, dependencies: Dependencies) -> None:
        self._orders = dependencies.orders

    @activity.defn(name="UpdateOrderStatus")
    async def update_status(self, update: StatusUpdate) -> OrderState:
        """Returns the order's state after it, which differs from the update where that came too late."""
        return await self._orders.update_status(update)
