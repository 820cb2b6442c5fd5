"""All of Temporal's data is lost under traffic, and orders in every state continue (G1 to G6, G8)."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.client import Client
from temporalio.service import RPCError

from app import relay, temporal
from app.domain import TERMINAL, Order, OrderStatus
from app.gateways.sandbox import records
from app.mongo import ChangeStream, Mongo, next_change
from app.order_workflows import OrderWorkflows, workflow_id
from app.orders import OrderRepository
from app.relay import OutboxRelay
from app.settings import ApiSettings, Settings
from app.workflows import reconciliation
from dev.servers import Server, free_port, start_temporal
from tests.kit.faults import Fails, FaultyGateways
from tests.kit.http import serve
from tests.kit.orders import ADDRESS, CHARGING, order_body, steps_of
from tests.kit.relay import running_relay
from tests.kit.shop import Shop
from tests.kit.waiting import eventually
from tests.kit.workflows import REFUND, reconfigure

STOCK = 100_000
CARRIER_DOWN = {**ADDRESS, "postal_code": "99999"}
UNSERVICEABLE = {**ADDRESS, "postal_code": "00000"}
LARGE = [{"sku": "MUG", "quantity": 60}]  # needs approval


class TemporalWithData:
    """A Temporal server whose data can be deleted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._server: Server

    async def start(self) -> None:
        self._server = await start_temporal(self._port, db_file=self._folder / "temporal.db")

    async def delete_data(self) -> None:
        """Kill the server and delete its data."""
        await self._server.kill()
        files = list(self._folder.glob("temporal.db*"))
        assert files
        for file in files:
            file.unlink()

    async def stop(self) -> None:
        await self._server.stop()


class Customers:
    """Place orders over HTTP, and approve or cancel them."""

    def __init__(self, api: httpx.AsyncClient, shop: Shop) -> None:
        self._api = api
        self._shop = shop
        self.accepted: list[str] = []

    async def place(self, status: OrderStatus = OrderStatus.PLACED, **changes: Any) -> str:
        """Place an order, and wait until it has this status."""
        answer = await self._api.post("/orders", json=order_body(**changes))
        assert answer.status_code == 202, answer.text
        order_id = str(answer.json()["order_id"])
        if status is not OrderStatus.PLACED:
            await self._shop.wait_for_status(order_id, status)
        return order_id

    async def place_large(self, **changes: Any) -> str:
        return await self.place(OrderStatus.AWAITING_APPROVAL, lines=LARGE, **changes)

    async def post(self, order_id: str, action: str, **body: Any) -> int:
        return (await self._api.post(f"/orders/{order_id}/{action}", json=body)).status_code

    async def approve(self, order_id: str) -> None:
        assert await self.post(order_id, "approval", approved=True) == 202

    async def cancel(self, order_id: str) -> None:
        assert await self.post(order_id, "cancel", reason="enough") == 202

    @asynccontextmanager
    async def traffic(self) -> AsyncIterator[None]:
        """An order each second, each accepted."""

        async def keep_placing() -> None:
            while True:
                self.accepted.append(await self.place())
                await asyncio.sleep(1)

        async with _in_background(keep_placing()):
            yield

    async def more_accepted(self, count: int) -> None:
        """Wait until the traffic has had this many more orders accepted."""
        before = len(self.accepted)

        async def more() -> int:
            return len(self.accepted) - before

        await eventually(more, lambda more: more >= count)


class StatusHistory:
    """Records all statuses of each order, in sequence."""

    def __init__(self) -> None:
        self.of: dict[str, list[str]] = defaultdict(list)

    @asynccontextmanager
    async def watching(self, mongo: Mongo) -> AsyncIterator[None]:
        writes = [{"$match": {"operationType": {"$in": ["insert", "update"]}}}]
        async with mongo.watch(mongo.orders, writes) as changes, _in_background(self._follow(changes)):
            yield

    async def _follow(self, changes: ChangeStream) -> None:
        while True:
            change = await next_change(changes) or {}
            fields = change.get("fullDocument") or change.get("updateDescription", {}).get("updatedFields", {})
            if "status" in fields:
                self.of[change["documentKey"]["_id"]].append(fields["status"])


@asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` in the background. Fails if it ends by itself."""
    task = asyncio.create_task(work)
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TemporalWithData]:
    server = TemporalWithData(tmp_path_factory.mktemp("temporal"))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def shop(mongo: Mongo, settings: ApiSettings, server: TemporalWithData) -> Shop:
    await mongo.create_indexes()
    shop = Shop(mongo, settings, await temporal.connect(target_host=server.address))
    await shop.stock(available=STOCK)
    return shop


@pytest.fixture
async def customers(shop: Shop, settings: ApiSettings, server: TemporalWithData) -> AsyncIterator[Customers]:
    async with serve(settings, server.address) as api:
        yield Customers(api, shop)


@pytest.fixture
def frequent_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "SWEEP_INTERVAL", 1.0)


@dataclass(frozen=True)
class Orders:
    """Ids of orders in every state."""

    completed: str
    declined: str
    cancelled: str
    awaiting: Sequence[str]  # four
    approved: str  # charged as well; the carrier is down
    charging: Sequence[str]  # two; the payment service is down
    shipping: Sequence[str]  # three; the carrier is down
    attention: str  # the refund keeps failing, also for the next two
    compensating: str
    cancelling: str

    @classmethod
    async def place(cls, customers: Customers, shop: Shop, refund: Fails) -> Orders:
        async def cancelled() -> str:
            order_id = await customers.place_large()
            await customers.cancel(order_id)
            await shop.wait_for_status(order_id, OrderStatus.CANCELLED)
            return order_id

        async def approved() -> str:
            order_id = await customers.place_large(shipping_address=CARRIER_DOWN)
            await customers.approve(order_id)
            await shop.wait_for_status(order_id, OrderStatus.CHARGED)
            return order_id

        final = await asyncio.gather(
            customers.place(OrderStatus.COMPLETED),
            customers.place(OrderStatus.FAILED, payment_method="pm_card_declined"),
            cancelled(),
        )
        refund.times = float("inf")
        charging = (customers.place(CHARGING, payment_method="pm_card_outage") for _ in range(2))
        shipping = (customers.place(OrderStatus.CHARGED, shipping_address=CARRIER_DOWN) for _ in range(4))
        compensating = (customers.place(OrderStatus.COMPENSATING, shipping_address=UNSERVICEABLE) for _ in range(2))
        placed = cls(
            *final,
            awaiting=await asyncio.gather(*(customers.place_large() for _ in range(4))),
            approved=await approved(),
            charging=await asyncio.gather(*charging),
            shipping=(shipped := await asyncio.gather(*shipping))[:3],
            attention=(compensated := await asyncio.gather(*compensating))[0],
            compensating=compensated[1],
            cancelling=shipped[3],
        )
        await customers.cancel(placed.cancelling)
        await shop.wait_for_status(placed.cancelling, OrderStatus.COMPENSATING)
        await eventually(lambda: _shorten_retry_delay(shop, placed.attention))
        await shop.wait_for_status(placed.attention, OrderStatus.NEEDS_ATTENTION)
        return placed


async def _shorten_retry_delay(shop: Shop, order_id: str) -> bool:
    """Shorten the retry delay of the pending refund. Returns False while it is not pending yet."""
    try:
        await reconfigure(shop.handle(order_id), REFUND, pause=timedelta(milliseconds=10))
    except RPCError:
        return False
    return True


@pytest.mark.usefixtures("frequent_sweeps")
async def test_orders_in_every_state_continue_after_loss_of_temporal(
    shop: Shop, customers: Customers, server: TemporalWithData
) -> None:
    refund, history = Fails(times=0), StatusHistory()
    async with running_relay(shop), history.watching(shop.mongo):
        # Without a worker, no workflow task has run.
        not_begun = await customers.place(), await customers.place(lines=LARGE)
        await server.delete_data()
        await server.start()
        async with FaultyGateways(shop, RefundPayment=refund).worker():
            await shop.wait_for_status(not_begun[0], OrderStatus.COMPLETED)
            await shop.wait_for_status(not_begun[1], OrderStatus.AWAITING_APPROVAL)
            orders = await Orders.place(customers, shop, refund)
            async with customers.traffic():
                await customers.more_accepted(1)
                await server.delete_data()
                changed = await _decide_during_outage(orders, customers, shop)
                await server.start()
                await eventually(lambda: _without_workflow(shop, customers), lambda lost: not lost)
            await _check_states(orders, shop)
            await _end_outages(orders, customers, shop, refund)
            await customers.approve(not_begun[1])
            await _check_ends(orders, [*not_begun, *customers.accepted], shop)

    for order_id, reached in history.of.items():
        assert len(set(reached)) == len(reached), f"{order_id} repeated a status: {reached}"
    assert await shop.available() + await shop.held() == STOCK
    # No workflow was started for a final order, and none was started twice.
    known = [execution.id async for execution in shop.client.list_workflows()]
    assert len(set(known)) == len(known)
    final = [orders.completed, orders.declined, orders.cancelled, changed]
    assert not {workflow_id(order_id) for order_id in final} & set(known)


async def _decide_during_outage(orders: Orders, customers: Customers, shop: Shop) -> str:
    """Approve and cancel while Temporal is down. The API answers 503, but MongoDB keeps the decision."""
    assert await customers.post(orders.awaiting[0], "approval", approved=True) == 503
    # These stand for an API that was killed before it signalled Temporal.
    await shop.orders.decide_approval(orders.awaiting[1], approved=True)
    await shop.orders.request_cancellation(orders.shipping[0], "enough")
    changed = await shop.place()  # made final by another program before a relay could start it
    await shop.mongo.orders.update_one({"_id": changed.order_id}, {"$set": {"status": "cancelled"}})
    await customers.more_accepted(2)
    return changed.order_id


async def _without_workflow(shop: Shop, customers: Customers) -> set[str]:
    """The ids of open orders without a running workflow, except those of the traffic."""
    open_ids = set(await shop.orders.open_ids())
    return open_ids - set(customers.accepted) - await shop.workflows.running()


async def _check_states(orders: Orders, shop: Shop) -> None:
    """Check that orders with a decision have continued, and that all others kept their status."""
    for order_id in orders.awaiting[:2]:
        await shop.wait_for_status(order_id, OrderStatus.COMPLETED)
    await shop.wait_for_status(orders.shipping[0], OrderStatus.COMPENSATING, OrderStatus.NEEDS_ATTENTION)
    expected = {
        OrderStatus.AWAITING_APPROVAL: orders.awaiting[2:],
        CHARGING: orders.charging,
        OrderStatus.CHARGED: [orders.approved, *orders.shipping[1:]],
        OrderStatus.COMPENSATING: [orders.compensating, orders.cancelling],
        OrderStatus.NEEDS_ATTENTION: [orders.attention],
    }
    for status, order_ids in expected.items():
        assert {(await shop.order(order_id)).status for order_id in order_ids} == {status}


async def _end_outages(orders: Orders, customers: Customers, shop: Shop, refund: Fails) -> None:
    """End the outages of all services, and send further decisions over HTTP."""
    for order_id in [orders.awaiting[3], orders.charging[1], orders.shipping[1]]:
        await customers.cancel(order_id)
    everywhere = {"$set": {"shipping_address": ADDRESS, "payment_method": "pm_card_ok"}}
    await shop.mongo.orders.update_many({"status": {"$nin": list(TERMINAL)}}, everywhere)
    refund.times = 0
    await customers.approve(orders.awaiting[2])


async def _check_ends(orders: Orders, others: Sequence[str], shop: Shop) -> None:
    expected = {
        OrderStatus.COMPLETED: [
            *(orders.completed, *orders.awaiting[:3], orders.approved, orders.charging[0], orders.shipping[2]),
            *others,
        ],
        OrderStatus.FAILED: [orders.declined, orders.attention, orders.compensating],
        OrderStatus.CANCELLED: [
            *(orders.cancelled, orders.awaiting[3], orders.charging[1], *orders.shipping[:2], orders.cancelling)
        ],
    }
    for status, order_ids in expected.items():
        for order_id in order_ids:
            await _check_end(await shop.wait_for_status(order_id, *TERMINAL), status, shop)


async def _check_end(order: Order, status: OrderStatus, shop: Shop) -> None:
    assert order.status is status, order
    completed = status is OrderStatus.COMPLETED
    assert set(steps_of(order).values()) <= ({"done"} if completed else {"compensated", "failed"}), order
    assert await shop.net_money(order.order_id) == (order.total.amount if completed else 0)
    parcel = await records(shop.mongo).find_one({"_id": f"shipment:{order.order_id}"}) or {}
    assert parcel.get("shipped", False) == completed  # an order that failed was never shipped


async def test_schedule_of_reconciliation_is_created_again_after_loss_of_temporal(
    shop: Shop, server: TemporalWithData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "CHECK_INTERVAL", 0.2)
    task_queue = shop.settings.task_queue

    async def exists() -> bool:
        try:
            return bool(await shop.client.get_schedule_handle(f"{task_queue}-reconciliation").describe())
        except RPCError:
            return False

    async with _in_background(reconciliation.keep_schedule(shop.client, task_queue, timedelta(hours=1))):
        await eventually(exists)
        await server.delete_data()
        await server.start()
        await eventually(exists)


# --- the cost of a sweep while no workflow is lost


class CountingWorkflows(OrderWorkflows):
    """Counts the calls of each method."""

    def __init__(self, client: Client, settings: Settings) -> None:
        super().__init__(client, settings)
        self.calls: Counter[str] = Counter()

    async def start(self, order: Order, timeout: float = 1) -> None:
        self.calls["start"] += 1
        await super().start(order, timeout)

    async def running(self, order_ids: Sequence[str] | None = None) -> set[str]:
        self.calls["running" if order_ids is None else "running of some"] += 1
        return await super().running(order_ids)


class CountingOrders(OrderRepository):
    sweeps = 0

    async def open_ids(self, among: Sequence[Any] | None = None) -> list[Any]:
        self.sweeps += among is None
        return await super().open_ids(among)


async def test_sweep_of_orders_with_running_workflows_asks_temporal_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "SWEEP_INTERVAL", 0.1)  # in practice each second, while no order is inserted
    orders, workflows = CountingOrders(shop.mongo), CountingWorkflows(shop.client, shop.settings)
    async with FaultyGateways(shop).worker():
        handles = [await shop.start(payment_method="pm_card_outage") for _ in range(3)]
        handles += [await shop.start(price=shop.settings.approval_threshold) for _ in range(3)]
        for handle in handles:
            await shop.wait_for_status(handle, CHARGING, OrderStatus.AWAITING_APPROVAL)
        await eventually(shop.workflows.running, lambda running: len(running) == len(handles))
        async with _in_background(OutboxRelay(shop.mongo, orders, workflows).run()):

            async def sweeps() -> int:
                return orders.sweeps

            await eventually(sweeps, lambda sweeps: sweeps >= 4)
            assert workflows.calls == {"running": orders.sweeps}
        for handle in handles:
            await handle.terminate()
