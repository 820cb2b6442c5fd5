"""`make chaos`: one run, from the start of its servers to its verdict."""

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from bson import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from rich.console import RenderableType
from temporalio.client import Client

from app.domain import TERMINAL, OrderStatus
from app.names import NAME, WORKFLOW_ID_PREFIX
from app.relay import SWEEP_INTERVAL
from dev import chaos as package
from dev.chaos.audit import audit
from dev.chaos.display import in_words, print_report, print_survived, tables
from dev.chaos.evidence import Histories, Journal
from dev.chaos.faults import ALL, LATE_ATTEMPTS, OLD_WORKER, SHORT, Fault, Faults, schedule
from dev.chaos.orders import PRODUCTS, PlannedOrder, RetryingClients, plan_orders
from dev.sample_stock import authorization
from dev.servers import ReplicaSet, free_port
from dev.stack import ROOT, Config, Stack, run
from dev.terminal import console, progress, temporary_stack

Mongo = AsyncMongoClient[dict[str, Any]]
FAILURE_DIR = ROOT / ".dev" / "chaos"
LATEST_ARRIVAL = 7.0  # seconds from the last fence until no attempt is on its way to a gateway: a slow charge takes 5
QUIET = SWEEP_INTERVAL + 30.0  # seconds in which a healthy system changes an open order: a sweep, an attempt's limit
ENDED = {*TERMINAL, None}  # None: the order is lost


@dataclass(frozen=True)
class Plan:
    """What a run does. `pace` is the time in which the orders of one fault are placed, in seconds."""

    orders: list[PlannedOrder]
    faults: list[Fault]
    pace: float


class Run:
    """A run on servers of its own, which must have started."""

    def __init__(self, plan: Plan, stack: Stack, mongo: Mongo, temporal: Client, http: httpx.AsyncClient) -> None:
        self.clients = RetryingClients(http, longest_delay=5 * plan.pace)
        self.histories = Histories()
        self._plan = plan
        self._stack = stack
        self._mongo = mongo
        self._temporal = temporal
        self._statuses = Counter[str]()

    async def stock(self) -> None:
        for sku, (price, quantity) in PRODUCTS.items():
            unit_price = {"amount": price, "currency": "EUR"}
            product = {"name": sku, "unit_price": unit_price, "available": quantity}
            (await self.clients.send("PUT", f"/inventory/{sku}", json=product)).raise_for_status()

    async def inject(self, faults: Faults) -> None:
        """Inject the faults one after another. A part of the orders is placed before the first and during each."""
        parts = split(self._plan.orders, len(self._plan.faults) + 1)

        def state() -> str:
            repeats = f"{self.clients.repeats} requests repeated"
            return f"{len(self.clients.placed)} orders placed, {repeats}; {faults.current or 'no fault'}"

        def details() -> RenderableType:
            return tables(self._statuses, faults.survived)

        async with progress(state, details), self._counting(), asyncio.TaskGroup() as group:
            await self._place(parts[0], group)
            for number, (fault, part) in enumerate(zip(self._plan.faults, parts[1:], strict=True), 1):
                placing = group.create_task(self._place(part, group))
                began = time.monotonic()
                hit = await faults.inject(fault)
                console.print(f"  {number:>2}. {fault.name}: {hit} [dim]({time.monotonic() - began:.1f} s)[/]")
                await placing
        console.print(
            f"{len(self.clients.placed)} orders are placed. Answers: {in_words(self.clients.answered)}", soft_wrap=True
        )

    async def _place(self, orders: list[PlannedOrder], group: asyncio.TaskGroup) -> None:
        for order in orders:
            group.create_task(self.clients.run(order))
            await asyncio.sleep(self._plan.pace / len(orders))

    @asynccontextmanager
    async def _counting(self) -> AsyncIterator[None]:
        """Count the orders by status, for the live table."""

        async def count() -> None:
            by_status = [{"$group": {"_id": "$status", "number": {"$sum": 1}}}]
            while True:
                with suppress(PyMongoError):  # no primary
                    found = await self._mongo[NAME].orders.aggregate(by_status)
                    self._statuses = Counter({each["_id"]: each["number"] async for each in found})
                await asyncio.sleep(0.5)

        counting = asyncio.create_task(count())
        try:
            yield
        finally:
            counting.cancel()

    async def settle(self) -> None:
        """Wait until every order is final and its workflow has closed, and until no attempt is on its way any more.

        Give up once nothing has changed for QUIET seconds.
        """
        seen: dict[str, OrderStatus | None] = {item.order_id: OrderStatus.PLACED for item in self.clients.placed}
        before: object = None
        changed_at, open_orders, running = time.monotonic(), len(seen), set[str]()
        async with progress(lambda: f"waiting for {open_orders} orders and {len(running)} workflows"):
            while time.monotonic() < changed_at + QUIET:
                for item in self.clients.placed:
                    if seen[item.order_id] not in ENDED:
                        seen[item.order_id] = await self.clients.status(item)
                executions = self._temporal.list_workflows("ExecutionStatus = 'Running'")
                running = {each.id async for each in executions if each.id.startswith(WORKFLOW_ID_PREFIX)}
                open_orders = sum(status not in ENDED for status in seen.values())
                if not open_orders and not running:
                    break
                if before != (before := ({**seen}, running)):
                    changed_at = time.monotonic()
                await asyncio.sleep(0.5)
        async with progress(lambda: "waiting for late attempts"):
            await asyncio.sleep(LATEST_ARRIVAL)

    async def judge(self, faults: Faults, began: Timestamp) -> bool:
        """Read the evidence, and print what it shows. Return True if the run counts, and violates no guarantee."""
        async with progress(lambda: "reading MongoDB's changes, the gateways' records and every history"):
            journal = Journal({sku: quantity for sku, (_, quantity) in PRODUCTS.items()})
            await journal.read(self._mongo, began)  # before requests are repeated, which may add an order
            await self.histories.collect(self._temporal)
            repeated = {item.key: await self.clients.repeat(item) for item in self.clients.placed}
            report = audit(self.clients.placed, repeated, journal, self.histories)

        late = journal.late_attempts()
        frozen = {item.order_id for item in self.clients.placed if "frozen" in item.kind}
        runs = self.histories.runs.values()
        older = self._stack.processes.get(OLD_WORKER)
        by_older = {
            each.order_id for each in runs if older and any(w.startswith(f"{older.pid}@") for w in each.workers)
        }
        print_survived(faults.survived)
        for number, text in (
            (len(late), "late attempts ran into a fence"),
            (
                sum(order_id in frozen for order_id, _ in late),
                "of them on a worker that was frozen meanwhile, for longer than an attempt may last",
            ),
            (sum(each.taken_over for each in runs), "attempts were taken over after their time limit"),
            (len(by_older), "orders were in part worked on by the older version"),
            (len(runs), "workflow histories were read"),
            (journal.instants, "instants of the stock were compared"),
        ):
            console.print(f"{number:>5} {text}", soft_wrap=True)
        print_report(report)
        for error in self.clients.errors:
            console.print(error, style="red", markup=False, soft_wrap=True)
        violated = bool(report.violated or self.clients.errors)
        if len(late) < LATE_ATTEMPTS:
            console.print(f"the run does not count: {LATE_ATTEMPTS} late attempts must run into a fence", style="red")
        elif not violated:
            console.print("no guarantee violated", style="green")
        return not violated and len(late) >= LATE_ATTEMPTS


