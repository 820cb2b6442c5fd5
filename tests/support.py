"""What tests say often: an order, a stock, a wait for something to become true."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx
import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from app.activities.order_step import Dependencies
from app.domain import Order, OrderStatus
from app.gateways import Gateways
from app.gateways.sandbox import SandboxCarrier, SandboxMailer, SandboxPayments
from app.messages import OrderResult
from app.mongo import Document, Mongo
from app.order_workflows import OrderWorkflows, workflow_id
from app.orders import OrderRepository
from app.products import ProductRepository
from app.settings import Settings
from app.workflows.order import OrderWorkflow
from worker import build_worker

T = TypeVar("T")

SUMMARY = pytest.StashKey[Counter[str]]()  # in `config.stash`: numbers to print when all tests have run

# Personal values that no history and no log may ever show (G11).
EMAIL = "ada.lovelace@example.org"
NAME = "Ada Lovelace"
STREET = "12 St James's Square"
ADDRESS = {"name": NAME, "street": STREET, "city": "London", "postal_code": "SW1Y 4JH", "country": "GB"}


def order_body(**changes: Any) -> dict[str, Any]:
    """A valid body for POST /orders."""
    return {
        "customer_id": "cus_1",
        "email": EMAIL,
        "payment_method": "pm_card_ok",
        "lines": [{"sku": "MUG", "quantity": 2}],
        "shipping_address": ADDRESS,
        **changes,
    }


def order_document(lines: dict[str, int] | None = None, *, price: int = 1_000, **changes: Any) -> Document:
    """A valid order as it stands in MongoDB; `lines` are quantities by SKU, `price` is the unit price."""
    lines = lines or {"MUG": 2}
    now = datetime.now(UTC)
    money = {"amount": price, "currency": "EUR"}
    return {
        "_id": f"ord_{secrets.token_hex(8)}",
        "customer_id": "cus_1",
        "email": EMAIL,
        "payment_method": "pm_card_ok",
        "shipping_address": dict(ADDRESS),
        "lines": [
            {"sku": sku, "name": sku, "quantity": quantity, "unit_price": money} for sku, quantity in lines.items()
        ],
        "total": {"amount": price * sum(lines.values()), "currency": "EUR"},
        "status": "placed",
        "created_at": now,
        "updated_at": now,
        **changes,
    }


async def eventually(look: Callable[[], Awaitable[T]], until: Callable[[T], bool] = bool, *, within: float = 15) -> T:
    """Look until what is seen is as wanted; fail with what was seen last."""
    seen: T
    try:
        async with asyncio.timeout(within):
            while True:
                seen = await look()
                if until(seen):
                    return seen
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within} s; last seen: {seen!r}") from None


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
    sandboxes: dict[str, Any] = {
        "payments": SandboxPayments(mongo.sandbox),
        "carrier": SandboxCarrier(mongo.sandbox),
        "mailer": SandboxMailer(mongo.sandbox),
    }
    return Gateways(**(sandboxes | others))


def dependencies(mongo: Mongo, **gateways: Any) -> Dependencies:
    """What activities are built from."""
    return Dependencies(mongo, OrderRepository(mongo), ProductRepository(mongo), sandbox_gateways(mongo, **gateways))


def build_shop_worker(shop: Shop, gateways: Gateways | None = None, **options: Any) -> Worker:
    """The worker of `worker.py`, on the shop's task queue. `options` are those of `temporalio.worker.Worker`."""
    gateways = gateways or sandbox_gateways(shop.mongo)
    return build_worker(shop.client, shop.mongo, gateways, shop.settings.task_queue, **options)


def steps_of(order: Order) -> dict[str, str]:
    """The timeline in short: status by step."""
    return {step.step.value: step.status.value for step in order.steps}


async def raw(http: httpx.AsyncClient, request: bytes) -> tuple[int, bytes]:
    """Send bytes that no HTTP client would send; the status and the body of the answer."""
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        body = await reader.readexactly(int(length[1])) if length else b""
        return int(head.split()[1]), body
    finally:
        writer.close()
