"""Benchmarks (`make bench`): the latency of an order from POST to `completed`, and completed orders per second.

Latency is measured from just before the POST to the order's `updated_at`, both by the clock of this machine. Use an
idle machine: servers, worker, API and this client share its cores.
"""

import argparse
import asyncio
import tempfile
import time
import uuid
from contextlib import AsyncExitStack, closing
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx

from app.mongo import Mongo
from dev import hot_stock, order_cost
from dev.order_cost import OrderCost
from dev.sample_stock import authorization
from dev.servers import ServerError
from dev.stack import Config, run
from dev.terminal import console, progress, temporary_stack

WARM_UP = 20  # orders placed first, without measuring them, to open connections and load code
TIMEOUT = 120  # seconds for one benchmark
RETRY_DELAY = 0.2  # seconds before a request that failed is repeated


class Client:
    """Places orders and polls the list of those that ended: cheaper than polling each order."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.completed = 0  # orders of the current benchmark
        self.repeats = 0  # of all requests

    async def send(self, method: str, path: str, **request: Any) -> Any:
        """The JSON of the answer. Names a request that fails and repeats it; a POST needs an Idempotency-Key.

        Raises:
            ServerError: the request is refused.
        """
        while True:
            try:
                response = await self.http.request(method, path, **request)
            except httpx.TransportError as error:
                failure = f"{type(error).__name__} {error}".strip()
            else:
                if response.is_success:
                    return response.json()
                failure = f"{response.status_code} {response.text}"
                if not response.is_server_error:
                    raise ServerError(f"{method} {path} was refused: {failure}")
            self.repeats += 1
            key = request.get("headers", {}).get("Idempotency-Key")
            again = f"repeated with Idempotency-Key {key}" if key else "repeated"
            console.print(f"{method} {path} failed, {again}: {failure}", style="yellow", soft_wrap=True)
            await asyncio.sleep(RETRY_DELAY)

    async def measure(self, orders: int, in_flight: int) -> tuple[list[float], float]:
        """Place this many orders, at most `in_flight` at a time. Returns the seconds each one took, and the total.

        Raises:
            ServerError: an order failed, or the orders did not complete within `TIMEOUT`.
        """
        customer = f"bench-{uuid.uuid4().hex[:12]}"
        pending: dict[str, asyncio.Future[float]] = {}
        self.completed = 0
        slots = asyncio.Semaphore(in_flight)

        async def place() -> float:
            async with slots:
                begin = time.time()
                key = {"Idempotency-Key": uuid.uuid4().hex}
                order = await self.send("POST", "/orders", json=order_body(customer), headers=key)
                done = pending[order["order_id"]] = asyncio.get_running_loop().create_future()
                keep(order)  # a repeated request may find it completed
                return float(await done) - begin

        def keep(order: dict[str, Any]) -> None:
            if order["status"] == "failed":
                raise ServerError(f"order {order['order_id']} failed: {order['failure']['message']}")
            if order["status"] == "completed" and (done := pending.pop(order["order_id"], None)):
                self.completed += 1
                done.set_result(datetime.fromisoformat(order["updated_at"]).timestamp())

        async def poll() -> None:
            limit = str(min(100, 2 * in_flight))
            query = {"customer_id": customer, "status": ["completed", "failed"], "limit": limit}
            while True:
                await asyncio.sleep(0.01 if in_flight == 1 else 0.05)
                for order in (await self.send("GET", "/orders", params=query))["items"]:
                    keep(order)
                # Newer orders may have pushed the oldest one off the list.
                if in_flight > 1 and (oldest := next(iter(pending), None)):
                    keep(await self.send("GET", f"/orders/{oldest}"))

        begin = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
                poller = group.create_task(poll())
                placed = [group.create_task(place()) for _ in range(orders)]
                await asyncio.wait(placed)
                poller.cancel()
        except TimeoutError:
            raise ServerError(f"only {self.completed} of {orders} orders completed within {TIMEOUT} s") from None
        return [task.result() for task in placed], time.monotonic() - begin


def order_body(customer: str) -> dict[str, object]:
    return {
        "customer_id": customer,
        "email": "bench@example.com",
        "payment_method": "pm_card_ok",
        "lines": [{"sku": "MUG-BLUE", "quantity": 1}],
        "shipping_address": {
            "name": "Ada Lovelace",
            "street": "Example Street 1",
            "city": "Berlin",
            "postal_code": "10115",
            "country": "DE",
        },
    }


def show_cost(cost: OrderCost) -> None:
    console.print("\nA completed order costs", style="bold")
    if any(cost.cpu.values()):
        console.print("  CPU: " + ", ".join(f"{name} {used:.0f} ms" for name, used in cost.cpu.items()))
    console.print(
        f"  MongoDB: {cost.reads:.1f} reads, {cost.writes:.1f} writes, {cost.oplog:,.0f} bytes of oplog, "
        f"{cost.document:,.0f} bytes of document, {cost.index:,.0f} of indexes"
    )
    console.print(f"  Temporal: {cost.events:.0f} events, {cost.history:,.0f} bytes, {cost.actions:.0f} Cloud actions")


async def bench(api_url: str | None) -> int:
    async with AsyncExitStack() as resources:
        stack = None
        if not api_url:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="order-saga-")))
            stack = await resources.enter_async_context(temporary_stack(Config.on_free_ports(folder)))
            api_url = stack.api_url
        http = httpx.AsyncClient(base_url=api_url, headers=authorization(), timeout=30)
        client = Client(await resources.enter_async_context(http))

        async def place() -> str:
            key = {"Idempotency-Key": uuid.uuid4().hex}
            return str((await client.send("POST", "/orders", json=order_body("bench"), headers=key))["order_id"])

        async with progress(lambda: f"warming up: {client.completed} of {WARM_UP} orders"):
            await client.measure(WARM_UP, in_flight=5)
        console.print(f"{'':<16}{'orders':>8}{'p50':>10}{'p95':>10}{'orders/s':>10}", style="bold")
        for title, orders, in_flight in (("one at a time", 60, 1), ("50 at once", 50, 50), ("50 in flight", 300, 50)):
            async with progress(lambda: f"{title}: {client.completed} of {orders} orders"):  # noqa: B023
                times, total = await client.measure(orders, in_flight)
            percentiles = quantiles(times, n=100)
            p50, p95 = (f"{1000 * percentiles[n - 1]:,.0f} ms" for n in (50, 95))
            console.print(f"[cyan]{title:<16}[/]{orders:>8}{p50:>10}{p95:>10}{orders / total:>10.1f}")
        if stack:
            async with progress(lambda: f"measuring what an order costs: {order_cost.ORDERS} orders"):
                show_cost(await order_cost.measure(stack, place))
        if client.repeats:
            console.print(f"{client.repeats} requests failed and were repeated", style="yellow")
        if stack:  # this benchmark needs direct access to MongoDB
            with closing(Mongo(stack.mongodb_uri, "hot_stock")) as mongo:
                async with progress(lambda: f"{hot_stock.CALLERS} concurrent callers reserve one product"):
                    rates = await hot_stock.measure(mongo)
            console.print(f"\n{hot_stock.CALLERS} concurrent callers reserve one product, reservations/s", style="bold")
            console.print(
                f"  one transaction each {rates.plain:,.0f}, "
                f"group commit {rates.grouped:,.0f}: {rates.speedup:.0f} times as many"
            )
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    arguments.add_argument("--url", help="address of a running API; without it, a temporary stack is started")
    run(bench(arguments.parse_args().url))
