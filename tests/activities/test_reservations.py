"""Reservations: all or nothing, at most once, never after their release, and the stock always even (G3, G4, G5).

Two `Inventory` here are two worker processes as far as group commit goes: each commits by itself, over connections of
its own, so that a fault can befall one of them.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.errors import PyMongoError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from app.activities.inventory import Inventory
from app.models import OrderRef, OrderStatus
from app.mongo import Document, Mongo
from app.orders import Orders
from dev.servers import Server
from tests.activities.faults import BEFORE_THE_EFFECT, failing
from tests.support import eventually, order_document, steps_of

# The commit was carried out, but the process that asked for it never learns that.
COMMITTED: dict[str, Any] = {"writeConcernError": {"code": 8000, "errmsg": "gone"}}
COMMANDS = ("find", "update", "commitTransaction")

# Where an attempt is held: between its two reads, which are of one instant all the same; when it has read that nothing
# is reserved, before its first write; and with all written, not committed.
POINTS: dict[str, tuple[Document, dict[str, int]]] = {
    "between reads": ({"command.find": "inventory"}, {"skip": 2}),
    "between reading and writing": ({"command.update": "reservations"}, {"times": 1}),
    "before the commit": ({"command.commitTransaction": 1}, {"times": 1}),
}
HELD_FOR = 500  # milliseconds, far longer than what the test does meanwhile


@dataclass
class Warehouse:
    mongo: Mongo
    orders: Orders
    inventory: Inventory
    other: Inventory

    async def stock(self, **available: Any) -> None:
        for sku, pieces in available.items():
            await self.mongo.inventory.insert_one({"_id": sku, "available": pieces})

    async def order(self, **pieces: int) -> str:
        document = order_document(pieces)
        await self.mongo.orders.insert_one(document)
        order_id: str = document["_id"]
        return order_id

    async def reserve(self, order_id: str, inventory: Inventory | None = None) -> str:
        """Returns `reserved`, or the code with which it will never be."""
        try:
            await ActivityEnvironment().run((inventory or self.inventory).reserve, OrderRef(order_id=order_id))
        except ApplicationError as error:
            return f"{error.type}" if error.non_retryable else "retried"
        return "reserved"

    async def release(self, order_id: str, inventory: Inventory | None = None) -> None:
        await ActivityEnvironment().run((inventory or self.inventory).release, OrderRef(order_id=order_id))

    async def available(self) -> dict[str, Any]:
        return {article["_id"]: article["available"] async for article in self.mongo.inventory.find()}

    async def reservation(self, order_id: str) -> dict[str, Any]:
        return await self.mongo.reservations.find_one({"_id": order_id}) or {}

    async def says(self, order_id: str) -> tuple[OrderStatus, str | None]:
        """The order's status, and what its timeline says of this step."""
        order = await self.orders.require(order_id)
        return order.status, steps_of(order).get("reserve_inventory")

    async def is_reserved(self, order_id: str) -> None:
        reservation = await self.reservation(order_id)
        assert reservation["state"] == "reserved"
        assert "expires_at" not in reservation
        assert await self.says(order_id) == ("reserved", "done")


@pytest.fixture
async def warehouse(mongo: Mongo, mongod: Server) -> AsyncIterator[Warehouse]:
    for name in ("orders", "inventory", "reservations"):
        await mongo.database.create_collection(name)
    other = Mongo(mongod.address, mongo.database.name)
    yield Warehouse(mongo, Orders(mongo), Inventory(mongo, Orders(mongo)), Inventory(other, Orders(other)))
    other.close()


@asynccontextmanager
async def held(warehouse: Warehouse, order_id: str, point: str) -> AsyncIterator[asyncio.Task[str]]:
    """An attempt of the first process that has come to this point, where the server holds it for a while."""
    arrived, mode = POINTS[point]
    (command,) = arrived
    fault = {"blockConnection": True, "blockTimeMS": HELD_FOR}
    async with failing(warehouse.mongo, command.removeprefix("command."), mode=mode, **fault):
        attempt = asyncio.create_task(warehouse.reserve(order_id))
        mine = {"appName": warehouse.mongo.database.name, "active": True, **arrived}
        await eventually(lambda: _running(warehouse.mongo, mine))
        yield attempt


async def _running(mongo: Mongo, operation: Document) -> list[Document]:
    found = mongo.client.admin.aggregate([{"$currentOp": {"allUsers": True}}, {"$match": operation}])
    return [operation async for operation in found]


async def test_reserved_once_and_released_once(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10, TEE=5)
    order_id = await warehouse.order(MUG=3, TEE=5)
    for _ in range(2):
        assert await warehouse.reserve(order_id) == "reserved"
        await warehouse.is_reserved(order_id)
        assert await warehouse.available() == {"MUG": 7, "TEE": 0}
    timelines = []
    for _ in range(2):
        await warehouse.release(order_id)
        assert await warehouse.available() == {"MUG": 10, "TEE": 5}
        timelines.append((await warehouse.orders.require(order_id)).steps)
    assert timelines[0] == timelines[1]
    assert await warehouse.says(order_id) == ("reserved", "undone")
    assert "expires_at" not in await warehouse.reservation(order_id)
    assert await warehouse.reserve(order_id) == "fenced"
    assert await warehouse.available() == {"MUG": 10, "TEE": 5}


