"""Reserve stock like a worker process: `python -m tests.kit.reserver URI DATABASE ORDER_ID...`

Reserves for all orders concurrently, releases every third one, and prints the outcome of each.
"""

import asyncio
import json
import sys

from app.activities.inventory import Inventory
from app.activities.order_step import Dependencies
from app.gateways.sandbox import sandbox
from app.messages import OrderRef
from app.mongo import Mongo
from app.orders import OrderRepository
from app.products import ProductRepository
from tests.kit.attempts import attempt, outcome


async def main(uri: str, database: str, *order_ids: str) -> None:
    mongo = Mongo(uri, database)
    async with sandbox(mongo) as gateways:
        inventory = Inventory(Dependencies(mongo, OrderRepository(mongo), ProductRepository(mongo), gateways))

    async def reserve(number: int, order_id: str) -> str:
        result = await outcome(inventory.reserve, order_id)
        if result == "done" and number % 3 == 0:
            await attempt(inventory.release, OrderRef(order_id=order_id))
            return "released"
        return result

    await mongo.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(await asyncio.gather(*(reserve(*item) for item in enumerate(order_ids)))))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
