"""The fence: makes a step that calls a gateway take effect at most once, and never after its compensation (G3, G4).

The state of a step is `steps.<name>` in the order document; `app.domain.next_status` defines its transitions, and one
conditional write decides each race. A compensation that comes first writes `failed`, the fence. A late attempt finds
the fence, stops, and reverses what it already did at the gateway.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from app import domain
from app.domain import Attempt, Failure, NotFound, Order, StepChange, StepEvent, StepName, StepRecord, StepStatus
from app.gateways import Declined, Gateways, Misconfigured

if TYPE_CHECKING:
    from app.mongo import Mongo
    from app.orders import OrderRepository
    from app.products import ProductRepository

logger = logging.getLogger(__name__)

Reverse = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True)
class Dependencies:
    """The argument of every class of activities, so that a new class needs no line in `worker.py`."""

    mongo: Mongo
    orders: OrderRepository
    products: ProductRepository
    gateways: Gateways


def current_attempt() -> Attempt:
    info = activity.info()
    return Attempt(info.started_time if info.attempt == 1 else info.scheduled_time, info.attempt)


def declined_error(failure: Failure) -> ApplicationError:
    """Return the error of a step that will never succeed: not retried, with the failure's code as its type.

    Benign: neither logged nor counted as an error.
    """
    return ApplicationError(
        failure.message, type=failure.code, non_retryable=True, category=ApplicationErrorCategory.BENIGN
    )


def step_failed(failure: Failure | None) -> ApplicationError:
    """Return the error of a declined step or, without a failure, of a fenced one. A service's text stays in MongoDB."""
    return declined_error(Failure(code=failure.code, message="declined") if failure else domain.FENCED)


async def irreversible(_: str) -> bool:
    return False


class OrderStep:
    """Performs and compensates one step of the saga, each at most once per order.

    Args:
        reverse: reverses the effect at the gateway, by idempotency key; returns True if there was one.
    """

    def __init__(self, orders: OrderRepository, name: StepName, reverse: Reverse = irreversible) -> None:
        self._orders = orders
        self._name = name
        self._reverse = reverse

    async def perform(self, order_id: str, call: Callable[[Order], Awaitable[str]]) -> None:
        """Perform the step: one read, one call of the gateway, one write.

        Args:
            call: calls the gateway; returns the detail to record, such as its reference.

        Raises:
            ApplicationError: not retryable; declined, misconfigured, or the order was stopped.
            NotFound
        """
        order = await self._orders.get(order_id)
        record = order.step(self._name)
        stop_reason = order.stop_reason
        if record is None and stop_reason is None:
            try:
                detail = await call(order)
            except Declined as declined:
                failure = Failure(code=declined.code, message=str(declined))
                record, stop_reason = await self._record(order_id, StepEvent.DECLINED, failure.message, failure)
            except Misconfigured as error:
                logger.error("order %s: %s: misconfigured: %s", order_id, self._name, type(error).__name__)
                raise declined_error(Failure(code="misconfigured", message="the service is misconfigured")) from None
            else:
                record, stop_reason = await self._record(order_id, StepEvent.SUCCEEDED, detail)
                if record.status is not StepStatus.DONE and await self._reverse(order_id):
                    await self._record(order_id, StepEvent.COMPENSATED)
        if stop_reason is not None:
            raise declined_error(stop_reason)
        assert record is not None
        if record.status is not StepStatus.DONE:
            raise step_failed(record.failure)

    async def compensate(self, order_id: str) -> None:
        """Reverse the step, or prevent it from taking effect later.

        The fence is written before the gateway is called, so an attempt in flight runs into one of them.
        """
        try:
            record, _ = await self._record(order_id, StepEvent.FENCED, "stopped before it took effect")
        except NotFound:  # removed: nothing to record, but an effect must be reversed
            await self._reverse(order_id)
            return
        if record.status is not StepStatus.COMPENSATED:
            had_effect = await self._reverse(order_id)
            if had_effect or record.status is StepStatus.DONE:
                await self._record(order_id, StepEvent.COMPENSATED)

    async def _record(
        self, order_id: str, event: StepEvent, detail: str = "", failure: Failure | None = None
    ) -> tuple[StepRecord, Failure | None]:
        change = StepChange(self._name, event, detail, failure, current_attempt())
        return await self._orders.change_step(order_id, change)