async def test_the_release_comes_first(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10)
    order_id = await warehouse.order(MUG=3)
    await warehouse.release(order_id)
    assert await warehouse.reserve(order_id) == "fenced"
    assert await warehouse.available() == {"MUG": 10}
    assert await warehouse.says(order_id) == ("placed", "failed")
    assert (await warehouse.reservation(order_id))["expires_at"] > datetime.now(UTC)


async def test_no_stock_is_final_and_all_or_nothing(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10, TEE=1)
    order_id = await warehouse.order(MUG=3, TEE=2, LAMP=1)
    for _ in range(2):
        assert await warehouse.reserve(order_id) == "out_of_stock"
        assert await warehouse.available() == {"MUG": 10, "TEE": 1}
        await warehouse.mongo.inventory.update_many({}, {"$max": {"available": 1}})
    order = await warehouse.orders.require(order_id)
    assert (order.status, order.steps[0].detail) == ("placed", "not enough in stock: TEE, LAMP")
    await warehouse.stock(LAMP=9)
    assert await warehouse.reserve(order_id) == "out_of_stock"  # what was said to the customer stays said
    assert (await warehouse.reservation(order_id))["expires_at"] > datetime.now(UTC)
    await warehouse.release(order_id)
    assert await warehouse.orders.require(order_id) == order


@pytest.mark.parametrize("point", POINTS)
async def test_an_attempt_is_held_while_the_release_runs(warehouse: Warehouse, point: str) -> None:
    await warehouse.stock(MUG=10)
    order_id = await warehouse.order(MUG=3)
    async with held(warehouse, order_id, point) as late:
        await warehouse.release(order_id, warehouse.other)
        if point == "before the commit":  # the release had to wait for it, and found it
            assert await late == "reserved"
            assert await warehouse.says(order_id) == ("reserved", "undone")
        else:
            assert not late.done()
            assert await late == "fenced"
            assert await warehouse.says(order_id) == ("placed", "failed")
    assert await warehouse.available() == {"MUG": 10}
    assert (await warehouse.reservation(order_id))["state"] == "released"


@pytest.mark.parametrize("point", POINTS)
async def test_an_attempt_is_held_while_its_retry_runs(warehouse: Warehouse, point: str) -> None:
    await warehouse.stock(MUG=10)
    order_id = await warehouse.order(MUG=3)
    async with held(warehouse, order_id, point) as late:
        assert await warehouse.reserve(order_id, warehouse.other) == "reserved"
        assert await late == "reserved"
    await warehouse.is_reserved(order_id)
    assert await warehouse.available() == {"MUG": 7}


async def test_an_attempt_is_held_while_its_retry_and_the_release_run(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10)
    order_id = await warehouse.order(MUG=3)
    async with held(warehouse, order_id, "between reading and writing") as late:
        assert await warehouse.reserve(order_id, warehouse.other) == "reserved"
        await warehouse.release(order_id, warehouse.other)
        assert not late.done()
        assert await late == "fenced"
    assert await warehouse.available() == {"MUG": 10}
    assert await warehouse.says(order_id) == ("reserved", "undone")


async def test_attempts_and_releases_in_any_order_at_once(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=30)
    order_ids = [await warehouse.order(MUG=2) for _ in range(10)]
    both = (warehouse.inventory, warehouse.other)
    work: list[Any] = [
        run(order_id, inventory)
        for order_id, inventory in itertools.product(order_ids, both)
        for run in (warehouse.reserve, warehouse.reserve, warehouse.release)
    ]
    random.shuffle(work)
    await asyncio.gather(*work)
    assert await warehouse.available() == {"MUG": 30}
    assert await warehouse.mongo.reservations.count_documents({"state": "released"}) == len(order_ids)


@pytest.mark.parametrize("fault", [BEFORE_THE_EFFECT, COMMITTED], ids=["before", "after"])
async def test_an_attempt_dies_at_any_command(warehouse: Warehouse, fault: dict[str, Any]) -> None:
    await warehouse.stock(MUG=100)
    points = 0
    for after_commands in range(8):
        again, released = await warehouse.order(MUG=1), await warehouse.order(MUG=1)
        for order_id in (again, released):
            with suppress(PyMongoError):
                async with failing(warehouse.mongo, *COMMANDS, mode={"skip": after_commands}, **fault):
                    await warehouse.reserve(order_id)
                    points -= 1
            points += 1
        assert await warehouse.reserve(again) == "reserved"
        await warehouse.is_reserved(again)
        await warehouse.release(released)
        await warehouse.release(released)
        assert await warehouse.reserve(released) == "fenced"
        assert await warehouse.available() == {"MUG": 100 - after_commands - 1}
    # Read the order, the reservation and the stock; write the same three; commit. Reads have no effect to die after.
    assert points == 2 * (7 if fault is BEFORE_THE_EFFECT else 4)


