"""Orders against the floor: throughput, latency, CPU."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from dev.bench.comparison import Comparison
from dev.bench.lab import Lab, Main
from dev.bench.load import callers
from dev.order_cost import cpu_time

IN_FLIGHT = 50
BATCH = 20  # orders at a time while CPU time is measured
IDLE = 3.0  # seconds
POLL = 0.5  # seconds


async def throughput(lab: Lab) -> list[Comparison]:
    """Orders per second with 50 in flight. A POST with `Prefer: wait` is answered when the order is completed."""
    running, count = await lab.main(), lab.size(300, 20)

    def rate(one: Callable[[], Awaitable[None]], name: str) -> Callable[[], Awaitable[float]]:
        async def measure() -> float:
            lab.say(f"{count} times {name}, {IN_FLIGHT} in flight")
            return (await callers(one, in_flight=IN_FLIGHT, count=count)).rate

        return measure

    ours, floor = await lab.turns(rate(running.shop.complete, "an order"), rate(running.floor.run, "the floor"))
    title, names = f"orders, {IN_FLIGHT} in flight", ("POST to completed", "floor")
    return [Comparison(title, "orders/s", ours, floor, names, 0.85, at_least=True)]


async def latency(lab: Lab) -> list[Comparison]:
    """The median time of one order at a time."""
    running, count = await lab.main(), lab.size(40, 5)

    def p50(one: Callable[[], Awaitable[None]], name: str) -> Callable[[], Awaitable[float]]:
        async def measure() -> float:
            lab.say(f"{count} times {name}, one at a time")
            return 1_000 * (await callers(one, in_flight=1, count=count)).percentile(50)

        return measure

    ours, floor = await lab.turns(p50(running.shop.complete, "an order"), p50(running.floor.run, "the floor"))
    return [Comparison("order alone, p50", "ms", ours, floor, ("POST to completed", "floor"), 1.3)]


async def cpu(lab: Lab) -> list[Comparison]:
    """The CPU time of a completed order in all processes, less that of the idle processes.

    The client's is not counted. To watch the orders costs CPU too, so they are counted twice a second, not waited for.
    """
    running, count = await lab.main(), lab.size(200, BATCH)
    lab.say("the CPU time of idle processes")
    before = _cpu(running)
    await asyncio.sleep(IDLE)
    idle = {name: (now - before[name]) / IDLE for name, now in _cpu(running).items()}

    def used(start: Callable[[], Awaitable[object]], unfinished: Callable[[], Awaitable[int]], name: str) -> Measure:
        async def measure() -> dict[str, float]:
            lab.say(f"the CPU time of {count} times {name}")
            before, begin = _cpu(running), time.perf_counter()
            for _ in range(0, count, BATCH):
                await asyncio.gather(*(start() for _ in range(BATCH)))
                while await unfinished():
                    await asyncio.sleep(POLL)
            after, seconds = _cpu(running), time.perf_counter() - begin
            return {name: (after[name] - before[name] - idle[name] * seconds) / count for name in after}

        return measure

    ours, floor = await lab.turns(
        used(running.shop.place, running.unfinished_orders, "an order"),
        used(running.floor.start, running.floor.unfinished, "the floor"),
    )

    def total(turns: list[dict[str, float]], *processes: str) -> list[float]:
        return [sum(turn[name] for name in processes) for turn in turns]

    def by_process(turns: list[dict[str, float]], *processes: str) -> list[dict[str, float]]:
        return [{name: round(turn[name], 1) for name in processes} for turn in turns]

    names, base, program = ("order", "floor"), ("floor", "temporal"), ("worker", "temporal", "mongod", "api")
    whole = Comparison("CPU of an order, all processes", "ms", total(ours, *program), total(floor, *base), names, 1.25)
    whole.details.update({"order": by_process(ours, *program), "floor": by_process(floor, *base)})
    worker = Comparison("CPU of an order, worker", "ms", total(ours, "worker"), total(floor, "floor"), names, 1.2)
    return [whole, worker]


Measure = Callable[[], Awaitable[dict[str, float]]]


def _cpu(running: Main) -> dict[str, int]:
    """CPU milliseconds by process, so far."""
    return {name: cpu_time(pid) for name, pid in running.pids().items()}
