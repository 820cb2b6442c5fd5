"""Texts of exceptions, which may quote personal data or secrets, reach neither a history nor a log (G11)."""

from __future__ import annotations

from typing import TypeVar

import pytest
from temporalio.exceptions import ApplicationError

from app.domain import OrderStatus
from app.gateways import Misconfigured, PaymentDeclined
from tests.kit.faults import Call, FaultyGateways
from tests.kit.shop import Shop

SECRET = "sk_live_4242"
T = TypeVar("T")


class Raises:
    """Raises these errors, one per call, each caused by another one with the secret in its text."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    async def __call__(self, call: Call[T]) -> T:
        if self.errors:
            raise self.errors.pop(0) from ValueError(SECRET)
        return await call()


@pytest.mark.parametrize(
    ("last", "code", "message"),
    [
        (PaymentDeclined(f"declined for {SECRET}"), "payment_declined", f"declined for {SECRET}"),
        (Misconfigured(SECRET), "misconfigured", "the service is misconfigured"),
        (ApplicationError("no", type="stopped", non_retryable=True), "stopped", "no"),  # only its cause has the secret
    ],
    ids=["declined", "misconfigured", "for the workflow"],
)
async def test_text_of_gateway_exception_reaches_neither_history_nor_log(
    shop: Shop, caplog: pytest.LogCaptureFixture, last: Exception, code: str, message: str
) -> None:
    await shop.stock()
    async with FaultyGateways(shop, ChargePayment=Raises(RuntimeError(SECRET), last)).worker():
        handle = await shop.start()
        result = await handle.result()
    assert (result.status, result.failure_code) == (OrderStatus.FAILED, code)
    order = await shop.order(handle)
    assert order.failure is not None
    assert order.failure.message == message  # for the customer, from MongoDB
    history = await handle.fetch_history()
    assert "RuntimeError" in caplog.text
    assert SECRET not in history.to_json() + caplog.text
    attempts = [event.activity_task_started_event_attributes.last_failure for event in history.events]
    (first,) = (failure for failure in attempts if failure.application_failure_info.type == "RuntimeError")
    assert "app/activities/payments.py" in first.stack_trace  # the log names the last line only
