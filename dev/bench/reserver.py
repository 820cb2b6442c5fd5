"""A process that reserves one product for many orders: `python -m dev.bench.reserver MONGODB_URI DATABASE`.

A line `grouped 640 64` reserves for 640 new orders, 64 at a time, with group commit; `plain 640 64`, with a transaction
for each. Both use the same `run_transaction` with its retries. Answers with the times of begin and end.
"""

import asyncio
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
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
from dev.bench.helper import lines, say
from dev.bench.load import callers

SKU = "HOT"

Reserve = Callable[[str], Awaitable[None]]


async def reserve_without_group_commit(mongo: Mongo, orders: OrderRepository, order_id: str) -> None:
    """Reserve for one order in a transaction of its own: take the quantity, and record the step."""
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


async def main(uri: str, database: str) -> None:
    mongo = Mongo(uri, database)
    orders = OrderRepository(mongo)
    async with sandbox(mongo) as gateways:
        inventory = Inventory(Dependencies(mongo, orders, ProductRepository(mongo), gateways))

    async def grouped(order_id: str) -> None:
        await ActivityEnvironment().run(inventory.reserve, OrderRef(order_id=order_id))

    async def plain(order_id: str) -> None:
        await reserve_without_group_commit(mongo, orders, order_id)

    ways: dict[str, Reserve] = {"grouped": grouped, "plain": plain}
    await mongo.ping()
    async for way, count, in_flight in lines():
        documents = [_order() for _ in range(int(count))]
        await mongo.orders.insert_many(documents)
        # Exactly enough stock: at the end, all of it is gone.
        await mongo.inventory.update_one({"_id": SKU}, {"$inc": {"available": len(documents)}}, upsert=True)
        pending = iter(documents)
        begin = time.time()
        await callers(lambda: ways[way](next(pending)["_id"]), in_flight=int(in_flight), count=len(documents))  # noqa: B023
        say([begin, time.time()])
    mongo.close()


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


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
