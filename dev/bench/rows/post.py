"""The time until a POST is answered, against the start of a workflow without API and MongoDB."""

import asyncio
from collections.abc import Awaitable, Callable

from dev.bench.comparison import Comparison
from dev.bench.lab import Lab
from dev.bench.load import Load, callers

POLL = 0.5  # seconds


async def answered(lab: Lab) -> list[Comparison]:
    """A POST is answered once the order is stored by a majority and its workflow is started.

    The workers run meanwhile, as they would in production. What was started is done before the other side's turn.
    """
    running, count = await lab.main(), lab.size(300, 20)
    found, refused = list[Comparison](), running.shop.refused
    for in_flight in (1, 50):

        def load(
            start: Callable[[], Awaitable[object]], unfinished: Callable[[], Awaitable[int]], name: str
        ) -> Callable[[], Awaitable[Load]]:
            async def measure() -> Load:
                lab.say(f"{count} times {name}, {in_flight} in flight")  # noqa: B023
                load = await callers(start, in_flight=in_flight, count=count)  # noqa: B023
                while left := await unfinished():
                    lab.say(f"waiting until {left} of them are completed")
                    await asyncio.sleep(POLL)
                return load

            return measure

        posts, starts = await lab.turns(
            load(running.shop.place, running.unfinished_orders, "POST /orders"),
            load(running.floor.start, running.floor.unfinished, "start_workflow"),
        )
        for percent in (50, 99):
            title, names = f"POST answered, {in_flight} in flight, p{percent}", ("POST", "start_workflow")
            ours, bare = ([1_000 * load.percentile(percent) for load in loads] for loads in (posts, starts))
            found.append(Comparison(title, "ms", ours, bare, names, 2))
    found[-1].details["refused under load, then repeated"] = running.shop.refused - refused
    return found
