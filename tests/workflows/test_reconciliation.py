"""Contradictions between orders, steps and the payment service's records are repaired if safe, else reported."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx
import pytest
from temporalio import runtime
from temporalio.client import Client, ScheduleHandle, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.service import RPCError
from temporalio.testing import ActivityEnvironment

from app import temporal
from app.activities import reconciliation
from app.domain import Order, OrderStatus
from app.gateways import Capture
from app.gateways.sandbox import SandboxPayments, records
from app.mongo import Document, Mongo
from app.workflows import steps
from app.workflows.reconciliation import ReconciliationWorkflow, keep_schedule
from dev.servers import free_port
from tests.kit.faults import Fails, FaultyGateways
from tests.kit.orders import ADDRESS, CHARGING, UNSERVICEABLE, order_document, steps_of
from tests.kit.shop import Shop, build_shop_worker, dependencies, sandbox_gateways
from tests.kit.waiting import eventually

HOUR = timedelta(hours=1)
ENDED = datetime.now(UTC).replace(microsecond=0) - HOUR
STOCK = 100


async def reconcile(shop: Shop, caplog: pytest.LogCaptureFixture, since: datetime = ENDED - 2 * HOUR) -> list[str]:
    """Run the reconciliation, by default of the last three hours. Returns its lines in the log."""
    caplog.clear()
    run_id = f"{shop.settings.task_queue}-{secrets.token_hex(4)}"
    await shop.client.execute_workflow(
        ReconciliationWorkflow.run, since, id=run_id, task_queue=shop.settings.task_queue
    )
    return findings_in(caplog)


async def repairs(shop: Shop) -> list[str]:
    """The repairs of the only run."""
    query = f"TaskQueue = '{shop.settings.task_queue}' AND WorkflowType = 'ReconciliationWorkflow'"

    async def run() -> Any:
        return [each async for each in shop.client.list_workflows(query)]

    (execution,) = await eventually(run)
    history = await shop.client.get_workflow_handle(execution.id).fetch_history()
    scheduled = [event.activity_task_scheduled_event_attributes.activity_type.name for event in history.events]
    return [name for name in scheduled if name not in ("", "CompareOrders")]


def findings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record for record in caplog.records if record.name == reconciliation.logger.name]
    lines = [record.getMessage().removeprefix("reconciliation: order ") for record in found]
    assert [vars(record)["order_id"] for record in found] == [line.split(":")[0] for line in lines]
    return sorted(lines)


async def run_order(shop: Shop, status: OrderStatus, **changes: Any) -> Order:
    """Run an order of two pieces to this status, and let it be as old as if it had ended an hour ago."""
    if status is OrderStatus.FAILED:
        changes["shipping_address"] = UNSERVICEABLE
    handle = await shop.start(**changes)
    order = await shop.wait_for_status(handle, status)
    await drift(shop, order)
    return order


async def drift(shop: Shop, order: Order, fields: Document | None = None, unset: str = "", book: Any = None) -> None:
    """Change the order's document, without a trace in `updated_at`, and the payment service's record of it."""
    update: Document = {"$set": {"updated_at": ENDED, **(fields or {})}}
    if unset:
        update["$unset"] = {unset: ""}
    await shop.mongo.orders.update_one({"_id": order.order_id}, update)
    if book:
        await records(shop.mongo).update_one({"_id": f"payment:{order.order_id}"}, book)


async def document_of(shop: Shop, order: Order) -> Document | None:
    return await shop.mongo.orders.find_one({"_id": order.order_id})


@pytest.fixture
async def stocked(shop: Shop, worker: None) -> Shop:
    await shop.mongo.create_indexes()
    await shop.stock(available=STOCK)
    return shop


NOT_REFUNDED = {"$unset": {"refunded": "", "closed": ""}}
CHARGE_DONE = {"steps.charge_payment.status": "done"}


# --- repaired


async def test_reservation_of_failed_order_is_released(stocked: Shop, caplog: pytest.LogCaptureFixture) -> None:
    order = await run_order(stocked, OrderStatus.FAILED)
    await drift(stocked, order, {"steps.reserve_inventory.status": "done"})
    await stocked.mongo.inventory.update_one({"_id": "MUG"}, {"$inc": {"available": -2}})
    assert await reconcile(stocked, caplog) == [f"{order.order_id}: not_compensated"]
    assert (await stocked.available(), await stocked.held()) == (STOCK, 0)
    await drift(stocked, order)
    assert await reconcile(stocked, caplog) == []


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"fields": CHARGE_DONE}, ["not_compensated", "not_refunded"]),
        ({"unset": "steps.charge_payment"}, ["not_refunded"]),  # as if captured after the fence
        ({"fields": {"steps.charge_payment.status": "failed"}}, ["not_refunded"]),
    ],
    ids=["done", "absent", "failed"],
)
async def test_money_of_failed_order_is_refunded(
    stocked: Shop, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], kinds: list[str]
) -> None:
    order = await run_order(stocked, OrderStatus.FAILED)
    await drift(stocked, order, **changes, book=NOT_REFUNDED)
    assert await stocked.net_money(order.order_id) == order.total.amount
    assert await reconcile(stocked, caplog) == [f"{order.order_id}: {kind}" for kind in kinds]
    assert await stocked.net_money(order.order_id) == 0
    assert steps_of(await stocked.order(order.order_id))["charge_payment"] == "compensated"
    assert await stocked.available() == STOCK
    await drift(stocked, order)
    assert await reconcile(stocked, caplog) == []


async def test_money_of_order_cancelled_days_after_its_charge_is_refunded(
    stocked: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """The payment service's records are read back to the charges of the orders that ended in the window."""
    order = await run_order(stocked, OrderStatus.FAILED)
    charged_at = ENDED - timedelta(days=3)
    fields = {**CHARGE_DONE, "status": "cancelled", "steps.charge_payment.first_attempt_at": charged_at}
    await drift(stocked, order, fields, book={**NOT_REFUNDED, "$set": {"captured_at": charged_at}})
    await drift(stocked, order, {"steps.charge_payment.status": "failed"})
    assert await reconcile(stocked, caplog) == [f"{order.order_id}: not_refunded"]
    assert await stocked.net_money(order.order_id) == 0