def split(orders: list[PlannedOrder], number: int) -> list[list[PlannedOrder]]:
    """Split the orders into parts of nearly the same size."""
    bounds = [len(orders) * part // number for part in range(number + 1)]
    return [orders[begin:end] for begin, end in pairwise(bounds)]


async def execute(plan: Plan, folder: Path) -> bool:
    async with progress(lambda: "starting three mongods"):
        replica_set = await ReplicaSet.start(folder / "mongodb", [free_port() for _ in range(3)])
    try:
        config = Config.on_free_ports(folder, mongodb_uri=replica_set.uri, workers=2)
        mongo: Mongo
        async with AsyncMongoClient(replica_set.uri, timeoutMS=10_000) as mongo:
            began = (await mongo.admin.command("ping"))["operationTime"]
            async with (
                temporary_stack(config) as stack,
                httpx.AsyncClient(base_url=stack.api_url, headers=authorization()) as http,
            ):
                temporal = await Client.connect(stack.temporal_address)
                chaos = Run(plan, stack, mongo, temporal, http)
                faults = Faults(stack, replica_set, temporal, mongo, chaos.clients, chaos.histories)
                await chaos.stock()
                await chaos.inject(faults)
                await chaos.settle()
                return await chaos.judge(faults, began)
    finally:
        await replica_set.kill()


async def make_chaos(plan: Plan, seed: int) -> int:
    began = time.monotonic()
    console.print(f"{len(plan.orders)} orders, {len(plan.faults)} faults, seed {seed}", style="bold")
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as name:
        passed = False
        try:
            passed = await execute(plan, Path(name))
        finally:
            if not passed:
                shutil.rmtree(FAILURE_DIR, ignore_errors=True)
                shutil.copytree(name, FAILURE_DIR)
                console.print(f"data and logs are in {FAILURE_DIR}", soft_wrap=True)
    console.print(f"seed {seed}, {time.monotonic() - began:.0f} s")
    return 0 if passed else 1


def parse() -> tuple[Plan, int]:
    parser = argparse.ArgumentParser(prog="make chaos ARGS=...", description=package.__doc__)
    parser.add_argument("--orders", type=int, help="by default 300, or 60 if the faults are not all")
    parser.add_argument("--short", action="store_true", help="about a minute: the faults that delay no order for long")
    parser.add_argument("--only", action="append", default=[], help="the faults with this text in their name")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="the orders and faults of that run")
    given = parser.parse_args()
    faults = [
        fault
        for fault in (SHORT if given.short else ALL)
        if not given.only or any(text in fault.name for text in given.only)
    ]
    if not faults:
        parser.error(f"no fault has this in its name. There are: {', '.join(sorted({each.name for each in ALL}))}")
    orders = given.orders or (300 if faults == ALL else 60)
    pace = 1.5 if given.short else 3.0
    return Plan(plan_orders(orders, given.seed), schedule(faults, given.seed), pace), given.seed


if __name__ == "__main__":
    run(make_chaos(*parse()))
