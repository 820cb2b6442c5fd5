"""Reservations are all or nothing, take effect at most once, and never after their release (G3, G4, G5).

Two `Inventory` objects represent two worker processes. Each has its own group commit and connections, so that a fault
can affect one of them.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from pymongo.errors import PyMongoError

from app.activities.inventory import Inventory
from app.domain import OrderStatus, StepRecord
from app.messages import OrderRef
from app.mongo import Document, Mongo, Session
from app.orders import OrderRepository
from dev.servers import Server
from tests.kit.attempts import SCHEDULED, STARTED, attempt, outcome
from tests.kit.faults import BEFORE_THE_EFFECT, current_operations, failing, recorded_commands
from tests.kit.orders import order_document, steps_of
from tests.kit.shop import dependencies
from tests.kit.waiting import eventually

# The commit took effect, but its reply is lost.
COMMITTED: dict[str, Any] = {"writeConcernError": {"code": 8000, "errmsg": "gone"}}
COMMANDS = ("find", "update", "commitTransaction")

# Points at which an attempt is blocked: between the two reads of its transaction, which use one snapshot; before its
# first write; and before the commit.
POINTS = {
    "between reads": ("find", "inventory"),
    "between reading and writing": ("update", "orders"),
    "before the commit": ("commitTransaction", None),
}
HELD_FOR = 500  # milliseconds, much longer than the test needs meanwhile


@dataclass
class Warehouse:
    """Stock and orders of a test, with two worker processes' reservations."""

    mongo: Mongo
    orders: OrderRepository
    inventory: Inventory
    other: Inventory

    async def stock(self, **available: Any) -> None:
        for sku, quantity in available.items():
            await self.mongo.inventory.insert_one({"_id": sku, "available": quantity})

    async def order(self, **quantities: int) -> str:
        document = order_document(quantities)
        await self.mongo.orders.insert_one(document)
        order_id: str = document["_id"]
        return order_id

    async def reserve(self, order_id: str, inventory: Inventory | None = None, number: int = 1) -> str:
        """Run one attempt. Returns `done`, or the code of a non-retryable failure."""
        return await outcome((inventory or self.inventory).reserve, order_id, number)

    async def release(self, order_id: str, inventory: Inventory | None = None) -> None:
        before = await self.record(order_id)
        await attempt((inventory or self.inventory).release, OrderRef(order_id=order_id), 7)
        if before:  # the release must not overwrite the record
            assert _without_release(await self.record(order_id)) == _without_release(before)

    async def available(self) -> dict[str, Any]:
        return {product["_id"]: product["available"] async for product in self.mongo.inventory.find()}

    async def record(self, order_id: str) -> Document:
        document = await self.mongo.orders.find_one({"_id": order_id}) or {}
        record: Document = document.get("steps", {}).get("reserve_inventory", {})
        return record

    async def timeline(self, order_id: str) -> tuple[OrderStatus, str | None]:
        """The status of the order and of its reservation."""
        order = await self.orders.get(order_id)
        return order.status, steps_of(order).get("reserve_inventory")

    async def shown(self, order_id: str) -> StepRecord:
        (record,) = (await self.orders.get(order_id)).steps
        return record

    async def assert_reserved(self, order_id: str) -> None:
        record = await self.record(order_id)
        assert record["status"] == "done"
        assert "compensated_at" not in record
        order = await self.orders.get(order_id)
        assert record["quantities"] == [line.model_dump(include={"sku", "quantity"}) for line in order.lines]
        assert await self.timeline(order_id) == ("reserved", "done")


def _without_release(record: Document) -> Document:
    return {field: value for field, value in record.items() if field not in {"status", "compensated_at"}}


@pytest.fixture
async def warehouse(mongo: Mongo, mongod: Server) -> AsyncIterator[Warehouse]:
    for name in ("orders", "inventory"):
        await mongo.database.create_collection(name)
    other = Mongo(mongod.address, mongo.database.name)
    yield Warehouse(mongo, OrderRepository(mongo), Inventory(dependencies(mongo)), Inventory(dependencies(other)))
    other.close()


