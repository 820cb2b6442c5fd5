"""The measurements (`make bench`): how long an order takes from POST to `completed`, and how many complete per second.

A time runs from before the POST to the order's `updated_at`, both by the clock of this machine. Run it on an idle one:
servers, worker, API and this client share its cores.
"""

import argparse
import asyncio
import tempfile
import time
import uuid
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from statistics import quantiles

import httpx

from app.mongo import Mongo
from dev import hot_stock
from dev.sample_stock import authorization
from dev.stack import Config, Stack, run

WARM_UP = 20  # orders that are not measured: connections are made, code is loaded
TIMEOUT = 120  # seconds for one measurement


class Client:
    """Places orders and learns when they are completed, by lists of many, which cost little."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def measure(self, orders: int, in_flight: int) -> tuple[list[float], float]:
        """Place `orders`, at most `in_flight` at a time. Returns the seconds of each, and of all together."""
        customer = f"bench-{uuid.uuid4().hex[:12]}"
        waiting: dict[str, asyncio.Future[float]] = {}
        turns = asyncio.Semaphore(in_flight)

        async def place() -> float:
            async with turns:
                begin = time.time()
                response = await self.http.post("/orders", json=order_of(customer))
                order_id = response.raise_for_status().json()["order_id"]
                waiting[order_id] = asyncio.get_running_loop().create_future()
                return await waiting[order_id] - begin

        async def look() -> None:
            query = {"customer_id": customer, "status": "completed", "limit": str(min(100, 2 * in_flight))}
            while True:
                await asyncio.sleep(0.01 if in_flight == 1 else 0.05)
                response = await self.http.get("/orders", params=query)
                for order in response.raise_for_status().json()["items"]:
                    if future := waiting.pop(order["order_id"], None):
                        future.set_result(datetime.fromisoformat(order["updated_at"]).timestamp())

        begin = time.monotonic()
        async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
            looking = group.create_task(look())
            placed = [group.create_task(place()) for _ in range(orders)]
            await asyncio.wait(placed)
            looking.cancel()
        return [task.result() for task in placed], time.monotonic() - begin


def order_of(customer: str) -> dict[str, object]:
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


async def bench(api_url: str | None) -> int:
    async with AsyncExitStack() as resources:
        stack = None
        if not api_url:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="order-saga-")))
            stack = await resources.enter_async_context(Stack(Config.on_free_ports(folder)))
            api_url = stack.api_url
        http = httpx.AsyncClient(base_url=api_url, headers=authorization(), timeout=30)
        client = Client(await resources.enter_async_context(http))
        await client.measure(WARM_UP, in_flight=5)
        print(f"{'':<16}{'orders':>8}{'p50':>10}{'p95':>10}{'orders/s':>10}")
        for title, orders, in_flight in (("one at a time", 60, 1), ("50 at once", 50, 50), ("50 in flight", 300, 50)):
            times, total = await client.measure(orders, in_flight)
            percentiles = quantiles(times, n=100)
            p50, p95 = (f"{1000 * percentiles[n - 1]:,.0f} ms" for n in (50, 95))
            print(f"{title:<16}{orders:>8}{p50:>10}{p95:>10}{orders / total:>10.1f}", flush=True)
        if stack:  # needs MongoDB itself
            mongo = Mongo(stack.mongodb_uri, "hot_stock")
            rates = await hot_stock.measure(mongo)
            mongo.close()
            print(f"\n{hot_stock.CALLERS} reserve one product, reservations/s")
            print(
                f"  a transaction each {rates.plain:,.0f}, group commit {rates.grouped:,.0f}: {rates.times:.0f} times"
            )
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    arguments.add_argument("--url", help="an API that runs already; without, a new stack is started for this")
    run(bench(arguments.parse_args().url))
