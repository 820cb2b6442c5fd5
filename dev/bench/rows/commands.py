"""The commands that a completed order costs: MongoDB's writes, and Temporal's starts of workflows."""

import asyncio
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from app.names import NAME
from dev import order_cost
from dev.bench.comparison import Comparison
from dev.bench.lab import CLIENT, Lab, Running
from dev.servers import HOST, Server, free_port, start_temporal

OWN = ("orders", "inventory", "restocks")  # collections; the relay's lease is not of an order, the sandbox not a cost
WRITES = ("insert", "update", "findAndModify", "remove")
WORKERS = (1, 2, 4)
RELAY_DELAY = 2.0  # seconds until the relay would have started an order again


async def mongodb(lab: Lab) -> list[Comparison]:
    """MongoDB's own profile of each command, for orders one after the other: none shares its transaction.

    The limit is the insert and a write for each of three steps; the reservation is the transaction.
    """
    running, count = await lab.main(), lab.size(10, 3)
    commands: list[Counter[str]] = []
    for _ in range(lab.rounds):
        lab.say(f"the commands of {count} orders, one after the other")
        async with _profile(running) as profile:
            for _ in range(count):
                await running.shop.complete_unwatched(running.mongo)
        commands.append(Counter({name: round(number / count, 2) for name, number in profile.items()}))
    alone = [sum(number for name, number in turn.items() if name.split()[0] in WRITES) for turn in commands]
    transactions = [turn["transaction"] for turn in commands]
    names = ("order", "limit")
    details: dict[str, object] = {"commands": [dict(turn) for turn in commands]}
    lab.say(f"the rest of what an order costs: {order_cost.ORDERS} orders")
    orders, copies = lab.size(order_cost.ORDERS, 20), lab.size(order_cost.COPIES, 1_000)
    cost = await order_cost.measure(running.stack, running.shop.place, orders=orders, copies=copies)
    cpu = {name: round(used, 1) for name, used in cost.cpu.items()}
    details["cost"] = {name: round(value, 1) for name, value in asdict(cost).items() if name != "cpu"} | {"cpu": cpu}
    limit, one = [4.0] * lab.rounds, [1.0] * lab.rounds
    return [
        Comparison("MongoDB writes of an order", "writes", alone, limit, names, 1, details=details),
        Comparison("its transactions", "transactions", transactions, one, names, 1),
    ]


@asynccontextmanager
async def _profile(running: Running) -> AsyncIterator[Counter[str]]:
    """The commands on the collections of orders during the block, by kind and collection."""
    database, found = running.mongo.database, Counter[str]()
    committed = await _transactions(running)
    await database.command("profile", 0)
    await database.drop_collection("system.profile")
    await database.create_collection("system.profile", capped=True, size=64_000_000)
    await database.command("profile", 2)
    try:
        yield found
    finally:
        await database.command("profile", 0)
    found["transaction"] = await _transactions(running) - committed
    namespaces = [f"{database.name}.{name}" for name in OWN]
    async for entry in database["system.profile"].find({"ns": {"$in": namespaces}}):
        command: dict[str, Any] = entry.get("command", {})
        name = "findAndModify" if "findAndModify" in command or "findandmodify" in command else str(entry["op"])
        if name == "getmore" or entry.get("appName") == CLIENT:
            continue  # a getMore is of the change stream
        in_transaction = entry.get("readConcern", {}).get("level") == "snapshot"
        part = "in the transaction: " if in_transaction else ""
        found[f"{part}{name} {entry['ns'].partition('.')[2]}"] += 1


async def _transactions(running: Running) -> int:
    return int((await running.mongo.client.admin.command("serverStatus"))["transactions"]["totalCommitted"])


async def starts(lab: Lab) -> list[Comparison]:
    """The calls of StartWorkflowExecution that Temporal counts, of the API and all workers."""
    await lab.stop()
    count, found = lab.size(30, 5), []
    async with _temporal_with_metrics() as (temporal, metrics), lab.running(temporal=temporal.address) as running:
        for workers in WORKERS[: lab.size(3, 2)]:
            for number in range(2, workers + 1):
                if f"worker-{number}" not in running.stack.processes:
                    lab.say(f"starting worker {number}")
                    await running.stack.start(f"worker-{number}")
            calls = []
            for _ in range(lab.rounds):
                lab.say(f"{count} orders with {workers} workers")
                before = await _start_calls(metrics)
                for _ in range(count):
                    await running.shop.complete()
                await asyncio.sleep(RELAY_DELAY)
                calls.append((await _start_calls(metrics) - before) / count)
            title = f"starts of an order, {workers} worker" + "s" * (workers > 1)
            found.append(Comparison(title, "calls", calls, [1.0] * lab.rounds, ("order", "limit"), 1))
    return found


@asynccontextmanager
async def _temporal_with_metrics() -> AsyncIterator[tuple[Server, str]]:
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as folder:
        port = free_port()
        options = ["--metrics-port", str(port)]
        server = await start_temporal(free_port(), db_file=Path(folder, "temporal.db"), options=options)
        try:
            yield server, f"http://{HOST}:{port}/metrics"
        finally:
            await server.kill()


async def _start_calls(metrics: str) -> float:
    async with httpx.AsyncClient() as http:
        text = (await http.get(metrics)).text
    calls = re.findall(
        r'^service_requests\{.*operation="(?:StartWorkflowExecution|SignalWithStartWorkflowExecution)".*'
        r'service_name="frontend".*\} (\S+)$',
        text,
        re.MULTILINE,
    )
    return sum(map(float, calls))