@asynccontextmanager
async def held(warehouse: Warehouse, order_id: str, point: str) -> AsyncIterator[asyncio.Task[str]]:
    """Start an attempt of the first process and wait until the server blocks it at this point."""
    command, collection = POINTS[point]
    fault: Document = {"blockConnection": True, "blockTimeMS": HELD_FOR}
    if collection:  # without it, the server's internal session reads would be blocked too
        fault["namespace"] = f"{warehouse.mongo.database.name}.{collection}"
    async with failing(warehouse.mongo, command, mode={"times": 1}, **fault):
        late = asyncio.create_task(warehouse.reserve(order_id))
        blocked = {"appName": warehouse.mongo.database.name, "active": True, f"command.{command}": collection or 1}
        await eventually(lambda: _running(warehouse.mongo, blocked))
        yield late


@asynccontextmanager
async def waiting_for_a_lock(warehouse: Warehouse, order_id: str) -> AsyncIterator[asyncio.Task[str]]:
    """Start an attempt of the first process, in a batch that another transaction delays until the block ends."""
    locked, ended = asyncio.Event(), asyncio.Event()

    async def lock(session: Session) -> None:
        await warehouse.mongo.inventory.update_one({"_id": "MUG"}, {"$set": {"locked": True}}, session=session)
        locked.set()
        await ended.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(warehouse.mongo.run_transaction(lock))
        try:
            await locked.wait()
            running = group.create_task(warehouse.reserve(order_id))
            await _queued(warehouse, 0)
            yield running
        finally:
            ended.set()


async def _queued(warehouse: Warehouse, count: int) -> None:
    """Wait until so many requests wait for the batch in progress in the first process."""
    requests = warehouse.inventory._requests

    async def look() -> int | None:
        return len(requests._waiting) if requests._running else None

    await eventually(look, lambda seen: seen == count)


async def _running(mongo: Mongo, operation: Document) -> list[Document]:
    return await current_operations(mongo, [{"$currentOp": {"allUsers": True}}, {"$match": operation}])


async def test_repeated_reservation_and_release_take_effect_once(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10, TEE=5)
    order_id = await warehouse.order(MUG=3, TEE=5)
    for number in (3, 4):
        assert await warehouse.reserve(order_id, number=number) == "done"
        await warehouse.assert_reserved(order_id)
        assert await warehouse.available() == {"MUG": 7, "TEE": 0}
    reserved = await warehouse.shown(order_id)
    assert (reserved.first_attempt_at, reserved.attempts, reserved.detail) == (SCHEDULED, 3, "reserved")
    for _ in range(2):
        await warehouse.release(order_id)
        assert await warehouse.available() == {"MUG": 10, "TEE": 5}
    released = await warehouse.shown(order_id)
    assert released.compensated_at is not None
    assert reserved.at <= released.compensated_at
    changed = {"status": released.status, "compensated_at": released.compensated_at}
    assert released == reserved.model_copy(update=changed)
    assert await warehouse.timeline(order_id) == ("reserved", "compensated")
    assert await warehouse.reserve(order_id) == "fenced"
    assert await warehouse.available() == {"MUG": 10, "TEE": 5}


async def test_release_before_reservation_fences_every_attempt(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10)
    order_id = await warehouse.order(MUG=3)
    await warehouse.release(order_id)
    assert await warehouse.reserve(order_id) == "fenced"
    assert await warehouse.available() == {"MUG": 10}
    record = await warehouse.record(order_id)
    assert (record["status"], record["detail"]) == ("failed", "stopped before it took effect")
    assert record.keys() == {"status", "detail", "at"}
    assert (await warehouse.orders.get(order_id)).status == "placed"


async def test_out_of_stock_is_not_retried_and_reserves_nothing(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10, TEE=1)
    order_id = await warehouse.order(MUG=3, TEE=2, LAMP=1)
    for number in (1, 2):
        assert await warehouse.reserve(order_id, number=number) == "out_of_stock"
        assert await warehouse.available() == {"MUG": 10, "TEE": 1}
        await warehouse.mongo.inventory.update_many({}, {"$max": {"available": 1}})
    order = await warehouse.orders.get(order_id)
    (record,) = order.steps
    assert (order.status, record.status, record.detail) == ("placed", "failed", "not enough in stock: TEE, LAMP")
    assert (record.first_attempt_at, record.attempts, record.interrupted) == (STARTED, 1, False)
    await warehouse.stock(LAMP=9)
    assert await warehouse.reserve(order_id, number=3) == "out_of_stock"  # the recorded decline is final
    await warehouse.release(order_id)
    assert await warehouse.orders.get(order_id) == order


