"""The shop of one test: its database, task queue, gateways and worker."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import PollerBehaviorSimpleMaximum, Worker

from app.activities.order_step import Dependencies
from app.domain import Order, OrderStatus
from app.gateways import Gateways
from app.gateways.sandbox import records as sandbox_records
from app.gateways.sandbox import sandbox
from app.messages import OrderResult
from app.mongo import Mongo
from app.names import WORKFLOW_ID_PREFIX
from app.order_workflows import OrderWorkflows, workflow_id
from app.orders import OrderRepository
from app.products import ProductRepository
from app.settings import Settings
from app.workflows.order import OrderWorkflow
from dev.servers import Server
from tests.kit.orders import order_document
from tests.kit.waiting import eventually
from worker import build_worker

T = TypeVar("T")


class Shop:
    """Places orders and reads their state in one test's database and task queue."""

    def __init__(self, mongo: Mongo, settings: Settings, client: Client) -> None:
        self.mongo = mongo
        self.settings = settings
        self.client = client
        self.orders = OrderRepository(mongo)
        self.workflows = OrderWorkflows(client, settings)

    def with_client(self, client: Client) -> Shop:
        """The same shop with another client to start workflows, such as one that skips time."""
        return Shop(self.mongo, self.settings, client)

    async def stock(self, sku: str = "MUG", available: int = 100, price: int = 1_000) -> None:
        product = {"name": sku, "unit_price": {"amount": price, "currency": "EUR"}, "available": available}
        await self.mongo.inventory.update_one({"_id": sku}, {"$set": product}, upsert=True)

    async def available(self, sku: str = "MUG") -> int:
        product = await self.mongo.inventory.find_one({"_id": sku})
        assert product is not None
        available: int = product["available"]
        return available

    async def held(self, sku: str = "MUG") -> int:
        """The quantity held by reservations."""
        found = self.mongo.orders.find({"steps.reserve_inventory.status": "done"})
        records = [document["steps"]["reserve_inventory"] async for document in found]
        return sum(line["quantity"] for record in records for line in record["quantities"] if line["sku"] == sku)

    async def net_money(self, order_id: str) -> int:
        """Captured minus refunded, in minor units, from the records of the sandbox payment service."""
        entry = await sandbox_records(self.mongo).find_one({"_id": f"payment:{order_id}"}) or {}
        return int(entry.get("captured", 0)) - int(entry.get("refunded", 0))

    async def place(self, lines: dict[str, int] | None = None, **changes: Any) -> Order:
        """Insert an order into MongoDB, as the API does, without starting its workflow."""
        document = order_document(lines, **changes)
        await self.mongo.orders.insert_one(document)
        return Order.from_document(document)

    async def start(self, lines: dict[str, int] | None = None, **changes: Any) -> WorkflowHandle[Any, OrderResult]:
        """Place an order and start its workflow."""
        order = await self.place(lines, **changes)
        await self.workflows.start(order)
        return self.handle(order.order_id)

    def handle(self, order_id: str) -> WorkflowHandle[Any, OrderResult]:
        return self.client.get_workflow_handle_for(OrderWorkflow.run, workflow_id(order_id))

    async def order(self, handle_or_id: WorkflowHandle[Any, Any] | str) -> Order:
        order_id = handle_or_id if isinstance(handle_or_id, str) else handle_or_id.id.removeprefix(WORKFLOW_ID_PREFIX)
        return await self.orders.get(order_id)

    async def wait_for_status(self, handle_or_id: WorkflowHandle[Any, Any] | str, *statuses: OrderStatus) -> Order:
        """Wait until the order has one of these statuses in MongoDB."""
        return await eventually(lambda: self.order(handle_or_id), lambda order: order.status in statuses)

    async def wait_until_started(self, order_id: str, activity: str) -> None:
        """Wait until an attempt of this activity runs in a worker."""

        async def running() -> bool:
            pending = (await self.handle(order_id).describe()).raw_description.pending_activities
            return any(
                each.activity_type.name == activity
                and each.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
                for each in pending
            )

        await eventually(running)


def environment_of(settings: Settings, temporal_server: Server) -> dict[str, str]:
    """The environment of a worker or an API as a process, with the sandbox gateways."""
    return {
        "MONGODB_URI": settings.mongodb_uri,
        "MONGODB_DATABASE": settings.mongodb_database,
        "TASK_QUEUE": settings.task_queue,
        "TEMPORAL_ADDRESS": temporal_server.address,
    }


def sandbox_gateways(mongo: Mongo, **others: Any) -> Gateways:
    """The sandbox gateways. `payments`, `carrier` and `mailer` replace single ones."""
    opening = sandbox(mongo)
    bundle = _run_sync(opening.__aenter__())
    _run_sync(opening.__aexit__(None, None, None))  # the sandboxes hold nothing open
    return replace(bundle, **others)


def _run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits. Returns its result."""
    try:
        work.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("it waits")


def dependencies(mongo: Mongo, **gateways: Any) -> Dependencies:
    """The dependencies that activities are built with."""
    return Dependencies(mongo, OrderRepository(mongo), ProductRepository(mongo), sandbox_gateways(mongo, **gateways))


def build_shop_worker(shop: Shop, gateways: Gateways | None = None, **options: Any) -> Worker:
    """The worker of `worker.py` on the shop's task queue. `options` are those of `temporalio.worker.Worker`.

    It has fewer pollers than the real one: most tests have few orders, and each poller slows down the shutdown.
    """
    pollers: dict[str, Any] = {
        "workflow_task_poller_behavior": PollerBehaviorSimpleMaximum(2),
        "activity_task_poller_behavior": PollerBehaviorSimpleMaximum(2),
    }
    gateways = gateways or sandbox_gateways(shop.mongo)
    return build_worker(shop.client, shop.mongo, gateways, shop.settings.task_queue, **{**pollers, **options})
