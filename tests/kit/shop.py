"""The shop of one test: its orders, stock and books, its gateways and worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from temporalio.client import Client, WorkflowHandle
from temporalio.worker import PollerBehaviorSimpleMaximum, Worker

from app.activities.order_step import Dependencies
from app.domain import Order, OrderStatus
from app.gateways import Gateways
from app.gateways.sandbox import sandbox
from app.messages import OrderResult
from app.mongo import Mongo
from app.order_workflows import OrderWorkflows, workflow_id
from app.orders import OrderRepository
from app.products import ProductRepository
from app.relay import OutboxRelay
from app.settings import Settings
from app.workflows.order import OrderWorkflow
from tests.kit.orders import order_document
from tests.kit.waiting import eventually
from worker import build_worker

T = TypeVar("T")


class Shop:
    """One test's database and task queue, and what a test does with them."""

    def __init__(self, mongo: Mongo, settings: Settings, client: Client) -> None:
        self.mongo = mongo
        self.settings = settings
        self.client = client
        self.orders = OrderRepository(mongo)
        self.workflows = OrderWorkflows(client, settings)

    def with_client(self, client: Client) -> Shop:
        """The same shop, whose sagas are started by another client (one that skips time)."""
        return Shop(self.mongo, self.settings, client)

    async def stock(self, sku: str = "MUG", available: int = 100, price: int = 1_000) -> None:
        article = {"name": sku, "unit_price": {"amount": price, "currency": "EUR"}, "available": available}
        await self.mongo.inventory.update_one({"_id": sku}, {"$set": article}, upsert=True)

    async def available(self, sku: str = "MUG") -> int:
        article = await self.mongo.inventory.find_one({"_id": sku})
        assert article is not None
        available: int = article["available"]
        return available

    async def held(self, sku: str = "MUG") -> int:
        """The quantity that reservations hold."""
        found = self.mongo.orders.find({"steps.reserve_inventory.status": "done"})
        records = [document["steps"]["reserve_inventory"] async for document in found]
        return sum(line["quantity"] for record in records for line in record["quantities"] if line["sku"] == sku)

    async def net_money(self, order_id: str) -> int:
        """Captured less refunded, in minor units, as the payment service's own books say."""
        entry = await self.mongo.sandbox.find_one({"_id": f"payment:{order_id}"}) or {}
        return int(entry.get("captured", 0)) - int(entry.get("refunded", 0))

    async def place(self, lines: dict[str, int] | None = None, **changes: Any) -> Order:
        """Put an order into MongoDB, as the API does, without starting it."""
        document = order_document(lines, **changes)
        await self.mongo.orders.insert_one(document)
        return Order.from_document(document)

    async def start(self, lines: dict[str, int] | None = None, **changes: Any) -> WorkflowHandle[Any, OrderResult]:
        """Place an order and start its saga."""
        order = await self.place(lines, **changes)
        await self.workflows.start(order)
        return self.handle(order.order_id)

    def handle(self, order_id: str) -> WorkflowHandle[Any, OrderResult]:
        return self.client.get_workflow_handle_for(OrderWorkflow.run, workflow_id(order_id))

    async def order(self, handle_or_id: WorkflowHandle[Any, Any] | str) -> Order:
        order_id = handle_or_id if isinstance(handle_or_id, str) else handle_or_id.id.removeprefix("order-")
        return await self.orders.get(order_id)

    async def reaches(self, handle_or_id: WorkflowHandle[Any, Any] | str, *statuses: OrderStatus) -> Order:
        """Wait until the order document has one of these statuses."""
        return await eventually(lambda: self.order(handle_or_id), lambda order: order.status in statuses)


def sandbox_gateways(mongo: Mongo, **others: Any) -> Gateways:
    """The sandbox gateways, or others in their place: `payments`, `carrier`, `mailer`."""
    opening = sandbox(mongo)
    bundle = _at_once(opening.__aenter__())
    _at_once(opening.__aexit__(None, None, None))  # there is nothing to close
    return replace(bundle, **others)


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("it waits")


def dependencies(mongo: Mongo, **gateways: Any) -> Dependencies:
    """What activities are built from."""
    return Dependencies(mongo, OrderRepository(mongo), ProductRepository(mongo), sandbox_gateways(mongo, **gateways))


def build_shop_worker(shop: Shop, gateways: Gateways | None = None, **options: Any) -> Worker:
    """The worker of `worker.py`, on the shop's task queue. `options` are those of `temporalio.worker.Worker`.

    It polls less often at once than the real one: most tests have few orders, and each poll has to be ended again.
    """
    pollers: dict[str, Any] = {
        "workflow_task_poller_behavior": PollerBehaviorSimpleMaximum(2),
        "activity_task_poller_behavior": PollerBehaviorSimpleMaximum(2),
    }
    gateways = gateways or sandbox_gateways(shop.mongo)
    return build_worker(shop.client, shop.mongo, gateways, shop.settings.task_queue, **{**pollers, **options})


@asynccontextmanager
async def relaying(shop: Shop) -> AsyncIterator[asyncio.Task[None]]:
    """A relay, as worker.py runs one; it may not end by itself."""
    running = asyncio.create_task(OutboxRelay(shop.mongo, shop.orders, shop.workflows).run())
    try:
        yield running
        assert not running.done(), "the relay ended"
    finally:
        running.cancel()
        await asyncio.wait([running])
