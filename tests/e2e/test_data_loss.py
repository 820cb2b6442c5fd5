"""All of Temporal's data is lost, under traffic, with orders in every state: each goes on by itself (G1 to G6, G8)."""

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
from app.messages import ApprovalDecision
from app.mongo import ChangeStream, Mongo, next_change
from app.order_workflows import OrderWorkflows, workflow_id
from app.orders import OrderRepository
from app.relay import OutboxRelay
from app.settings import Settings
from dev.servers import Server, free_port, start_temporal
from tests.kit.faults import Fails, FaultyGateways
from tests.kit.http import serve
from tests.kit.orders import ADDRESS, order_body, steps_of
from tests.kit.shop import Shop, relaying
from tests.kit.waiting import eventually
from tests.kit.workflows import REFUND, reconfigure

STOCK = 100_000
CARRIER_DOWN = {**ADDRESS, "postal_code": "99999"}
UNSERVICEABLE = {**ADDRESS, "postal_code": "00000"}
LARGE = [{"sku": "MUG", "quantity": 60}]  # needs an approval


class Temporal:
    """A server whose data can be lost."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._server: Server

    async def start(self) -> None:
        self._server = await start_temporal(self._port, db_file=self._folder / "temporal.db")

    async def lose_all(self) -> None:
        """It is down afterwards, and will not know any workflow once it is up."""
        await self._server.kill()
        files = list(self._folder.glob("temporal.db*"))
        assert files
        for file in files:
            file.unlink()

    async def stop(self) -> None:
        await self._server.stop()


class Customers:
    """They place orders over HTTP and decide on them, and remember what was accepted."""

    def __init__(self, api: httpx.AsyncClient, shop: Shop) -> None:
        self._api = api
        self._shop = shop
        self.accepted: list[str] = []

    async def place(self, status: OrderStatus = OrderStatus.PLACED, **changes: Any) -> str:
        """Place an order, and wait until it has the status."""
        answer = await self._api.post("/orders", json=order_body(**changes))
        assert answer.status_code == 202, answer.text
        order_id = str(answer.json()["order_id"])
        if status is not OrderStatus.PLACED:
            await self._shop.reaches(order_id, status)
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
        """An order every quarter of a second, each accepted."""

        async def keep_placing() -> None:
            while True:
                self.accepted.append(await self.place())
                await asyncio.sleep(0.25)

        async with _beside(keep_placing()):
            yield


class Statuses:
    """All statuses that each order has had, in their order."""

    def __init__(self) -> None:
        self.of: dict[str, list[str]] = defaultdict(list)

    @asynccontextmanager
    async def watching(self, mongo: Mongo) -> AsyncIterator[None]:
        writes = [{"$match": {"operationType": {"$in": ["insert", "update"]}}}]
        async with mongo.watch(mongo.orders, writes) as changes, _beside(self._follow(changes)):
            yield

    async def _follow(self, changes: ChangeStream) -> None:
        while True:
            change = await next_change(changes) or {}
            fields = change.get("fullDocument") or change.get("updateDescription", {}).get("updatedFields", {})
            if "status" in fields:
                self.of[change["documentKey"]["_id"]].append(fields["status"])


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Work that goes on meanwhile, and may not end by itself."""
    task = asyncio.create_task(work)
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Temporal]:
    server = Temporal(tmp_path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def shop(mongo: Mongo, settings: Settings, server: Temporal) -> Shop:
    await mongo.create_indexes()
    shop = Shop(mongo, settings, await temporal.connect(target_host=server.address))
    await shop.stock(available=STOCK)
    return shop


@pytest.fixture
async def customers(shop: Shop, settings: Settings, server: Temporal) -> AsyncIterator[Customers]:
    async with serve(settings, server.address) as api:
        yield Customers(api, shop)


@pytest.fixture
def sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "SWEEP_INTERVAL", 1.0)


@dataclass(frozen=True)
class Orders:
    """One order, or several, in every state."""

    completed: str
    declined: str
    cancelled: str
    awaiting: Sequence[str]  # four
    approved: str  # and charged; the carrier is down
    charging: Sequence[str]  # two; the payment service is down
    shipping: Sequence[str]  # three; the carrier is down
    attention: str  # the refund keeps failing, here and below
    compensating: str
    cancelling: str

    @classmethod
    async def place(cls, customers: Customers, shop: Shop, refund: Fails) -> Orders:
        async def cancelled() -> str:
            order_id = await customers.place_large()
            await customers.cancel(order_id)
            await shop.reaches(order_id, OrderStatus.CANCELLED)
            return order_id

        async def approved() -> str:
            order_id = await customers.place_large(shipping_address=CARRIER_DOWN)
            await customers.approve(order_id)
            await shop.reaches(order_id, OrderStatus.CHARGED)
            return order_id

        final = await asyncio.gather(
            customers.place(OrderStatus.COMPLETED),
            customers.place(OrderStatus.FAILED, payment_method="pm_card_declined"),
            cancelled(),
        )
        refund.times = float("inf")
        charging = (customers.place(OrderStatus.RESERVED, payment_method="pm_card_outage") for _ in range(2))
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
        await shop.reaches(placed.cancelling, OrderStatus.COMPENSATING)
        await eventually(lambda: _retries_without_pause(shop, placed.attention))
        await shop.reaches(placed.attention, OrderStatus.NEEDS_ATTENTION)
        return placed


async def _retries_without_pause(shop: Shop, order_id: str) -> bool:
    """For the refund that is pending; it is not yet at first."""
    try:
        await reconfigure(shop.handle(order_id), REFUND, pause=timedelta(milliseconds=10))
    except RPCError:
        return False
    return True


