"""Many orders of one customer placed while no worker runs; then others' orders behind them."""

import asyncio
import time
from statistics import median

from dev.bench.comparison import Comparison
from dev.bench.lab import Lab
from dev.bench.load import callers
from dev.bench.shop import order_body

ORDERS, THOUSAND = 5_000, 1_000
IN_FLIGHT = 10
NEWCOMERS = 10
AT_WORK = 50  # orders that the worker has completed before the newcomers come
POLL = 0.1  # seconds


async def without_worker(lab: Lab) -> list[Comparison]:
    """POSTs: the last thousand against the first, three thirds of each. Newcomers: against the backlog's whole drain.

    The drain is not waited for: it is computed from the orders completed while the newcomers waited.
    """
    await lab.stop()
    orders = lab.size(ORDERS, 60)
    part = min(THOUSAND, orders // 3)
    async with lab.running() as running:
        await running.stack.processes["worker"].stop()
        body, placed = order_body("one-customer"), 0

        def count() -> None:
            nonlocal placed
            placed += 1
            lab.say(f"{placed} of {orders} orders placed while no worker runs")

        load = await callers(
            lambda: running.shop.place(body), in_flight=IN_FLIGHT, count=orders, timeout=900, on_done=count
        )
        lab.say("starting the worker")
        await running.stack.start("worker")
        completed = {"status": "completed"}
        while await running.mongo.orders.count_documents(completed) < lab.size(AT_WORK, 1):
            await asyncio.sleep(POLL)
        before, begin = await running.mongo.orders.count_documents(completed), time.perf_counter()

        async def newcomer(number: int) -> float:
            await asyncio.sleep(number)
            sent = time.perf_counter()
            await running.shop.complete()
            return time.perf_counter() - sent

        newcomers = lab.size(NEWCOMERS, 3)
        lab.say(f"{newcomers} newcomers order behind {orders - before} orders of one customer")
        waits = await asyncio.gather(*(newcomer(number) for number in range(newcomers)))
        done = await running.mongo.orders.count_documents(completed) - before
        drain = orders / (done / (time.perf_counter() - begin))
    first, last = load.times[:part], load.times[-part:]
    thirds = [slice(n * part // lab.rounds, (n + 1) * part // lab.rounds) for n in range(lab.rounds)]
    each = [sorted(waits)[n] for n in ((0, len(waits) // 2, -1) if lab.rounds > 1 else (len(waits) // 2,))]
    return [
        Comparison(
            f"POST without a worker, p50, {orders:,} orders",
            "ms",
            [1_000 * median(last[third]) for third in thirds],
            [1_000 * median(first[third]) for third in thirds],
            (f"last {part:,}", f"first {part:,}"),
            1.2,
        ),
        Comparison(
            f"a newcomer behind {orders:,} orders",
            "s",
            each,
            [drain] * len(each),
            ("newcomer completed", "whole backlog"),
            0.1,
            note=f"The fastest, the median and the slowest of {newcomers} newcomers.",
        ),
    ]
