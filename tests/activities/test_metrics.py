"""The worker's metrics of orders: each end counts once, and only the relay with the lease reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.runtime import BUFFERED_METRIC_KIND_HISTOGRAM, MetricBuffer, Runtime, TelemetryConfig

from app import metrics, temporal
from app.domain import Attempt, Failure, Order, OrderStatus, StepChange, StepEvent, StepName
from app.messages import StatusUpdate
from app.order_workflows import OrderWorkflows
from app.relay import OutboxRelay
from tests.kit.orders import order_document
from tests.kit.shop import Shop
from tests.kit.waiting import eventually

S = OrderStatus
FAILURE = Failure(code="payment_declined", message="no")
FIRST = Attempt(datetime(2026, 1, 1, tzinfo=UTC), 1)


class Recorded:
    """What was recorded, through the SDK's own buffer."""

    def __init__(self, buffer: MetricBuffer) -> None:
        self._buffer = buffer
        self._ends: list[str] = []
        self._compensated: list[str] = []
        self.gauges: dict[str, float] = {}

    def update(self) -> None:
        for update in self._buffer.retrieve_updates():
            labels = [str(value) for name, value in update.attributes.items() if name in ("status", "step")]
            if update.metric.kind == BUFFERED_METRIC_KIND_HISTOGRAM:
                self._ends += labels
            elif update.metric.name == "order_steps_compensated":
                self._compensated += labels * int(update.value)
            else:
                self.gauges[" ".join([update.metric.name, *labels])] = update.value

    def ends(self) -> list[str]:
        self.update()
        return sorted(self._ends)

    def compensated(self) -> list[str]:
        self.update()
        return sorted(self._compensated)

    async def wait_for(self, gauge: str, until: Callable[[float], bool]) -> None:
        async def value() -> float:
            self.update()
            return self.gauges.get(gauge, -1)

        await eventually(value, until)


@pytest.fixture(scope="module")
def runtime() -> Iterator[tuple[Runtime, MetricBuffer]]:
    buffer = MetricBuffer(10_000)
    yield Runtime(telemetry=TelemetryConfig(metrics=buffer)), buffer
    buffer.retrieve_updates()


@pytest.fixture
def recorded(runtime: tuple[Runtime, MetricBuffer], monkeypatch: pytest.MonkeyPatch) -> Recorded:
    instruments = metrics.Instruments(runtime[0].metric_meter)
    monkeypatch.setattr(metrics, "instruments", lambda: instruments)
    monkeypatch.setattr(metrics, "INTERVAL", 0.05)
    runtime[1].retrieve_updates()
    return Recorded(runtime[1])


# --- ends


async def update(shop: Shop, order: Order, status: OrderStatus) -> None:
    failure = FAILURE if status is S.COMPENSATING else None
    await shop.orders.update_status(StatusUpdate(order_id=order.order_id, status=status, failure=failure))


async def change(shop: Shop, order: Order, step: StepName, event: StepEvent) -> None:
    await shop.orders.change_step(order.order_id, StepChange(step, event, "-", None, FIRST))


@pytest.mark.parametrize("status", [S.FAILED, S.CANCELLED])
async def test_end_written_by_repeated_and_simultaneous_attempts_counts_once(
    shop: Shop, recorded: Recorded, status: OrderStatus
) -> None:
    order = await shop.place(created_at=datetime.now(UTC) - timedelta(hours=1))
    await update(shop, order, S.COMPENSATING)
    assert recorded.ends() == []
    await asyncio.gather(*(update(shop, order, status) for _ in range(5)))
    for late in (status, S.COMPENSATING, S.COMPLETED, S.FAILED):
        await update(shop, order, late)
    assert recorded.ends() == [status]


async def test_completed_order_counts_once_however_often_its_confirmation_is_recorded(
    shop: Shop, recorded: Recorded
) -> None:
    order = await shop.place()
    for step in [*StepName, *StepName]:
        await change(shop, order, step, StepEvent.SUCCEEDED)
    await update(shop, order, S.COMPLETED)
    assert recorded.ends() == [S.COMPLETED]


async def test_malformed_order_and_one_from_the_future_count_as_failed(shop: Shop, recorded: Recorded) -> None:
    without_status = order_document(_id="without_status")
    del without_status["status"]
    await shop.mongo.orders.insert_many(
        [
            without_status,
            {"_id": "strange", "status": {"is": "failed"}},
            order_document(_id="early", status="compensating", created_at=datetime(2999, 1, 1, tzinfo=UTC)),
        ]
    )
    await change(shop, await shop.order("without_status"), StepName.CHARGE_PAYMENT, StepEvent.FENCED)
    await shop.orders.mark_malformed("strange", FAILURE)
    await shop.orders.mark_malformed("strange", FAILURE)
    await shop.orders.update_status(StatusUpdate(order_id="early", status=S.FAILED))
    assert recorded.ends() == [S.FAILED, S.FAILED]


