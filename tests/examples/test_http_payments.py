"""Orders that pay through a payment service over HTTP (examples/http_payments.py)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

import app.workflows.steps as steps
from app.domain import CANCELLED, Money, OrderStatus, StepName
from app.workflows.reconciliation import ReconciliationWorkflow
from app.workflows.steps import REVERSIBLE_STEPS, SHORT_ATTEMPT, STEPS, retry
from examples.http_payments import TIMEOUT, HttpPayments, http_payments
from tests.kit.orders import ADDRESS, UNSERVICEABLE, steps_of
from tests.kit.payment_service import API_KEY, QUOTED, PaymentService, payment_service
from tests.kit.shop import Shop, build_shop_worker, sandbox_gateways

SHORT = 0.5  # seconds: the client's timeout where the service hangs


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[PaymentService]:
    with payment_service() as service:
        for name, value in service.environment().items():
            monkeypatch.setenv(name, value)
        yield service


@asynccontextmanager
async def worker(shop: Shop, timeout: float = TIMEOUT) -> AsyncIterator[None]:
    """A worker with this payment gateway."""
    await shop.stock()
    async with AsyncExitStack() as stack:
        payments = await stack.enter_async_context(http_payments(timeout))
        await stack.enter_async_context(build_shop_worker(shop, sandbox_gateways(shop.mongo, payments=payments)))
        yield


@pytest.mark.parametrize(
    "method",
    ["pm_500", "pm_503", "pm_429", "pm_409", "pm_no_json", "pm_lost_reply", "pm_hang", "pm_hang_done", "pm_trickle"],
)
async def test_charge_after_failed_call_is_captured_once(
    service: PaymentService, shop: Shop, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    caplog.set_level(logging.INFO)
    async with worker(shop, SHORT):
        handle = await shop.start(payment_method=method)
        assert (await handle.result()).status is OrderStatus.COMPLETED
    order = await shop.order(handle)
    assert [charge["net"] for charge in service.charges.values()] == [2_000]
    assert {key for _, key in service.calls} == {order.order_id}
    attempts = {step.step: step.attempts for step in order.steps}
    assert attempts == {**dict.fromkeys(StepName, 1), StepName.CHARGE_PAYMENT: 2}
    history = (await handle.fetch_history()).to_json()
    assert "timeoutFailureInfo" not in history  # the attempt has ended by itself
    for secret in (QUOTED, API_KEY, method):
        assert secret not in history + caplog.text


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("pm_expired", "the card has expired"),
        ("pm_poor", "the card has insufficient funds"),
        ("pm_lost", "the card was declined"),
    ],
)
async def test_declined_charge_fails_order_with_a_text_of_its_own(
    service: PaymentService, shop: Shop, caplog: pytest.LogCaptureFixture, method: str, message: str
) -> None:
    async with worker(shop):
        handle = await shop.start(payment_method=method)
        assert (await handle.result()).failure_code == "payment_declined"
    order = await shop.order(handle)
    assert order.failure is not None
    assert order.failure.message == message
    assert service.calls.count(("POST /charges", order.order_id)) == 1
    assert await shop.available() == 100
    assert QUOTED not in (await handle.fetch_history()).to_json() + caplog.text + order.model_dump_json()


@pytest.mark.parametrize(("error", "method"), [("InvalidApiKey", "pm_card_ok"), ("RequestRejected", "pm_400")])
async def test_misconfigured_gateway_fails_order_and_names_the_error_in_the_log(
    service: PaymentService, shop: Shop, caplog: pytest.LogCaptureFixture, error: str, method: str
) -> None:
    async with worker(shop):
        if error == "InvalidApiKey":
            service.api_key = "sk_test_rotated"
        handle = await shop.start(payment_method=method)
        order = await shop.wait_for_status(handle, OrderStatus.COMPENSATING, OrderStatus.FAILED)
        service.api_key = API_KEY  # corrected: the refund needs it, too
        assert (await handle.result()).failure_code == "misconfigured"
    assert order.failure is not None
    assert order.failure.message == "the service is misconfigured"
    assert f"charge_payment: misconfigured: {error}" in caplog.text
    assert service.charges == {}
    assert API_KEY not in (await handle.fetch_history()).to_json() + caplog.text


@pytest.mark.parametrize("fault", [500, "lose the reply"])
async def test_unshippable_order_is_refunded_once(service: PaymentService, shop: Shop, fault: object) -> None:
    service.faults = [fault]
    async with worker(shop):
        handle = await shop.start(shipping_address=UNSERVICEABLE)
        assert (await handle.result()).status is OrderStatus.FAILED
    order = await shop.order(handle)
    assert [charge["net"] for charge in service.charges.values()] == [0]
    assert list(steps_of(order).values()) == [*["compensated"] * (len(REVERSIBLE_STEPS) - 1), "failed"]
    refunds = [call for call in service.calls if call[0] == "POST /reversals"]
    assert set(refunds) == {("POST /reversals", f"{order.order_id}-reversal")}


async def test_charge_limited_to_one_attempt_is_never_repeated(
    service: PaymentService, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a service without idempotency keys. A charge whose outcome is unknown is refunded."""
    policy = retry(timedelta(seconds=30), maximum_attempts=1)
    once = [replace(step, retry_policy=policy) if step.name == "charge_payment" else step for step in REVERSIBLE_STEPS]
    monkeypatch.setattr(steps, "REVERSIBLE_STEPS", once)
    async with worker(shop):
        handle = await shop.start(payment_method="pm_lost_reply")
        assert (await handle.result()).failure_code == "payment_unavailable"
    assert [charge["net"] for charge in service.charges.values()] == [0]
    assert [call for call, _ in service.calls] == ["POST /charges", "POST /reversals"]


