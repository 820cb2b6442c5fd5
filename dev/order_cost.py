"""The cost of a completed order: CPU time, MongoDB's reads, writes and bytes, Temporal's events, bytes, Cloud actions.

`make bench` prints it; docs/scale.md computes from it what a given rate of orders needs.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from app import relay, temporal
from app.mongo import Mongo
from app.names import NAME
from app.order_workflows import workflow_id
from dev.servers import ServerError
from dev.stack import Stack

ORDERS, BATCH = 200, 20  # so many in all, so many at once
TIMEOUT = 60  # seconds for a batch
IDLE = 3.0  # seconds in which the load without orders is measured, to subtract it
COPIES = 20_000  # of an order, to measure sizes
SAMPLE = 10  # orders whose histories are read
# The events that Temporal Cloud bills, once each: https://docs.temporal.io/cloud/actions (as of November 2026). Each
# retry of an activity is an action, too, and a query, which leaves no event.
ACTIONS = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
    EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
    EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
    EventType.EVENT_TYPE_TIMER_STARTED,
}
READS, WRITES = ("queries", "getmore"), ("insert", "update", "remove", "commands")  # findAndModify is a command
PROCESSES = {"api": "API", "worker": "worker", "temporal": "Temporal", "mongod": "mongod"}


@dataclass(frozen=True)
class OrderCost:
    """The cost of one completed order, averaged over many. The sandbox gateways' records are not counted."""

    cpu: dict[str, float]  # milliseconds by process; 0 except on Linux
    reads: float
    writes: float
    oplog: float  # bytes that each member of the replica set receives
    document: float  # bytes of the order document
    index: float  # bytes of its index entries
    events: float
    history: float  # bytes
    actions: float

    @property
    def activities(self) -> float:
        """The activities; the other two actions are the start, and the search attribute at the end."""
        return self.actions - 2


@dataclass(frozen=True)
class Snapshot:
    cpu: Counter[str]
    operations: Counter[str]
    oplog: int

    @classmethod
    async def take(cls, stack: Stack, mongo: Mongo) -> Snapshot:
        totals = (await mongo.client.admin.command("top"))["totals"]
        operations: Counter[str] = Counter()
        for collection in ("orders", "inventory", "restocks", "relay"):
            counts = totals.get(f"{mongo.database.name}.{collection}", {})
            operations["reads"] += sum(counts[kind]["count"] for kind in READS if kind in counts)
            operations["writes"] += sum(counts[kind]["count"] for kind in WRITES if kind in counts)
        oplog = (await mongo.client.local.command("collStats", "oplog.rs"))["size"]
        cpu = Counter({name: cpu_time(stack.processes[key].pid) for key, name in PROCESSES.items()})
        return cls(cpu, operations, oplog)


def cpu_time(pid: int) -> int:
    """The CPU time of a process, in milliseconds; 0 where there is no /proc."""
    if sys.platform != "linux":
        return 0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1_000 * (int(fields[11]) + int(fields[12])) // os.sysconf("SC_CLK_TCK")


async def measure(
    stack: Stack, place: Callable[[], Awaitable[str]], *, orders: int = ORDERS, copies: int = COPIES
) -> OrderCost:
    """Measure so many orders. `place` places one and returns its id.

    Raises:
        ServerError: they did not complete within `TIMEOUT`.
    """
    mongo = Mongo(stack.mongodb_uri, NAME)
    try:
        begin = await Snapshot.take(stack, mongo)
        await asyncio.sleep(IDLE)
        before, started = await Snapshot.take(stack, mongo), asyncio.get_running_loop().time()
        order_ids: list[str] = []
        for _ in range(0, orders, BATCH):
            order_ids += await asyncio.gather(*(place() for _ in range(BATCH)))
            await _until_completed(mongo, order_ids)
        idle = (asyncio.get_running_loop().time() - started) / IDLE
        after = await Snapshot.take(stack, mongo)

        def of_one(end: float, start: float, without: float) -> float:
            return max(0.0, (end - start - idle * (start - without)) / orders)

        document, index = await _sizes(stack, mongo, order_ids[0], copies)
        client = await temporal.connect(target_host=stack.temporal_address)
        histories = [await history_of(client, order_id) for order_id in order_ids[:SAMPLE]]
        return OrderCost(
            cpu={name: of_one(after.cpu[name], before.cpu[name], begin.cpu[name]) for name in after.cpu},
            **{
                kind: of_one(after.operations[kind], before.operations[kind], begin.operations[kind])
                for kind in ("reads", "writes")
            },
            oplog=of_one(after.oplog, before.oplog, begin.oplog),
            document=document,
            index=index,
            events=_mean([events for events, _, _ in histories]),
            history=_mean([size for _, size, _ in histories]),
            actions=_mean([actions for _, _, actions in histories]),
        )
    finally:
        mongo.close()