async def test_reservation_and_release_in_one_batch_reserve_nothing(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10)
    first, order_id = await warehouse.order(MUG=1), await warehouse.order(MUG=3)
    async with waiting_for_a_lock(warehouse, first) as running:
        reservation = asyncio.create_task(warehouse.reserve(order_id))
        await _queued(warehouse, 1)
        release = asyncio.create_task(warehouse.release(order_id))
        await _queued(warehouse, 2)
        assert not running.done()
    assert await running == "done"
    assert await reservation == "fenced"
    await release
    record = await warehouse.record(order_id)
    assert (record["status"], record["detail"], record["attempts"]) == ("compensated", "reserved", 1)
    assert await warehouse.available() == {"MUG": 9}


async def test_release_returns_reserved_quantities_after_lines_changed(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10, TEE=5)
    order_id = await warehouse.order(MUG=3)
    assert await warehouse.reserve(order_id) == "done"
    edited = order_document({"MUG": 1, "TEE": 2})
    fields = {field: edited[field] for field in ("lines", "total")}
    await warehouse.mongo.orders.update_one({"_id": order_id}, {"$set": fields})
    assert await warehouse.reserve(order_id, number=2) == "done"
    assert await warehouse.available() == {"MUG": 7, "TEE": 5}
    await warehouse.release(order_id)
    assert await warehouse.available() == {"MUG": 10, "TEE": 5}


async def test_cancelled_order_is_not_reserved(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10)
    before, after = await warehouse.order(MUG=3), await warehouse.order(MUG=2)
    await warehouse.orders.request_cancellation(before, None)
    assert await warehouse.reserve(after) == "done"
    await warehouse.orders.request_cancellation(after, None)
    for order_id in (before, after):
        assert await warehouse.reserve(order_id) == "cancelled"
    assert await warehouse.record(before) == {}
    assert await warehouse.available() == {"MUG": 8}


@pytest.mark.parametrize("point", ["between reads", "between reading and writing"])
async def test_cancel_during_transaction_reserves_nothing(warehouse: Warehouse, point: str) -> None:
    await warehouse.stock(MUG=10)
    order_id = await warehouse.order(MUG=3)
    async with held(warehouse, order_id, point) as late:
        assert (await warehouse.orders.request_cancellation(order_id, None)).cancellation is not None
        assert not late.done()
        assert await late == "cancelled"  # the transaction conflicted, and its retry read the cancel
    assert await warehouse.timeline(order_id) == ("placed", None)
    await warehouse.release(order_id)
    assert (await warehouse.record(order_id))["status"] == "failed"
    assert await warehouse.available() == {"MUG": 10}


async def test_order_removed_during_transaction_takes_no_stock(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10)
    order_id = await warehouse.order(MUG=3)
    async with held(warehouse, order_id, "between reads") as late:
        await warehouse.mongo.orders.delete_one({"_id": order_id})
        assert not late.done()
        await asyncio.wait([late])
    assert late.exception() is not None
    assert await warehouse.available() == {"MUG": 10}
    await warehouse.release(order_id)  # the compensation of a removed order
    assert await warehouse.available() == {"MUG": 10}


@pytest.mark.parametrize("point", POINTS)
async def test_attempt_held_during_release_is_fenced_or_released(warehouse: Warehouse, point: str) -> None:
    await warehouse.stock(MUG=10)
    order_id = await warehouse.order(MUG=3)
    async with held(warehouse, order_id, point) as late:
        await warehouse.release(order_id, warehouse.other)
        if point == "before the commit":  # the release waited for the commit, and found the reservation
            assert await late == "done"
            assert await warehouse.timeline(order_id) == ("reserved", "compensated")
        else:
            assert not late.done()
            assert await late == "fenced"
            assert (await warehouse.record(order_id))["status"] == "failed"
    assert await warehouse.available() == {"MUG": 10}
    assert (await warehouse.record(order_id))["status"] in {"failed", "compensated"}


