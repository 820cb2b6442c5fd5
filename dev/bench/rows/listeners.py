"""Many event streams: how late the last of them hears of a change, and what they cost the others."""

import asyncio
import time
from statistics import median

from dev.bench.comparison import Comparison
from dev.bench.helper import helper
from dev.bench.lab import Lab, Running
from dev.bench.load import percentile
from dev.servers import ServerError

LISTENERS = 500
RATE = 2  # orders per second, each with five changes
POLL = 0.1  # seconds
SETTLE = 1.0  # seconds, in which the last event arrives


async def many(lab: Lab) -> list[Comparison]:
    """500 listeners to all orders in a process of their own, while orders come in; then the same without listeners."""
    running, count, listeners = await lab.main(), lab.size(30, 5), lab.size(LISTENERS, 20)
    lags: list[float] = []

    async def with_listeners() -> float:
        lab.say(f"{listeners} listeners connect")
        async with helper("listeners", running.stack.api_url, listeners) as process:
            await process.ask("begin")
            lab.say(f"{count} orders with {listeners} listeners")
            p50 = await _posts(running, count)
            while await running.unfinished_orders():
                await asyncio.sleep(POLL)
            await asyncio.sleep(SETTLE)
            heard = await process.ask("end")
            if len(heard) < count:
                raise ServerError(f"only {len(heard)} changes of {count} orders reached all {listeners} listeners")
            lags.append(percentile(heard, 99))
        return p50

    async def without() -> float:
        lab.say(f"{count} orders without listeners")
        return await _posts(running, count)

    busy, quiet = await lab.turns(with_listeners, without)
    title = f"commit to the last of {listeners} listeners, p99"
    return [
        Comparison(title, "ms", lags, [250.0] * lab.rounds, ("change", "limit"), 1),
        Comparison(f"POST answered with {listeners} listeners, p50", "ms", busy, quiet, ("with", "without"), 1.2),
    ]


async def _posts(running: Running, count: int) -> float:
    """Place orders at a steady rate; return the median time of the answers, in milliseconds."""
    times, begin = [], time.perf_counter()
    for number in range(count):
        await asyncio.sleep(max(0.0, begin + number / RATE - time.perf_counter()))
        sent = time.perf_counter()
        await running.shop.place()
        times.append(1_000 * (time.perf_counter() - sent))
    return median(times)
