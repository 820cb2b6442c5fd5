"""MarkOrder: the statuses that no step writes by itself (waiting, undoing, ended)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio import activity

from app.models import OrderMark

if TYPE_CHECKING:
    from app.orders import Orders


class Tracking:
    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    @activity.defn(name="MarkOrder")
    async def mark(self, mark: OrderMark) -> None:
        await self._orders.mark(mark.order_id, mark.status, mark.failure)
