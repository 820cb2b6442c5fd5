"""ChargePayment and RefundPayment."""

from temporalio import activity

from app.activities.order_step import Dependencies, OrderStep
from app.domain import Order, StepName
from app.messages import OrderRef


class Payments:
    def __init__(self, dependencies: Dependencies) -> None:
        self._gateway = dependencies.gateways.payments
        self._step = OrderStep(dependencies.orders, StepName.CHARGE_PAYMENT, self._gateway.refund)

    @activity.defn(name="ChargePayment")
    async def charge(self, ref: OrderRef) -> None:
        async def charge(order: Order) -> str:
            return f"charged {await self._gateway.charge(ref.order_id, order.total, order.payment_method)}"

        await self._step.perform(ref.order_id, charge)

    @activity.defn(name="RefundPayment")
    async def refund(self, ref: OrderRef) -> None:
        await self._step.compensate(ref.order_id)
