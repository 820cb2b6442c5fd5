"""SendConfirmation. It has no undo: it runs when nothing can fail any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio import activity

from app.activities.ledger import Ledger
from app.gateways.mail import Mailer
from app.models import OrderRef, OrderStatus, StepName

if TYPE_CHECKING:
    from app.mongo import Mongo
    from app.orders import Orders


class Notifications:
    def __init__(self, mongo: Mongo, orders: Orders, mailer: Mailer) -> None:
        self._orders = orders
        self._mailer = mailer
        self._ledger = Ledger(
            mongo.notifications,
            orders,
            StepName.SEND_CONFIRMATION,
            done="sent",
            undone="-",
            status=OrderStatus.COMPLETED,
        )

    @activity.defn(name="SendConfirmation")
    async def confirm(self, ref: OrderRef) -> None:
        order = await self._orders.require(ref.order_id)

        async def send() -> str:
            await self._mailer.send_confirmation(ref.order_id, order)
            return "confirmation"

        await self._ledger.perform(ref.order_id, call=send)