@pytest.mark.parametrize("available", ["many", None, float("nan"), 10.5, True])
async def test_a_broken_article_fails_its_own_orders_only(warehouse: Warehouse, available: Any) -> None:
    """And only until it is repaired: nothing that was written for these orders is final."""
    await warehouse.stock(MUG=100, ODD=10)
    held = await warehouse.order(ODD=2)
    assert await warehouse.reserve(held) == "reserved"
    await warehouse.mongo.inventory.update_one({"_id": "ODD"}, {"$set": {"available": available}})

    good = [await warehouse.order(MUG=1) for _ in range(20)]
    odd = [await warehouse.order(MUG=1, ODD=1) for _ in range(2)]
    in_turn = [*good[:8], odd[0], *good[8:16], odd[1], *good[16:]]
    results = await asyncio.gather(
        *(warehouse.reserve(order_id) for order_id in in_turn),
        warehouse.release(held),
        return_exceptions=True,
    )
    by_order = dict(zip(in_turn, results, strict=False))
    assert [by_order[order_id] for order_id in good] == ["reserved"] * 20
    assert all(isinstance(by_order[order_id], Exception) for order_id in odd)
    assert isinstance(results[-1], Exception)

    await warehouse.mongo.inventory.update_one({"_id": "ODD"}, {"$set": {"available": 8}})
    await warehouse.release(held)
    assert [await warehouse.reserve(order_id) for order_id in odd] == ["reserved", "reserved"]
    assert await warehouse.available() == {"MUG": 78, "ODD": 8}


async def test_a_broken_reservation_fails_its_own_order_only(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=100)
    good = [await warehouse.order(MUG=1) for _ in range(10)]
    odd = await warehouse.order(MUG=1)
    await warehouse.mongo.reservations.insert_one({"_id": odd, "state": "reserved", "lines": "some"})
    results = await asyncio.gather(
        *(warehouse.reserve(order_id) for order_id in [*good[:5], odd, *good[5:]]), return_exceptions=True
    )
    assert isinstance(results.pop(5), Exception)
    assert results == ["reserved"] * 10


async def test_what_the_database_refuses_fails_its_own_order_only(warehouse: Warehouse) -> None:
    """A rule of the owner's on a collection, which one order breaks and nobody can see before it is written."""
    await warehouse.stock(MUG=100)
    await warehouse.mongo.database.command(
        "collMod", "reservations", validator={"lines.quantity": {"$not": {"$gt": 5}}}
    )
    good = [await warehouse.order(MUG=1) for _ in range(10)]
    odd = await warehouse.order(MUG=6)
    results = await asyncio.gather(
        *(warehouse.reserve(order_id) for order_id in [*good[:5], odd, *good[5:]]), return_exceptions=True
    )
    assert isinstance(results.pop(5), PyMongoError)
    assert results == ["reserved"] * 10
    assert await warehouse.available() == {"MUG": 90}


async def test_pieces_of_an_article_that_is_not_kept_any_more(warehouse: Warehouse) -> None:
    """They go nowhere; above all not to another order, which could never be delivered."""
    await warehouse.stock(OLD=2, MUG=10)
    first, other, late = [await warehouse.order(**pieces) for pieces in ({"OLD": 2}, {"MUG": 1}, {"OLD": 1})]
    assert await warehouse.reserve(first) == "reserved"
    await warehouse.mongo.inventory.delete_one({"_id": "OLD"})
    results = await asyncio.gather(warehouse.reserve(other), warehouse.release(first), warehouse.reserve(late))
    assert list(results) == ["reserved", None, "out_of_stock"]
    assert await warehouse.available() == {"MUG": 9}


async def test_available_and_held_are_what_was_stocked_at_every_instant(warehouse: Warehouse) -> None:
    """G5, as a reader sees it who looks at one snapshot after another while everything happens at once."""
    stocked = {"MUG": 12, "TEE": 12}
    await warehouse.stock(**stocked)
    order_ids = [
        await warehouse.order(**{sku: random.randint(1, 3) for sku in skus})
        for skus in random.choices([("MUG",), ("TEE",), ("MUG", "TEE")], k=60)
    ]

    async def customer(order_id: str) -> None:
        await warehouse.reserve(order_id, random.choice([warehouse.inventory, warehouse.other]))
        if random.random() < 0.7:
            await warehouse.release(order_id, random.choice([warehouse.inventory, warehouse.other]))

    storm = asyncio.gather(*map(customer, order_ids))
    looks = 0
    while not storm.done():
        assert await _stocked(warehouse.mongo) == stocked
        looks += 1
    await storm
    assert await _stocked(warehouse.mongo) == stocked
    assert looks > 5


async def _stocked(mongo: Mongo) -> dict[str, int]:
    """Available + held by article, on one snapshot."""

    async def look(session: Any) -> dict[str, int]:
        pieces = {a["_id"]: a["available"] async for a in mongo.inventory.find(session=session)}
        assert all(available >= 0 for available in pieces.values())
        async for reservation in mongo.reservations.find({"state": "reserved"}, session=session):
            for line in reservation["lines"]:
                pieces[line["sku"]] += line["quantity"]
        return pieces

    return await mongo.run_transaction(look)
