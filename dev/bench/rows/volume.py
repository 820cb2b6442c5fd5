"""A million orders in MongoDB against a thousand: requests, and bytes on disk."""

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

from app.mongo import Document, Mongo
from dev.bench.comparison import Comparison
from dev.bench.lab import Lab, Running

MANY, FEW = 1_000_000, 1_000
ORDERS_OF_CUSTOMER = 10  # on average, in both databases: so a list has the same length
BATCH, AT_ONCE = 1_000, 4  # documents in an insert, inserts at a time
YEAR = 365 * 86_400.0  # seconds, over which the orders are spread
STATUSES = ["completed"] * 96 + ["failed", "failed", "cancelled", "needs_attention"]
SKUS = ["MUG-BLUE", "TEE-WHITE-M", "NOTEBOOK-A5", "LAMP-OAK", "BIKE-CITY"]
NAMES = ["Ada", "Grace", "Edsger", "Barbara", "Alan", "Hedy", "Katherine", "Donald", "Tony", "Radia"]
CITIES = ["Berlin", "Hamburg", "Lyon", "Turin", "Porto", "Ghent", "Malmo", "Krakow", "Graz", "Brno"]

Request = Callable[[Running, "Orders"], Awaitable[float]]


class Orders:
    """The orders of a database, in number; makes and knows their ids."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.customers = max(1, count // ORDERS_OF_CUSTOMER)
        self.ids: list[str] = []  # some

    def customer(self) -> str:
        return f"customer-{random.randrange(self.customers)}"

    def variant(self, order: Document, number: int) -> Document:
        """Another order than `order`, as long as a real one, and as hard to compress."""
        document, sku, at = deepcopy(order), random.choice(SKUS), self._time(number)
        order_id = f"ord_{secrets.token_hex(13)}"
        if number % 1_000 == 0:
            self.ids.append(order_id)
        document |= {
            "_id": order_id,
            "customer_id": self.customer(),
            "email": f"{secrets.token_hex(5)}@example.com",
            "status": random.choice(STATUSES),
            "created_at": at,
            "updated_at": at + timedelta(seconds=random.uniform(1, 5)),
            "fingerprint": secrets.token_hex(len(str(order["fingerprint"])) // 2),
        }
        document["lines"][0] |= {"sku": sku, "name": sku.title(), "quantity": random.randint(1, 5)}
        document["shipping_address"] |= {
            "name": f"{random.choice(NAMES)} {secrets.token_hex(4)}",
            "street": f"Street {random.randrange(10_000)}",
            "city": random.choice(CITIES),
            "postal_code": f"{random.randrange(100_000):05}",
        }
        for step in document["steps"].values():
            step["at"] = step["first_attempt_at"] = at
        return document

    def _time(self, number: int) -> datetime:
        return datetime.now(UTC) - timedelta(seconds=YEAR * (1 - number / self.count))


async def million(lab: Lab) -> list[Comparison]:
    """The same requests, one at a time, to two databases on one mongod; each has its own API. No worker runs."""
    await lab.stop()
    many, few, count = Orders(lab.size(MANY, 5_000)), Orders(FEW), lab.size(100, 5)
    async with (
        lab.running() as small,
        lab.running(
            temporal=small.stack.temporal_address,
            mongodb_uri=small.stack.mongodb_uri,
            MONGODB_DATABASE="large",
            TASK_QUEUE="large",
        ) as large,
    ):
        order = await _completed_order(small)
        for running in (small, large):
            await running.stack.processes["worker"].stop()
        await _fill(lab, small.mongo, few, order)
        await _fill(lab, large.mongo, many, order)
        found = []
        requests: dict[str, Request] = {"GET": _get, "list": _list, "customer's list": _list_of_customer}
        requests |= {"POST": _post, "cancel": _cancel}
        names = (f"of {many.count:,}", f"of {few.count:,}")
        for name, request in requests.items():

            def p50(running: Running, orders: Orders, request: Request = request) -> Callable[[], Awaitable[float]]:
                async def measure() -> float:
                    return 1_000 * median([await request(running, orders) for _ in range(count)])

                return measure

            lab.say(f"{count} times {name} with {many.count:,} and with {few.count:,} orders")
            slow, fast = await lab.turns(p50(large, many), p50(small, few))
            found.append(Comparison(f"{name}, {many.count:,} orders, p50", "ms", slow, fast, names, 1.2))
        await large.mongo.client.admin.command("fsync")
        sizes: dict[str, Any] = await large.mongo.database.command("collStats", "orders")
    index, data = (sizes[name] / 1e6 for name in ("totalIndexSize", "storageSize"))
    details: dict[str, object] = {name: round(size / 1e6, 1) for name, size in sizes["indexSizes"].items()}
    details["documents before compression"] = round(sizes["size"] / 1e6, 1)
    names, title = ("indexes", "documents"), f"{many.count:,} orders on disk"
    note = "Both compressed, as files: MongoDB's totalIndexSize and storageSize."
    return [*found, Comparison(title, "MB", [index], [data], names, 1, note=note, details=details)]


async def _completed_order(running: Running) -> Document:
    await running.shop.complete()
    order = await running.mongo.orders.find_one({"status": "completed"})
    assert order
    return order


async def _fill(lab: Lab, mongo: Mongo, orders: Orders, order: Document) -> None:
    """Insert the orders as they would have come in: oldest first, with the indexes there."""
    batches, inserted = iter(range(0, orders.count, BATCH)), 0

    async def insert() -> None:
        nonlocal inserted
        for first in batches:
            documents = [orders.variant(order, number) for number in range(first, min(first + BATCH, orders.count))]
            await mongo.orders.insert_many(documents, ordered=False)
            inserted += len(documents)
            lab.say(f"inserted {inserted:,} of {orders.count:,} orders")

    await asyncio.gather(*(insert() for _ in range(AT_ONCE)))


async def _timed(running: Running, method: str, path: str, body: bytes = b"") -> float:
    begin = time.perf_counter()
    await running.shop.expect(method, path, body)
    return time.perf_counter() - begin


async def _get(running: Running, orders: Orders) -> float:
    return await _timed(running, "GET", f"/orders/{random.choice(orders.ids)}")


async def _list(running: Running, _: Orders) -> float:
    return await _timed(running, "GET", "/orders?status=failed&limit=10")


async def _list_of_customer(running: Running, orders: Orders) -> float:
    return await _timed(running, "GET", f"/orders?customer_id={orders.customer()}&limit=10")


async def _post(running: Running, _: Orders) -> float:
    begin = time.perf_counter()
    await running.shop.place()
    return time.perf_counter() - begin


async def _cancel(running: Running, _: Orders) -> float:
    return await _timed(running, "POST", f"/orders/{await running.shop.place()}/cancel")
