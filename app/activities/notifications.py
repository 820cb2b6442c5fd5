"""SendConfirmation. It has no compensation: it runs when the order is shipped and paid."""

from temporalio import activity

from app.activities.order_step import Dependencies, OrderStep
from app.domain import Order, StepName
from app.messages import OrderRef


class Notifications:
    def __init__(self, dependencies: Dependencies) -> None:
        self._mailer = dependencies.gateways.mailer
        self._step = OrderStep(dependencies.orders, StepName.SEND_CONFIRMATION)

    @activity.defn(name="SendConfirmation")
    async def confirm(self, ref: OrderRef) -> None:
        async def send(order: Order) -> str:
            await self._mailer.send_confirmation(ref.order_id, order)
            return "sent"

        await self._step.perform(ref.order_id, send)
