"""Hot stock: reservations per second of one product, by group commit and by plain transactions.

The plain way is the textbook's: each order takes its quantity and writes its record in a transaction of its own. Both
are retried by the same `run_transaction`, on the same server, right after each other.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from temporalio.testing import ActivityEnvironment

from app.activities.inventory import STEP, Inventory
from app.activities.order_step import Dependencies
from app.domain import Attempt, OrderStatus, StepChange, StepEvent
from app.gateways.sandbox import sandbox
from app.messages import OrderRef
from app.mongo import Document, Mongo, Session
from app.orders import OrderRepository
from app.products import ProductRepository

SKU = "HOT"
CALLERS = 64
ROUNDS = 3  # the best one counts: other load on the machine can only slow them
PLAIN_ORDERS = 64
GROUPED_ORDERS = 640  # more, as they are faster: both take long enough to be measured

Reserve = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class HotStock:
    """Reservations per second."""

    plain: float
    grouped: float

    @property
    def times(self) -> float:
        return self.grouped / self.plain


async def measure(mongo: Mongo) -> HotStock:
    """Reserve one unit each for many orders, `CALLERS` at a time, both ways. Takes a few seconds.

    Uses the stock and the orders of this database: give it one of its own.

    Raises:
        RuntimeError: the stock does not come out even; then the figures mean nothing.
    """
    orders = OrderRepository(mongo)
    async with sandbox(mongo) as gateways:
        inventory = Inventory(Dependencies(mongo, orders, ProductRepository(mongo), gateways))

    async def grouped(order_id: str) -> None:
        await ActivityEnvironment().run(inventory.reserve, OrderRef(order_id=order_id))

    async def plain(order_id: str) -> None:
        await reserve_alone(mongo, orders, order_id)

    await _rate(mongo, grouped, GROUPED_ORDERS)  # connections are made, code is loaded
    rounds = [
        (await _rate(mongo, plain, PLAIN_ORDERS), await _rate(mongo, grouped, GROUPED_ORDERS)) for _ in range(ROUNDS)
    ]
    result = HotStock(max(plain for plain, _ in rounds), max(grouped for _, grouped in rounds))
    product = await mongo.inventory.find_one({"_id": SKU})
    if product is None or product["available"] != 0:
        raise RuntimeError(f"the stock does not come out even: {product}")
    return result


async def reserve_alone(mongo: Mongo, orders: OrderRepository, order_id: str) -> None:
    """Reserve for one order in a transaction of its own: the measure of group commit."""
    order = await orders.get(order_id)
    quantities = {line.sku: line.quantity for line in order.lines}
    attempt = Attempt(datetime.now(UTC), 1)
    reserved = StepChange(STEP, StepEvent.SUCCEEDED, "reserved", None, attempt, quantities)

    async def work(session: Session) -> None:
        for sku, quantity in quantities.items():
            taken = await mongo.inventory.update_one(
                {"_id": sku, "available": {"$gte": quantity}}, {"$inc": {"available": -quantity}}, session=session
            )
            if taken.modified_count == 0:
                raise LookupError("out of stock")
        await orders.change_steps([(order_id, reserved)], session)

    await mongo.run_transaction(work, within=60)


async def _rate(mongo: Mongo, reserve: Reserve, count: int) -> float:
    """Reserve for `count` new orders, with just enough stock; orders per second."""
    documents = [_order() for _ in range(count)]
    await mongo.orders.insert_many(documents)
    await mongo.inventory.update_one({"_id": SKU}, {"$inc": {"available": count}}, upsert=True)
    waiting = iter(documents)

    async def caller() -> None:
        for document in waiting:
            await reserve(document["_id"])

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return count / (time.perf_counter() - begin)


def _order() -> Document:
    price = {"amount": 1_000, "currency": "EUR"}
    return {
        "_id": f"hot_{secrets.token_hex(8)}",
        "customer_id": "bench",
        "email": "bench@example.com",
        "payment_method": "pm_card_ok",
        "shipping_address": {
            "name": "Ada Lovelace",
            "street": "Example Street 1",
            "city": "Berlin",
            "postal_code": "10115",
            "country": "DE",
        },
        "lines": [{"sku": SKU, "name": SKU, "quantity": 1, "unit_price": price}],
        "total": price,
        "status": OrderStatus.PLACED.value,
        "created_at": datetime.now(UTC),
        "updated_at": datetime.now(UTC),
    }