@pytest.mark.parametrize("method", ["pm_hang", "pm_hang_done"])
async def test_cancel_during_charge_leaves_no_money_captured(service: PaymentService, shop: Shop, method: str) -> None:
    """The service charges before the refund reaches it, or would charge after it."""
    async with worker(shop):
        handle = await shop.start(payment_method=method)
        await asyncio.to_thread(service.hanging.wait)
        await handle.signal("cancel")
        assert (await handle.result()).failure_code == CANCELLED
        service.resume.set()
    assert [charge["net"] for charge in service.charges.values()] == ([0] if method == "pm_hang_done" else [])


async def test_reconciliation_reads_every_page(
    service: PaymentService, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    async with worker(shop):
        handles = [await shop.start(shipping_address=address) for address in (ADDRESS, ADDRESS, UNSERVICEABLE)]
        order_ids = [(await handle.result()).order_id for handle in handles]
        ended = datetime.now(UTC) - timedelta(hours=1)
        await shop.mongo.orders.update_many({}, {"$set": {"updated_at": ended}})
        service.charges[order_ids[2]]["net"] += 500  # after the refund
        task_queue = shop.settings.task_queue
        await shop.client.execute_workflow(
            ReconciliationWorkflow.run, ended - timedelta(hours=1), id=f"{task_queue}-by-hand", task_queue=task_queue
        )
    assert re.findall("order (.*): (.*)", caplog.text) == [(order_ids[2], "not_refunded")]


async def test_client_is_closed_after_the_worker(service: PaymentService) -> None:
    async with http_payments() as payments:
        assert isinstance(payments, HttpPayments)
        assert await payments.charge("ord_1", Money(amount=1, currency="EUR"), "pm_card_ok") == "ch_ord_1"
    with pytest.raises(RuntimeError, match="closed"):
        await payments.refund("ord_1")


def test_client_gives_up_before_the_attempt_ends() -> None:
    (charge,) = (step for step in STEPS if step.name == "charge_payment")
    assert min(charge.start_to_close, SHORT_ATTEMPT).total_seconds() - 5 > TIMEOUT


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PAYMENTS_URL", None, "PAYMENTS_URL: Field required"),
        ("PAYMENTS_URL", "http://payments.example", "PAYMENTS_URL: must be an https URL, without credentials"),
        ("PAYMENTS_API_KEY", "", "PAYMENTS_API_KEY: Value should have at least 1 item"),
    ],
)
async def test_wrong_setting_is_named_at_the_start(
    service: PaymentService, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, message: str
) -> None:
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=re.escape(f"wrong setting: {message}")) as caught:
        async with http_payments():
            pass
    assert API_KEY not in str(caught.value)
