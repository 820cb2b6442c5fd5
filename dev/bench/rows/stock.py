"""Contention on one product: group commit against a transaction for each order."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from app.mongo import Mongo
from dev.bench.comparison import Comparison
from dev.bench.helper import Helper, helper
from dev.bench.lab import Lab
from dev.bench.reserver import SKU
from dev.servers import ServerError

CALLERS = 64
DATABASE = "hot_stock"


async def one_product(lab: Lab) -> list[Comparison]:
    """Reservations per second by 64 concurrent callers, in one process and in two.

    Raises:
        ServerError: some stock is left or oversold, so the rates are meaningless.
    """
    running = await lab.main()
    mongo = Mongo(running.stack.mongodb_uri, DATABASE)
    try:
        async with AsyncExitStack() as resources:
            processes = (helper("reserver", running.stack.mongodb_uri, DATABASE) for _ in range(2))
            reservers = [await resources.enter_async_context(process) for process in processes]
            await _rate(reservers, "grouped", 4 * CALLERS)  # opens connections and loads code
            found = [await _compare(lab, reservers[:1]), await _compare(lab, reservers)]
        product = await mongo.inventory.find_one({"_id": SKU})
        if product is None or product["available"] != 0:
            raise ServerError(f"expected no stock to be left: {product}")
        return found
    finally:
        await mongo.client.drop_database(DATABASE)
        mongo.close()


async def _compare(lab: Lab, reservers: list[Helper]) -> Comparison:
    text = "1 process" if len(reservers) == 1 else f"{len(reservers)} processes"

    def rate(way: str, count: int) -> Callable[[], Awaitable[float]]:
        async def measure() -> float:
            lab.say(f"{CALLERS} callers in {text} reserve one product, {way}")
            return await _rate(reservers, way, count)

        return measure

    grouped, plain = await lab.turns(rate("grouped", lab.size(1_280, 256)), rate("plain", lab.size(128, 64)))
    title, names = f"one product, {CALLERS} callers in {text}", ("group commit", "a transaction each")
    note = "No stock is left at the end, and none is oversold."
    return Comparison(title, "reservations/s", grouped, plain, names, 20, at_least=True, note=note)


async def _rate(reservers: list[Helper], way: str, count: int) -> float:
    share, in_flight = count // len(reservers), CALLERS // len(reservers)
    times = await asyncio.gather(*(reserver.ask(way, share, in_flight) for reserver in reservers))
    seconds: float = max(end for _, end in times) - min(begin for begin, _ in times)
    return share * len(reservers) / seconds
