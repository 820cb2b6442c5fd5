"""Hot stock: how many reservations of one article there can be a second, by group commit and by plain transactions.

The plain way is the textbook's: each order takes its pieces, writes its reservation and its timeline in a transaction
of its own. Both are retried by the same `run_transaction`, on the same server, right after each other.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from app.activities.inventory import RESERVED, STEP, Inventory
from app.models import OrderRef, OrderStatus
from app.mongo import Document, Mongo, Session
from app.orders import Orders, done

SKU = "HOT"
CALLERS = 64
ROUNDS = 3  # of which the best counts: what else runs on the machine can only slow them
PLAIN_ORDERS = 64
GROUPED_ORDERS = 640  # more, as they are faster: both take long enough to be measured

Reserve = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class HotStock:
    """Reservations a second."""

    plain: float
    grouped: float

    @property
    def times(self) -> float:
        return self.grouped / self.plain


async def measure(mongo: Mongo) -> HotStock:
    """Reserve one piece each for many orders, `CALLERS` at a time, both ways. Takes a few seconds.

    Uses the stock, orders and reservations of this database: give it one of its own.

    Raises:
        RuntimeError: the stock does not come out even; then the figures mean nothing.
    """
    orders = Orders(mongo)
    inventory = Inventory(mongo, orders)

    async def grouped(order_id: str) -> None:
        await inventory.reserve(OrderRef(order_id=order_id))

    async def plain(order_id: str) -> None:
        await reserve_alone(mongo, orders, order_id)

    await _rate(mongo, grouped, GROUPED_ORDERS)  # connections are made, code is loaded
    rounds = [
        (await _rate(mongo, plain, PLAIN_ORDERS), await _rate(mongo, grouped, GROUPED_ORDERS)) for _ in range(ROUNDS)
    ]
    result = HotStock(max(plain for plain, _ in rounds), max(grouped for _, grouped in rounds))
    article = await mongo.inventory.find_one({"_id": SKU})
    if article is None or article["available"] != 0:
        raise RuntimeError(f"the stock does not come out even: {article}")
    return result


async def reserve_alone(mongo: Mongo, orders: Orders, order_id: str) -> None:
    """Reserve for one order in a transaction of its own: what group commit is measured against."""
    order = await orders.require(order_id)

    async def work(session: Session) -> None:
        for line in order.lines:
            taken = await mongo.inventory.update_one(
                {"_id": line.sku, "available": {"$gte": line.quantity}},
                {"$inc": {"available": -line.quantity}},
                session=session,
            )
            if taken.modified_count == 0:
                raise LookupError("out of stock")
        lines = [{"sku": line.sku, "quantity": line.quantity} for line in order.lines]
        reservation: Document = {"_id": order_id, "state": RESERVED, "lines": lines}
        await mongo.reservations.insert_one(reservation, session=session)
        await orders.tell_all({order_id: done(STEP, OrderStatus.RESERVED, RESERVED)}, session)

    await mongo.run_transaction(work, within=60)


async def _rate(mongo: Mongo, reserve: Reserve, count: int) -> float:
    """Reserve for `count` new orders, for which there is just enough stock. Returns orders a second."""
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
