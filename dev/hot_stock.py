"""Contention on one product: reservations per second with group commit, and with one transaction per order.

A plain reservation takes the quantity and records the step in a transaction of its own. Both variants use the same
`run_transaction` with its retries, on the same server, one after the other.
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
ROUNDS = 3  # the best round counts, because other load on the machine only slows a round down
PLAIN_ORDERS = 64
GROUPED_ORDERS = 640  # more than plain ones, because group commit is faster; both run long enough to measure

Reserve = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class ReservationRates:
    """Reservations per second."""

    plain: float
    grouped: float

    @property
    def speedup(self) -> float:
        return self.grouped / self.plain


async def measure(mongo: Mongo) -> ReservationRates:
    """Reserve one unit each for many orders, `CALLERS` at a time, in both ways. Takes a few seconds.

    Writes products and orders, so pass a database that nothing else uses.

    Raises:
        RuntimeError: some stock is left or oversold, so the rates are meaningless.
    """
    orders = OrderRepository(mongo)
    async with sandbox(mongo) as gateways:
        inventory = Inventory(Dependencies(mongo, orders, ProductRepository(mongo), gateways))

    async def grouped(order_id: str) -> None:
        await ActivityEnvironment().run(inventory.reserve, OrderRef(order_id=order_id))

    async def plain(order_id: str) -> None:
        await reserve_without_group_commit(mongo, orders, order_id)

    await _rate(mongo, grouped, GROUPED_ORDERS)  # opens connections and loads code
    rounds = [
        (await _rate(mongo, plain, PLAIN_ORDERS), await _rate(mongo, grouped, GROUPED_ORDERS)) for _ in range(ROUNDS)
    ]
    result = ReservationRates(max(plain for plain, _ in rounds), max(grouped for _, grouped in rounds))
    product = await mongo.inventory.find_one({"_id": SKU})
    if product is None or product["available"] != 0:
        raise RuntimeError(f"expected no stock to be left: {product}")
    return result


async def reserve_without_group_commit(mongo: Mongo, orders: OrderRepository, order_id: str) -> None:
    """Reserve for one order in a transaction of its own, as the baseline for group commit."""
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
    """Reserve for `count` new orders, with exactly enough stock. Returns orders per second."""
    documents = [_order() for _ in range(count)]
    await mongo.orders.insert_many(documents)
    await mongo.inventory.update_one({"_id": SKU}, {"$inc": {"available": count}}, upsert=True)
    pending = iter(documents)

    async def caller() -> None:
        for document in pending:
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
