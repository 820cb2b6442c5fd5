"""Many orders for one product: reservations never oversell (G5). `make bench` measures their rate."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter

from app.activities.inventory import Inventory
from app.mongo import Document, Mongo
from dev.servers import Server
from tests.kit.attempts import outcome
from tests.kit.orders import order_document
from tests.kit.shop import dependencies

CALLERS = 64
PROCESSES = 2
RESERVED: Document = {"steps.reserve_inventory.status": "done"}


async def test_concurrent_reservations_sell_exactly_the_stock(mongo: Mongo) -> None:
    """64 callers request two units each, with 81 in stock: forty succeed, the others get none, one unit is left.

    Waiting callers share a transaction.
    """
    await mongo.inventory.insert_one({"_id": "HOT", "available": 81})
    order_ids = await _place(mongo, [{"HOT": 2}] * CALLERS)
    inventory = Inventory(dependencies(mongo))
    before = await _transactions(mongo)
    outcomes = Counter(await asyncio.gather(*(outcome(inventory.reserve, order_id) for order_id in order_ids)))
    assert 0 < await _transactions(mongo) - before < CALLERS / 4
    assert outcomes == {"done": 40, "out_of_stock": 24}
    assert await mongo.inventory.find_one() == {"_id": "HOT", "available": 1}
    assert await mongo.orders.count_documents(RESERVED) == 40


async def test_several_worker_processes_keep_stock_exact(mongo: Mongo, mongod: Server) -> None:
    """Orders contain one or two products. The processes release a third of them again, and the stock runs out."""
    await mongo.inventory.insert_many([{"_id": "HOT", "available": 90}, {"_id": "COLD", "available": 1_000}])
    order_ids = await _place(mongo, [{"HOT": 1}, {"HOT": 1, "COLD": 1}] * 60)
    processes = [await _reserver(mongo, mongod, order_ids[number::PROCESSES]) for number in range(PROCESSES)]
    results = [json.loads(output) for output, _ in await asyncio.gather(*(p.communicate(b"go\n") for p in processes))]
    assert [process.returncode for process in processes] == [0] * PROCESSES

    outcomes = Counter(outcome for result in results for outcome in result)
    assert outcomes.keys() <= {"done", "released", "out_of_stock"}
    left = {product["_id"]: product["available"] async for product in mongo.inventory.find()}
    held: Counter[str] = Counter()
    async for order in mongo.orders.find(RESERVED):
        held.update({line["sku"]: line["quantity"] for line in order["steps"]["reserve_inventory"]["quantities"]})
    assert held["HOT"] == outcomes["done"]
    assert {sku: left[sku] + held[sku] for sku in left} == {"HOT": 90, "COLD": 1_000}
    assert all(available >= 0 for available in left.values())


async def _transactions(mongo: Mongo) -> int:
    """The number of transactions committed on this server."""
    status = await mongo.client.admin.command("serverStatus")
    return int(status["transactions"]["totalCommitted"])


async def _place(mongo: Mongo, orders: list[dict[str, int]]) -> list[str]:
    documents = [order_document(quantities) for quantities in orders]
    await mongo.orders.insert_many(documents)
    return [document["_id"] for document in documents]


async def _reserver(mongo: Mongo, mongod: Server, order_ids: list[str]) -> Process:
    """Start a reserver process and wait until it is ready. It begins when its stdin is written."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.kit.reserver", mongod.address, mongo.database.name, *order_ids,
        stdin=PIPE, stdout=PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process