@pytest.mark.parametrize("point", POINTS)
async def test_attempt_held_during_retry_reserves_once(warehouse: Warehouse, point: str) -> None:
    await warehouse.stock(MUG=10)
    order_id = await warehouse.order(MUG=3)
    async with held(warehouse, order_id, point) as late:
        assert await warehouse.reserve(order_id, warehouse.other) == "done"
        assert await late == "done"
    await warehouse.assert_reserved(order_id)
    assert await warehouse.available() == {"MUG": 7}


async def test_attempt_held_during_retry_and_release_is_fenced(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10)
    order_id = await warehouse.order(MUG=3)
    async with held(warehouse, order_id, "between reading and writing") as late:
        assert await warehouse.reserve(order_id, warehouse.other) == "done"
        await warehouse.release(order_id, warehouse.other)
        assert not late.done()
        assert await late == "fenced"
    assert await warehouse.available() == {"MUG": 10}
    assert await warehouse.timeline(order_id) == ("reserved", "compensated")


async def test_simultaneous_attempts_and_releases_leave_no_reservation(warehouse: Warehouse) -> None:
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
    ended = {"steps.reserve_inventory.status": {"$in": ["failed", "compensated"]}}
    assert await warehouse.mongo.orders.count_documents(ended) == len(order_ids)


@pytest.mark.parametrize("fault", [BEFORE_THE_EFFECT, COMMITTED], ids=["before", "after"])
async def test_attempt_interrupted_at_any_command_can_be_repeated_or_released(
    warehouse: Warehouse, fault: dict[str, Any]
) -> None:
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
        assert await warehouse.reserve(again) == "done"
        await warehouse.assert_reserved(again)
        await warehouse.release(released)
        await warehouse.release(released)
        assert await warehouse.reserve(released) == "fenced"
        assert await warehouse.available() == {"MUG": 100 - after_commands - 1}
    # Commands: read order and stock; write record and stock; commit. A read has no effect to fail after.
    assert points == 2 * (5 if fault is BEFORE_THE_EFFECT else 3)


@pytest.mark.parametrize("available", ["many", None, float("nan"), 10.5, True])
async def test_malformed_product_fails_only_its_orders(warehouse: Warehouse, available: Any) -> None:
    """The orders succeed after the product is repaired, because no failure was recorded."""
    await warehouse.stock(MUG=100, ODD=10)
    held = await warehouse.order(ODD=2)
    assert await warehouse.reserve(held) == "done"
    await warehouse.mongo.inventory.update_one({"_id": "ODD"}, {"$set": {"available": available}})

    good = [await warehouse.order(MUG=1) for _ in range(20)]
    malformed = [await warehouse.order(MUG=1, ODD=1) for _ in range(2)]
    in_turn = [*good[:8], malformed[0], *good[8:16], malformed[1], *good[16:]]
    results = await asyncio.gather(
        *(warehouse.reserve(order_id) for order_id in in_turn), warehouse.release(held), return_exceptions=True
    )
    by_order = dict(zip(in_turn, results, strict=False))
    assert [by_order[order_id] for order_id in good] == ["done"] * 20
    assert all(isinstance(by_order[order_id], Exception) for order_id in malformed)
    assert isinstance(results[-1], Exception)

    await warehouse.mongo.inventory.update_one({"_id": "ODD"}, {"$set": {"available": 8}})
    await warehouse.release(held)
    assert [await warehouse.reserve(order_id) for order_id in malformed] == ["done", "done"]
    assert await warehouse.available() == {"MUG": 78, "ODD": 8}


@pytest.mark.parametrize(
    "changes", [{"quantities": "some"}, {"quantities": [{"sku": "MUG"}]}, {"status": "odd"}, {"failure": 5}]
)
async def test_malformed_reservation_fails_only_its_order(warehouse: Warehouse, changes: Document) -> None:
    await warehouse.stock(MUG=100)
    first, malformed = await warehouse.order(MUG=1), await warehouse.order(MUG=1)
    good = [await warehouse.order(MUG=1) for _ in range(10)]
    assert await warehouse.reserve(malformed) == "done"
    fields = {f"steps.reserve_inventory.{field}": value for field, value in changes.items()}
    await warehouse.mongo.orders.update_one({"_id": malformed}, {"$set": fields})
    async with waiting_for_a_lock(warehouse, first):
        attempts = [asyncio.create_task(warehouse.reserve(order_id)) for order_id in good]
        failed = [asyncio.create_task(work(malformed)) for work in (warehouse.reserve, warehouse.release)]
        await _queued(warehouse, 12)
    assert await asyncio.gather(*attempts) == ["done"] * 10
    for task in failed:
        with pytest.raises((TypeError, KeyError, ValueError)):
            await task
    assert await warehouse.available() == {"MUG": 88}


