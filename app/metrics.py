"""The worker's metrics of orders, which the SDK serves with its own at WORKER_METRICS_ADDRESS.

docs/operations.md ("Metrics") lists them; docs/make-it-yours.md ("What you can delete") says how to remove them.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING

from pymongo.errors import PyMongoError
from temporalio.common import MetricMeter
from temporalio.runtime import Runtime

from app.domain import TERMINAL, Order, OrderStatus, StepStatus

if TYPE_CHECKING:
    from app.mongo import Document
    from app.orders import OrderRepository
    from app.relay import OutboxRelay

INTERVAL = 5.0  # seconds
FINAL = list(TERMINAL)  # a list, because the status that another program wrote may be unhashable
OPEN = [status for status in OrderStatus if status not in TERMINAL]


class Instruments:
    def __init__(self, meter: MetricMeter) -> None:
        self.duration = meter.create_histogram_timedelta("order_duration", "From placed to final.", "duration")
        self.compensated = meter.create_counter("order_steps_compensated", "Compensated steps of final orders.")
        self.open = meter.create_gauge("orders_open", "Orders that are not final, at most 10,000 of each status.")
        self.oldest = meter.create_gauge_float("orders_open_oldest_seconds", "Time since the oldest was placed.")
        self.lag = meter.create_gauge_float("order_relay_lag_seconds", "Time since no order lacked its workflow.")
        self.leases = meter.create_gauge("order_relay_leases", "1 if this process starts missing workflows, else 0.")


instruments = cache(lambda: Instruments(Runtime.default().metric_meter))  # at first use: worker.py sets the runtime


def count_end(document: Document | None) -> None:
    """Count an order after a write, if this write made it final: a repeated write finds it final already."""
    status = document and document.get("status")
    if not document or status not in FINAL or status == document.get("status_before"):
        return
    order = Order.from_any_document(document)
    duration = max(order.updated_at - order.created_at, timedelta(0))  # another program may have written the times
    instruments().duration.record(duration, {"status": status})
    for record in order.steps:
        if record.status is StepStatus.COMPENSATED:
            instruments().compensated.add(1, {"step": record.step.value})


async def watch(orders: OrderRepository, relay: OutboxRelay, *, is_on: bool = True) -> None:
    """Measure open orders and the relay's lag, until cancelled.

    Only the process whose relay holds the lease does; any other reports zeros, so a sum over all processes is right.
    """
    while is_on:
        lag = relay.lag
        instruments().lag.set(lag or 0)
        instruments().leases.set(int(lag is not None))
        with suppress(PyMongoError):  # the last values stand, until the lease is lost as well
            for status in OPEN:
                count, placed_at = (0, None) if lag is None else await orders.backlog(status)
                age = (datetime.now(UTC) - placed_at).total_seconds() if placed_at else 0.0
                instruments().open.set(count, {"status": status.value})
                instruments().oldest.set(max(age, 0.0), {"status": status.value})
        await asyncio.sleep(INTERVAL)
