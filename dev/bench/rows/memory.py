"""The memory and the file descriptors of worker and API after many orders, against those after few."""

from dev.bench.comparison import Comparison
from dev.bench.lab import IN_FLIGHT, WARM_UP, Lab, memory_of
from dev.bench.load import callers

ORDERS = 10_000
MINUTE_OF_ORDERS = 500  # so many at a time, to show progress
TIMEOUT = 1_200  # seconds


async def growth(lab: Lab) -> list[Comparison]:
    """After 10,000 orders against after 500, in the same processes. The orders of other rows count."""
    running, wanted, few = await lab.main(), lab.size(ORDERS, 60), lab.size(WARM_UP, 20)
    while (left := wanted - await running.mongo.orders.estimated_document_count()) > 0:
        lab.say(f"{left} more orders")
        await callers(running.shop.complete, in_flight=IN_FLIGHT, count=min(left, MINUTE_OF_ORDERS), timeout=TIMEOUT)
    after = await memory_of(running, lab.rounds)
    names = (f"after {wanted:,} orders", f"after {few:,}")
    note = "Read three times, a second apart."
    found = []
    for process, title in (("worker", "worker"), ("api", "API")):
        for field, unit in (("megabytes", "MB"), ("descriptors", "descriptors")):
            many, before = (
                [float(getattr(turn[process], field)) for turn in turns] for turns in (after, lab.memory_after_warm_up)
            )
            found.append(Comparison(f"{title}, {unit}", unit, many, before, names, 1.1, note=note))
    return found