async def test_compensated_steps_count_when_the_order_ends(shop: Shop, recorded: Recorded) -> None:
    order = await shop.place()
    await change(shop, order, StepName.RESERVE_INVENTORY, StepEvent.SUCCEEDED)
    await change(shop, order, StepName.CHARGE_PAYMENT, StepEvent.SUCCEEDED)
    await update(shop, order, S.COMPENSATING)
    for step in (StepName.CREATE_SHIPMENT, StepName.CHARGE_PAYMENT, StepName.RESERVE_INVENTORY):
        await change(shop, order, step, StepEvent.FENCED)
        await change(shop, order, step, StepEvent.COMPENSATED) if step is not StepName.CREATE_SHIPMENT else None
    assert recorded.compensated() == []
    await update(shop, order, S.FAILED)
    await update(shop, order, S.FAILED)
    assert recorded.compensated() == ["charge_payment", "reserve_inventory"]


# --- open orders and the relay


@asynccontextmanager
async def watched_relay(shop: Shop, workflows: OrderWorkflows | None = None) -> AsyncIterator[None]:
    relay = OutboxRelay(shop.mongo, shop.orders, workflows or shop.workflows)
    running = asyncio.gather(relay.run(), metrics.watch(shop.orders, relay))
    try:
        yield
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_open_orders_are_reported_until_another_relay_takes_the_lease(shop: Shop, recorded: Recorded) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=2)
    for status in (S.NEEDS_ATTENTION, S.NEEDS_ATTENTION, S.RESERVED, S.COMPLETED):
        await shop.place(status=status.value)
    await shop.place(status="needs_attention", created_at=long_ago)
    async with watched_relay(shop):
        await recorded.wait_for("orders_open needs_attention", lambda orders: orders == 3)
        await recorded.wait_for("orders_open reserved", lambda orders: orders == 1)
        assert recorded.gauges["orders_open placed"] == 0
        assert recorded.gauges["orders_open_oldest_seconds needs_attention"] >= timedelta(days=2).total_seconds()
        assert recorded.gauges["orders_open_oldest_seconds reserved"] < timedelta(days=1).total_seconds()
        assert recorded.gauges["orders_open_oldest_seconds placed"] == 0
        assert "orders_open completed" not in recorded.gauges
        assert recorded.gauges["order_relay_leases"] == 1
        taken = {"holder": "another", "until": datetime.now(UTC) + timedelta(days=1)}
        await shop.mongo.relay.update_one({"_id": "relay"}, {"$set": taken})
        await recorded.wait_for("orders_open needs_attention", lambda orders: orders == 0)
        await recorded.wait_for("order_relay_leases", lambda leases: leases == 0)
        assert recorded.gauges["order_relay_lag_seconds"] == 0
        assert recorded.gauges["orders_open_oldest_seconds needs_attention"] == 0


async def test_lag_grows_while_temporal_is_away_and_open_orders_are_still_counted(
    shop: Shop, recorded: Recorded
) -> None:
    address = shop.client.service_client.config.target_host
    elsewhere = OrderWorkflows(await temporal.connect(target_host=address, namespace="nowhere"), shop.settings)
    async with watched_relay(shop, elsewhere):
        await shop.place()
        await recorded.wait_for("orders_open placed", lambda orders: orders == 1)
        await recorded.wait_for("order_relay_lag_seconds", lambda lag: lag > 3)
        assert recorded.gauges["order_relay_leases"] == 1


async def test_lag_is_the_wait_of_the_order_that_cannot_be_started_while_others_are(
    shop: Shop, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.relay.GRACE", 0.1)
    monkeypatch.setattr("app.relay.FAILED_START_DELAY", 0.1)
    address = shop.client.service_client.config.target_host
    lost = OrderWorkflows(await temporal.connect(target_host=address, namespace="nowhere"), shop.settings)

    class FailingForOneOrder(OrderWorkflows):
        async def start(self, order: Order, timeout: float = 1) -> None:
            await (lost if order.order_id == "unlucky" else shop.workflows).start(order, timeout)

    async with watched_relay(shop, FailingForOneOrder(shop.client, shop.settings)):
        await recorded.wait_for("order_relay_lag_seconds", lambda lag: 0 < lag < 3)
        await shop.place(_id="unlucky")
        await recorded.wait_for("order_relay_lag_seconds", lambda lag: lag > 4)
        other = await shop.place()

        async def is_started() -> Any:
            return other.order_id in await shop.workflows.running()

        await eventually(is_started)
        await shop.mongo.orders.delete_one({"_id": "unlucky"})
        await recorded.wait_for("order_relay_lag_seconds", lambda lag: 0 < lag < 3)
