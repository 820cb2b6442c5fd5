"""A worker process, as far as reservations go: `python -m tests.activities.reserver URI DATABASE ORDER_ID...`

Reserves for all orders at once, releases every third again, and prints how each reservation went.
"""

import asyncio
import json
import sys

from temporalio.exceptions import ApplicationError

from app.activities.inventory import Inventory
from app.models import OrderRef
from app.mongo import Mongo
from app.orders import Orders


async def main(uri: str, database: str, *order_ids: str) -> None:
    mongo = Mongo(uri, database)
    inventory = Inventory(mongo, Orders(mongo))

    async def reserve(number: int, order_id: str) -> str:
        ref = OrderRef(order_id=order_id)
        try:
            await inventory.reserve(ref)
        except ApplicationError as error:
            return str(error.type)
        if number % 3 == 0:
            await inventory.release(ref)
            return "released"
        return "reserved"

    await mongo.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(await asyncio.gather(*(reserve(*item) for item in enumerate(order_ids)))))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
