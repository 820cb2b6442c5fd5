"""ChargePayment and RefundPayment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio import activity

from app.activities.ledger import Ledger
from app.gateways.payment import PaymentGateway
from app.models import OrderRef, OrderStatus, StepName

if TYPE_CHECKING:
    from app.mongo import Mongo
    from app.orders import Orders


class Payments:
    def __init__(self, mongo: Mongo, orders: Orders, gateway: PaymentGateway) -> None:
        self._orders = orders
        self._gateway = gateway
        self._ledger = Ledger(
            mongo.payments,
            orders,
            StepName.CHARGE_PAYMENT,
            done="charged",
            undone="refunded",
            status=OrderStatus.CHARGED,
        )

    @activity.defn(name="ChargePayment")
    async def charge(self, ref: OrderRef) -> None:
        order = await self._orders.require(ref.order_id)
        await self._ledger.perform(
            ref.order_id,
            call=lambda: self._gateway.charge(ref.order_id, order.total, order.payment_method),
            take_back=lambda: self._gateway.refund(ref.order_id),
        )

    @activity.defn(name="RefundPayment")
    async def refund(self, ref: OrderRef) -> None:
        await self._ledger.undo(ref.order_id, take_back=lambda: self._gateway.refund(ref.order_id))