async def test_write_refused_by_validator_fails_only_its_order(warehouse: Warehouse) -> None:
    """A validator of the collection rejects the write of one order in the batch."""
    await warehouse.stock(MUG=100)
    await warehouse.mongo.database.command(
        "collMod", "orders", validator={"steps.reserve_inventory.quantities.quantity": {"$not": {"$gt": 5}}}
    )
    good = [await warehouse.order(MUG=1) for _ in range(10)]
    refused = await warehouse.order(MUG=6)
    results = await asyncio.gather(
        *(warehouse.reserve(order_id) for order_id in [*good[:5], refused, *good[5:]]), return_exceptions=True
    )
    assert isinstance(results.pop(5), PyMongoError)
    assert results == ["done"] * 10
    assert await warehouse.available() == {"MUG": 90}


async def test_release_of_removed_product_discards_its_quantities(warehouse: Warehouse) -> None:
    """The released quantities must not go to another order, because they cannot be delivered."""
    await warehouse.stock(OLD=2, MUG=10)
    lines: list[dict[str, int]] = [{"OLD": 2}, {"MUG": 1}, {"OLD": 1}]
    first, other, late = [await warehouse.order(**quantities) for quantities in lines]
    assert await warehouse.reserve(first) == "done"
    await warehouse.mongo.inventory.delete_one({"_id": "OLD"})
    results = await asyncio.gather(warehouse.reserve(other), warehouse.release(first), warehouse.reserve(late))
    assert list(results) == ["done", None, "out_of_stock"]
    assert await warehouse.available() == {"MUG": 9}


async def test_available_and_held_equal_stocked_at_every_instant(warehouse: Warehouse) -> None:
    """Reads snapshots while many reservations and releases run."""
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

    load = asyncio.gather(*map(customer, order_ids))
    snapshots = 0
    while not load.done():
        assert await _stocked(warehouse.mongo) == stocked
        snapshots += 1
    await load
    assert await _stocked(warehouse.mongo) == stocked
    assert snapshots > 5


async def _stocked(mongo: Mongo) -> dict[str, int]:
    """Available plus held quantity of each SKU, from one snapshot."""

    async def look(session: Any) -> dict[str, int]:
        stocked = {product["_id"]: product["available"] async for product in mongo.inventory.find(session=session)}
        assert all(available >= 0 for available in stocked.values())
        async for order in mongo.orders.find({"steps.reserve_inventory.status": "done"}, session=session):
            for line in order["steps"]["reserve_inventory"]["quantities"]:
                stocked[line["sku"]] += line["quantity"]
        return stocked

    return await mongo.run_transaction(look)


async def test_reservation_costs_one_transaction(warehouse: Warehouse) -> None:
    await warehouse.stock(MUG=10, TEE=10)
    first, second = await warehouse.order(MUG=1, TEE=1), await warehouse.order(MUG=1)
    assert await warehouse.reserve(second) == "done"  # opens the connections
    release = warehouse.inventory.release
    for work, expected, transactions in (
        (warehouse.reserve(first), TRANSACTION, 1),
        (warehouse.reserve(first), TRANSACTION[:2], 1),
        (attempt(release, OrderRef(order_id=first)), TRANSACTION, 1),
        (attempt(release, OrderRef(order_id=first)), TRANSACTION[:2], 1),
    ):
        before = await _committed(warehouse.mongo)
        async with recorded_commands(warehouse.mongo) as commands:
            await work
        assert [f"{entry['op']} {entry['ns'].partition('.')[2]}" for entry in commands] == expected
        assert await _committed(warehouse.mongo) - before == transactions


async def _committed(mongo: Mongo) -> int:
    status = await mongo.client.admin.command("serverStatus")
    return int(status["transactions"]["totalCommitted"])


TRANSACTION = ["query orders", "query inventory", "update orders", "update inventory", "update inventory"]