# --- reported

REPORTED: dict[str, tuple[OrderStatus, dict[str, Any], list[str]]] = {
    "refund recorded, but not by the service": (OrderStatus.FAILED, {"book": NOT_REFUNDED}, ["not_refunded"]),
    "failed, but shipped": (
        OrderStatus.COMPLETED,
        {"fields": {"status": "failed", "failure": {"code": "carrier", "message": "lost"}}},
        ["not_compensated", "not_refunded"],
    ),
    "malformed": (OrderStatus.COMPLETED, {"fields": {"total.amount": 1}}, ["not_refunded"]),
    "completed without a reservation": (
        OrderStatus.COMPLETED, {"unset": "steps.reserve_inventory"}, ["step_missing"],
    ),
    "completed, but refunded in part": (
        OrderStatus.COMPLETED, {"book": {"$set": {"refunded": 500}}}, ["wrong_amount"],
    ),
    "completed in another currency": (
        OrderStatus.COMPLETED, {"book": {"$set": {"currency": "USD"}}}, ["wrong_amount"],
    ),
    "completed, but not captured": (OrderStatus.COMPLETED, {"book": {"$unset": {"captured_at": ""}}}, ["wrong_amount"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REPORTED)
async def test_contradiction_that_is_not_safe_to_repair_is_reported(
    stocked: Shop, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    status, changes, kinds = REPORTED[case]
    order = await run_order(stocked, status)
    await drift(stocked, order, **changes)
    before = await document_of(stocked, order), await stocked.net_money(order.order_id), await stocked.available()
    assert await reconcile(stocked, caplog) == [f"{order.order_id}: {kind}" for kind in kinds]
    after = await document_of(stocked, order), await stocked.net_money(order.order_id), await stocked.available()
    assert after == before


async def test_capture_of_unknown_order_is_reported(stocked: Shop, caplog: pytest.LogCaptureFixture) -> None:
    order = await run_order(stocked, OrderStatus.COMPLETED)
    refunded = await run_order(stocked, OrderStatus.FAILED)
    await stocked.mongo.orders.delete_many({})
    assert await reconcile(stocked, caplog) == [f"{order.order_id}: unknown_order"]
    assert await stocked.net_money(order.order_id) == order.total.amount
    assert await stocked.net_money(refunded.order_id) == 0


# --- left alone


async def test_orders_without_contradiction_are_not_reported(stocked: Shop, caplog: pytest.LogCaptureFixture) -> None:
    for changes in ({}, {"shipping_address": UNSERVICEABLE}, {"payment_method": "pm_card_declined"}, {"price": 0}):
        handle = await stocked.start(**changes)
        await handle.result()
        # A real payment service has no record of a charge of nothing.
        book = {"$unset": {"captured_at": ""}} if "price" in changes else None
        await drift(stocked, await stocked.order(handle), book=book)
    handle = await stocked.start(payment_method="pm_card_outage")
    await stocked.wait_for_status(handle, CHARGING)
    await handle.signal("cancel")
    await drift(stocked, await stocked.wait_for_status(handle, OrderStatus.CANCELLED))
    assert await reconcile(stocked, caplog) == []


async def test_order_in_progress_is_not_touched(stocked: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """An order that ended within the last minutes is not touched, either."""
    waiting = await run_order(stocked, OrderStatus.CHARGED, shipping_address={**ADDRESS, "postal_code": "99999"})
    large = await run_order(stocked, OrderStatus.AWAITING_APPROVAL, price=50_000)
    just_failed = await run_order(stocked, OrderStatus.FAILED)
    orders = [waiting, large, just_failed]
    now = datetime.now(UTC).replace(microsecond=0)
    for number, (order, fields) in enumerate(
        [(waiting, {"steps.reserve_inventory.status": "compensated"}), (large, CHARGE_DONE), (just_failed, CHARGE_DONE)]
    ):
        updated_at = now if order is just_failed else ENDED + timedelta(seconds=number)
        await drift(stocked, order, {**fields, "updated_at": updated_at}, book=NOT_REFUNDED)
    before = [await document_of(stocked, order) for order in orders]
    assert await reconcile(stocked, caplog) == []
    assert [await document_of(stocked, order) for order in orders] == before
    assert await stocked.net_money(waiting.order_id) == waiting.total.amount
    assert await stocked.net_money(just_failed.order_id) == just_failed.total.amount
    for order in (waiting, large):
        await stocked.handle(order.order_id).terminate()


class ChangedMeanwhile(SandboxPayments):
    """Its records are read between the read of an order and its repair: all orders have this status by then."""

    def __init__(self, mongo: Mongo, status: str) -> None:
        super().__init__(mongo)
        self._mongo, self._status = mongo, status

    async def captured_between(self, begin: datetime, end: datetime) -> AsyncIterator[list[Capture]]:
        await self._mongo.orders.update_many({}, {"$set": {"status": self._status}})
        async for page in super().captured_between(begin, end):
            yield page


@pytest.mark.parametrize("status", ["placed", "completed"])
async def test_order_placed_again_or_corrected_during_the_run_is_not_touched(
    shop: Shop, caplog: pytest.LogCaptureFixture, status: str
) -> None:
    await shop.stock(available=STOCK)
    payments = ChangedMeanwhile(shop.mongo, status)
    async with build_shop_worker(shop, sandbox_gateways(shop.mongo, payments=payments)):
        order = await run_order(shop, OrderStatus.FAILED)
        await drift(shop, order, CHARGE_DONE, book=NOT_REFUNDED)
        assert await reconcile(shop, caplog) == [f"{order.order_id}: not_compensated"]
    assert await shop.net_money(order.order_id) == order.total.amount


# --- disturbances


class RepeatsPages(SandboxPayments):
    async def captured_between(self, begin: datetime, end: datetime) -> AsyncIterator[list[Capture]]:
        async for page in super().captured_between(begin, end):
            for _ in range(3):
                yield page


async def test_order_of_a_repeated_page_is_reported_and_refunded_once(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await shop.stock(available=STOCK)
    async with build_shop_worker(shop, sandbox_gateways(shop.mongo, payments=RepeatsPages(shop.mongo))):
        order = await run_order(shop, OrderStatus.FAILED)
        await drift(shop, order, CHARGE_DONE, book=NOT_REFUNDED)
        assert await reconcile(shop, caplog) == [
            f"{order.order_id}: {kind}" for kind in ("not_compensated", "not_refunded")
        ]
        assert await repairs(shop) == ["RefundPayment"]
    assert await shop.net_money(order.order_id) == 0


@pytest.mark.parametrize("date", ["2026-01-01T00:00:00", datetime(1, 1, 1, tzinfo=UTC)], ids=["text", "year 1"])
async def test_wrong_date_of_a_charge_does_not_keep_others_from_being_repaired(
    stocked: Shop, caplog: pytest.LogCaptureFixture, date: Any
) -> None:
    wrong = await run_order(stocked, OrderStatus.COMPLETED)
    await drift(stocked, wrong, {"steps.charge_payment.first_attempt_at": date})
    order = await run_order(stocked, OrderStatus.FAILED)
    await drift(stocked, order, {"steps.charge_payment.status": "failed"}, book=NOT_REFUNDED)
    assert await reconcile(stocked, caplog) == [f"{order.order_id}: not_refunded"]
    assert await stocked.net_money(order.order_id) == 0


async def test_run_after_one_whose_clock_was_ahead_compares_a_day(
    stocked: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    order = await run_order(stocked, OrderStatus.COMPLETED)
    await drift(stocked, order, book={"$set": {"refunded": 500}})
    assert await reconcile(stocked, caplog, since=datetime.now(UTC) + HOUR) == [f"{order.order_id}: wrong_amount"]


async def test_worker_does_other_work_while_many_orders_are_read(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """MongoDB would otherwise send 16 MB at once: more than 10,000 orders."""
    await shop.mongo.orders.insert_many([order_document(status="cancelled", updated_at=ENDED) for _ in range(1_500)])
    read, turns = 0, [0]

    def count(order: Order) -> Iterator[reconciliation.Finding]:
        nonlocal read
        read += 1
        return iter(())

    async def work() -> None:
        while True:
            turns.append(read)
            await asyncio.sleep(0)

    monkeypatch.setattr(reconciliation, "_check_steps", count)
    working = asyncio.create_task(work())
    compare = reconciliation.Reconciliation(dependencies(shop.mongo)).compare
    assert await ActivityEnvironment().run(compare, reconciliation.Window(begin=ENDED, end=ENDED + HOUR)) == []
    working.cancel()
    assert read == 1_500
    assert max(after - before for before, after in pairwise([*turns, read])) <= 500


async def test_more_findings_than_the_limit_are_reported_and_not_repaired(
    stocked: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "MAX_FINDINGS", 0)
    order = await run_order(stocked, OrderStatus.FAILED)
    await drift(stocked, order, CHARGE_DONE, book=NOT_REFUNDED)
    with pytest.raises(WorkflowFailureError):
        await reconcile(stocked, caplog)
    assert len(findings_in(caplog)) == 2
    assert await stocked.net_money(order.order_id) == order.total.amount


async def test_findings_are_counted_by_kind(shop: Shop, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Kinds without a finding are 0: Prometheus sees no increase in a series that begins with 1."""
    address = f"127.0.0.1:{free_port()}"
    prometheus = runtime.PrometheusConfig(bind_address=address, counters_total_suffix=True)
    measured = runtime.Runtime(telemetry=runtime.TelemetryConfig(metrics=prometheus))
    server = client.service_client.config.target_host
    with_metrics = shop.with_client(await temporal.connect(target_host=server, runtime=measured))
    await shop.stock()
    async with build_shop_worker(with_metrics):
        order = await run_order(with_metrics, OrderStatus.COMPLETED)
        await drift(shop, order, book={"$set": {"refunded": 500}})
        await reconcile(with_metrics, caplog)
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"http://{address}/metrics")).text
    counts = dict(re.findall(r'^reconciliation_findings_total{.*kind="(\w+)".*} (\d+)$', text, re.MULTILINE))
    assert counts == {kind.value: "0" for kind in reconciliation.Kind} | {"wrong_amount": "1"}


# --- the schedule


async def keep_until(client: Client, shop: Shop, interval: timedelta) -> ScheduleHandle:
    """Keep the schedule, as each worker does, until it has this interval."""
    schedule = client.get_schedule_handle(f"{shop.settings.task_queue}-reconciliation")
    keeping = asyncio.create_task(keep_schedule(client, shop.settings.task_queue, interval))

    async def intervals() -> list[timedelta]:
        assert not keeping.done()
        try:
            return [each.every for each in (await schedule.describe()).schedule.spec.intervals]
        except RPCError:
            return []

    try:
        await eventually(intervals, lambda seen: seen == [interval])
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
    return schedule


@pytest.fixture
async def schedule(shop: Shop, client: Client) -> AsyncIterator[ScheduleHandle]:
    schedule = await keep_until(client, shop, HOUR)
    yield schedule
    await schedule.delete()


async def test_workers_keep_one_schedule_and_leave_it_paused(
    shop: Shop, client: Client, schedule: ScheduleHandle
) -> None:
    await schedule.pause(note="stocktaking")
    await asyncio.gather(*(keep_until(client, shop, 2 * HOUR) for _ in range(4)))
    state = (await schedule.describe()).schedule.state
    assert (state.paused, state.note) == (True, "stocktaking")
    await schedule.unpause()
    await keep_until(client, shop, 3 * HOUR)
    assert not (await schedule.describe()).schedule.state.paused


async def test_zero_interval_creates_no_schedule(shop: Shop, client: Client) -> None:
    await asyncio.wait_for(keep_schedule(client, shop.settings.task_queue, timedelta()), 10)
    with pytest.raises(RPCError, match="not found"):
        await client.get_schedule_handle(f"{shop.settings.task_queue}-reconciliation").describe()


async def test_run_continues_where_the_last_successful_run_ended(
    shop: Shop,
    client: Client,
    schedule: ScheduleHandle,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run fails if a repair does, so the next run finds and repairs the same."""
    monkeypatch.setattr(steps, "RETRY_BEFORE_ATTENTION", RetryPolicy(maximum_attempts=1))
    await shop.stock(available=STOCK)
    refund = Fails(times=0)
    ended: set[str] = set()

    async def run() -> tuple[WorkflowExecutionStatus | None, datetime | None]:
        """Trigger a run. Returns its outcome, and the begin of the window that it compared."""
        await schedule.trigger()
        query = f"TaskQueue = '{shop.settings.task_queue}' AND WorkflowType = 'ReconciliationWorkflow'"

        async def new() -> Any:
            closed = [
                each async for each in client.list_workflows(query) if each.close_time and each.run_id not in ended
            ]
            return closed[0] if closed else None

        execution = await eventually(new)
        ended.add(execution.run_id)
        history = await client.get_workflow_handle(execution.id, run_id=execution.run_id).fetch_history()
        windows = [
            reconciliation.Window.model_validate_json(
                event.activity_task_scheduled_event_attributes.input.payloads[0].data
            )
            for event in history.events
            if event.activity_task_scheduled_event_attributes.activity_type.name == "CompareOrders"
        ]
        return execution.status, windows[0].begin if windows else None

    async with FaultyGateways(shop, RefundPayment=refund).worker():
        order = await run_order(shop, OrderStatus.FAILED)
        await drift(shop, order, {"steps.charge_payment.status": "failed"}, book=NOT_REFUNDED)
        refund.times = float("inf")
        failed, begin = await run()
        assert failed is WorkflowExecutionStatus.FAILED
        assert begin is not None
        refund.times = 0
        repaired, begin_again = await run()
        assert repaired is WorkflowExecutionStatus.COMPLETED
        assert begin_again is not None
        assert await shop.net_money(order.order_id) == 0
        assert findings_in(caplog) == [f"{order.order_id}: not_refunded"] * 2
        _, next_begin = await run()
        assert next_begin is not None
        assert next_begin > begin_again + timedelta(hours=23)  # the first run compares a day
