"""One article that everybody wants (G5): fast, and exact to the last piece."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter

from temporalio.exceptions import ApplicationError

from app.activities.inventory import Inventory
from app.models import OrderRef
from app.mongo import Mongo
from app.orders import Orders
from dev import hot_stock
from dev.servers import Server
from tests.support import order_document

CALLERS = 64
PROCESSES = 3


async def test_group_commit_is_ten_times_as_fast_as_plain_transactions(mongo: Mongo) -> None:
    await mongo.create_indexes()
    result = await hot_stock.measure(mongo)
    assert result.times >= 10, result


async def test_exact_to_the_last_piece(mongo: Mongo) -> None:
    """64 callers want two pieces each, there are 81: forty have theirs, the others none, and one piece is left."""
    await mongo.inventory.insert_one({"_id": "HOT", "available": 81})
    order_ids = await _place(mongo, [{"HOT": 2}] * CALLERS)
    inventory = Inventory(mongo, Orders(mongo))
    assert Counter(await asyncio.gather(*(_reserve(inventory, id_) for id_ in order_ids))) == {
        "reserved": 40,
        "out_of_stock": 24,
    }
    assert await mongo.inventory.find_one() == {"_id": "HOT", "available": 1}
    assert await mongo.reservations.count_documents({"state": "reserved"}) == 40


async def test_several_worker_processes_at_once(mongo: Mongo, mongod: Server) -> None:
    """Orders of one hot article and of two; a third of them is released again, and the stock runs out."""
    await mongo.inventory.insert_many([{"_id": "HOT", "available": 90}, {"_id": "COLD", "available": 1_000}])
    order_ids = await _place(mongo, [{"HOT": 1}, {"HOT": 1, "COLD": 1}] * 60)
    processes = [await _reserver(mongo, mongod, order_ids[number::PROCESSES]) for number in range(PROCESSES)]
    results = [json.loads(output) for output, _ in await asyncio.gather(*(p.communicate(b"go\n") for p in processes))]
    assert [process.returncode for process in processes] == [0] * PROCESSES

    outcomes = Counter(outcome for result in results for outcome in result)
    assert outcomes.keys() <= {"reserved", "released", "out_of_stock"}
    left = {article["_id"]: article["available"] async for article in mongo.inventory.find()}
    held: Counter[str] = Counter()
    async for reservation in mongo.reservations.find({"state": "reserved"}):
        held.update({line["sku"]: line["quantity"] for line in reservation["lines"]})
    assert held["HOT"] == outcomes["reserved"]
    assert {sku: left[sku] + held[sku] for sku in left} == {"HOT": 90, "COLD": 1_000}
    assert all(available >= 0 for available in left.values())


async def _place(mongo: Mongo, orders: list[dict[str, int]]) -> list[str]:
    documents = [order_document(pieces) for pieces in orders]
    await mongo.orders.insert_many(documents)
    return [document["_id"] for document in documents]


async def _reserve(inventory: Inventory, order_id: str) -> str:
    try:
        await inventory.reserve(OrderRef(order_id=order_id))
    except ApplicationError as error:
        return str(error.type)
    return "reserved"


async def _reserver(mongo: Mongo, mongod: Server, order_ids: list[str]) -> Process:
    """A process that is ready, and begins when it is written to."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.activities.reserver", mongod.address, mongo.database.name, *order_ids,
        stdin=PIPE, stdout=PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process