async def _sizes(stack: Stack, mongo: Mongo, order_id: str, count: int) -> tuple[float, float]:
    """The bytes of an order document and of its index entries. Takes many copies of it, because few fill no pages."""
    order = await mongo.orders.find_one({"_id": order_id}) or {}
    scratch = Mongo(stack.mongodb_uri, "order_cost")
    try:
        await scratch.create_indexes()
        for first in range(0, count, 1_000):
            times = (
                order["created_at"] + timedelta(milliseconds=10 * number) for number in range(first, first + 1_000)
            )
            copies = ({"_id": f"ord_{secrets.token_hex(13)}", "created_at": at, "updated_at": at} for at in times)
            await scratch.orders.insert_many(
                [{**order, "customer_id": secrets.token_hex(8), **copy} for copy in copies]
            )
        await scratch.client.admin.command("fsync")
        statistics = await scratch.database.command("collStats", "orders")
        return statistics["avgObjSize"], statistics["totalIndexSize"] / count
    finally:
        await scratch.client.drop_database("order_cost")
        scratch.close()


async def history_of(client: Client, order_id: str) -> tuple[int, int, int]:
    """The number of events of an order's workflow, their bytes, and the number of Cloud actions."""
    handle = client.get_workflow_handle(workflow_id(order_id))
    info = (await handle.describe()).raw_description.workflow_execution_info
    events = (await handle.fetch_history()).events
    return info.history_length, info.history_size_bytes, sum(event.event_type in ACTIONS for event in events)


async def _until_completed(mongo: Mongo, order_ids: list[str]) -> None:
    """Wait for these orders. Asks rarely, and not through the API, because this is part of the measurement."""
    query = {"_id": {"$in": order_ids}, "status": "completed"}
    try:
        async with asyncio.timeout(TIMEOUT):
            while await mongo.orders.count_documents(query) < len(order_ids):
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise ServerError(f"orders did not complete within {TIMEOUT} s") from None


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)


# --- what a rate of orders needs

UTILIZATION = 0.6  # of a core, a shard or a partition: bursts and a lost machine need the rest
# What each part bears per second, for a first estimate. docs/scale.md says where these come from.
WRITES_PER_SHARD = 5_000  # majority writes, of a shard of MongoDB
EVENTS_PER_HISTORY_SHARD = 100  # of a history shard of Temporal
TASKS_PER_PARTITION = 300  # of a partition of a task queue


@dataclass(frozen=True)
class Needs:
    """What a rate of completed orders needs."""

    worker_cores: int
    api_cores: int
    mongodb_shards: int
    gigabytes_per_day: float  # that the orders and their index entries add to MongoDB
    oplog: float  # megabytes per second
    history_shards: int  # of Temporal; a power of two
    partitions: int  # of the task queue, which has a workflow task more than activities; at least Temporal's default
    relays: int  # each with a change stream on a range of the orders
    events: float  # per second
    actions: float  # per second

    @classmethod
    def of(cls, cost: OrderCost, rate: float) -> Needs:
        """The needs of `rate` orders per second."""

        def parts(load: float, of_each: float) -> int:
            return math.ceil(rate * load / of_each / UTILIZATION)

        return cls(
            worker_cores=parts(cost.cpu["worker"], 1_000),
            api_cores=parts(cost.cpu["API"], 1_000),
            mongodb_shards=parts(cost.writes, WRITES_PER_SHARD),
            gigabytes_per_day=86_400 * rate * (cost.document + cost.index) / 1e9,
            oplog=rate * cost.oplog / 1e6,
            history_shards=2 ** math.ceil(math.log2(max(4, parts(cost.events, EVENTS_PER_HISTORY_SHARD)))),
            relays=parts(1, relay.BATCH / relay.CHECK_INTERVAL),
            partitions=max(4, parts(2 * cost.activities + 1, TASKS_PER_PARTITION)),
            events=rate * cost.events,
            actions=rate * cost.actions,
        )