@pytest.mark.usefixtures("sweeping")
async def test_orders_in_every_state_continue_after_loss_of_temporal(
    shop: Shop, customers: Customers, server: Temporal
) -> None:
    refund, statuses = Fails(times=0), Statuses()
    async with relaying(shop), statuses.watching(shop.mongo):
        # Without a worker: no workflow has begun.
        unbegun = await customers.place(), await customers.place(lines=LARGE)
        await server.lose_all()
        await server.start()
        async with FaultyGateways(shop, RefundPayment=refund).worker():
            await shop.reaches(unbegun[0], OrderStatus.COMPLETED)
            await shop.reaches(unbegun[1], OrderStatus.AWAITING_APPROVAL)
            async with customers.traffic():
                orders = await Orders.place(customers, shop, refund)
                await server.lose_all()
                changed = await _decide_meanwhile(orders, customers, shop)
                await server.start()
                await eventually(lambda: _without_workflow(shop, customers), lambda lost: not lost)
            await _check_states(orders, shop)
            await _end_outages(orders, customers, shop, refund)
            await customers.approve(unbegun[1])
            await _check_ends(orders, [*unbegun, *customers.accepted], shop)

    for order_id, reached in statuses.of.items():
        assert len(set(reached)) == len(reached), f"{order_id} went back: {reached}"
    assert await shop.available() + await shop.held() == STOCK
    # No workflow was started for an order that was final, or more than once.
    known = [execution.id async for execution in shop.client.list_workflows()]
    assert len(set(known)) == len(known)
    final = [orders.completed, orders.declined, orders.cancelled, changed]
    assert not {workflow_id(order_id) for order_id in final} & set(known)


async def _decide_meanwhile(orders: Orders, customers: Customers, shop: Shop) -> str:
    """Temporal is away. 503 says that it has not heard of a decision, which MongoDB keeps."""
    assert await customers.post(orders.awaiting[0], "approval", approved=True) == 503
    # Or the API is killed before it tells Temporal.
    await shop.orders.decide_approval(orders.awaiting[1], ApprovalDecision(approved=True))
    await shop.orders.request_cancellation(orders.shipping[0], "enough")
    changed = await shop.place()  # and made final by another program, before a relay could start it
    await shop.mongo.orders.update_one({"_id": changed.order_id}, {"$set": {"status": "cancelled"}})
    accepted = len(customers.accepted)

    async def more() -> int:
        return len(customers.accepted) - accepted

    await eventually(more, lambda more: more >= 2)
    return changed.order_id


async def _without_workflow(shop: Shop, customers: Customers) -> set[str]:
    """The open orders, but those of the traffic, that no workflow runs for."""
    open_ids = set(await shop.orders.open_ids())
    return open_ids - set(customers.accepted) - await shop.workflows.running()


async def _check_states(orders: Orders, shop: Shop) -> None:
    """Each is where it was, but for those that were decided on meanwhile: they go on."""
    for order_id in orders.awaiting[:2]:
        await shop.reaches(order_id, OrderStatus.COMPLETED)
    await shop.reaches(orders.shipping[0], OrderStatus.COMPENSATING, OrderStatus.NEEDS_ATTENTION)
    expected = {
        OrderStatus.AWAITING_APPROVAL: orders.awaiting[2:],
        OrderStatus.RESERVED: orders.charging,
        OrderStatus.CHARGED: [orders.approved, *orders.shipping[1:]],
        OrderStatus.COMPENSATING: [orders.compensating, orders.cancelling],
        OrderStatus.NEEDS_ATTENTION: [orders.attention],
    }
    for status, order_ids in expected.items():
        assert {(await shop.order(order_id)).status for order_id in order_ids} == {status}


async def _end_outages(orders: Orders, customers: Customers, shop: Shop, refund: Fails) -> None:
    """All services work again, for each order; and decisions over HTTP work as ever."""
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
            await _check_end(await shop.reaches(order_id, *TERMINAL), status, shop)


async def _check_end(order: Order, status: OrderStatus, shop: Shop) -> None:
    assert order.status is status, order
    completed = status is OrderStatus.COMPLETED
    assert set(steps_of(order).values()) <= ({"done"} if completed else {"compensated", "failed"}), order
    assert await shop.net_money(order.order_id) == (order.total.amount if completed else 0)
    parcel = await shop.mongo.sandbox.find_one({"_id": f"shipment:{order.order_id}"}) or {}
    assert parcel.get("shipped", False) == completed  # not even called off


# --- and what the sweep costs, while nothing is lost


class CountingWorkflows(OrderWorkflows):
    """The real calls, counted by name."""

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
    monkeypatch.setattr(relay, "SWEEP_INTERVAL", 0.1)  # in fact each second, as long as no order is inserted
    orders, workflows = CountingOrders(shop.mongo), CountingWorkflows(shop.client, shop.settings)
    async with FaultyGateways(shop).worker():
        handles = [await shop.start(payment_method="pm_card_outage") for _ in range(10)]
        handles += [await shop.start(price=shop.settings.approval_threshold) for _ in range(10)]
        for handle in handles:
            await shop.reaches(handle, OrderStatus.RESERVED, OrderStatus.AWAITING_APPROVAL)
        await eventually(shop.workflows.running, lambda running: len(running) == len(handles))
        async with _beside(OutboxRelay(shop.mongo, orders, workflows).run()):

            async def sweeps() -> int:
                return orders.sweeps

            await eventually(sweeps, lambda sweeps: sweeps >= 4)
            assert workflows.calls == {"running": orders.sweeps}
        for handle in handles:
            await handle.terminate()
