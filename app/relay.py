"""The outbox relay: starts the missing workflow of each open order, including orders of other programs (G1).

The orders are their own outbox. A change stream reports each insert. A sweep, at the start and every minute, compares
all open orders with the running workflows. After a moment, a suspect is read again, and its workflow is started if none
runs, so an order that the API has started costs no second start. One relay holds a lease; the others stand by. Starting
a workflow twice has no effect, so the lease saves work and protects nothing.
"""

import asyncio
import logging
import secrets
from typing import Any

from app.domain import MALFORMED, TERMINAL, Failure, why_malformed
from app.mongo import Mongo, StreamEnded, is_unavailable, next_change, upsert
from app.order_workflows import OrderWorkflows, TemporalUnavailable
from app.orders import NOW, OrderRepository

logger = logging.getLogger(__name__)

# Seconds.
GRACE = 1.0  # for the API to start the workflow of an order that it inserted
CHECK_INTERVAL = 0.5  # between two checks of the suspects that are due
SWEEP_INTERVAL = 60.0
RETRY_DELAY = 1.0
FAILED_START_DELAY = 5.0  # for an order that cannot be started, while others can
LEASE = 5.0
BATCH = 250  # suspects that are checked together
MAX_ID_LENGTH = 500  # characters


class OutboxRelay:
    def __init__(self, mongo: Mongo, orders: OrderRepository, workflows: OrderWorkflows) -> None:
        self._mongo = mongo
        self._orders = orders
        self._workflows = workflows
        self._holder = secrets.token_hex(8)  # identifies this relay in the lease
        self._renew_at = self._held_until = self._sweep_at = 0.0
        self._followed_at = 0.0  # when all changes and due suspects were last handled; 0: not by this relay
        # Orders that may have no workflow: when to check each, since when it waits, and its `_id`, of any type.
        self._suspects: dict[str, tuple[float, float, Any]] = {}

    @property
    def lag(self) -> float | None:
        """Seconds for which a change or a suspect has waited; None if another relay may hold the lease."""
        now = asyncio.get_running_loop().time()
        waiting_since = [self._followed_at, *(since for _, since, _ in self._suspects.values())]
        return now - min(waiting_since) if now < self._held_until else None

    async def run(self) -> None:
        """Run until cancelled; after any error, start again."""
        while True:
            try:
                if await self._hold_lease():
                    try:
                        await self._follow()
                    except StreamEnded:  # the collection was dropped, and its indexes with it
                        await self._mongo.create_indexes()
            except Exception as error:  # noqa: BLE001
                logger.warning("relay interrupted: %s", type(error).__name__)
            await asyncio.sleep(RETRY_DELAY)

    async def _hold_lease(self) -> bool:
        """Acquire or renew the lease if necessary; return True if this relay holds it.

        One relay at a time holds the lease, by MongoDB's clock, until it fails to renew it in time.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._renew_at:
            free = {"$or": [{"$eq": ["$holder", self._holder]}, {"$lt": ["$until", NOW]}]}  # or missing
            mine = {"_id": "relay", "holder": self._holder, "until": {"$add": [NOW, int(LEASE * 1_000)]}}
            taken = [{"$replaceWith": {"$cond": [free, mine, "$$ROOT"]}}]
            lease = await upsert(self._mongo.relay, "relay", taken)
            if lease["holder"] != self._holder:
                self._followed_at = 0.0  # the other relay follows
                return False
            self._renew_at, self._held_until = now + LEASE / 3, now + LEASE
            self._followed_at = self._followed_at or now
        return True

    async def _follow(self) -> None:
        async with self._orders.watch_inserts() as changes:
            self._sweep_at = start_at = 0.0  # after opening the stream, so that no insert is missed
            while await self._hold_lease():
                now = asyncio.get_running_loop().time()
                if now >= self._sweep_at:
                    self._sweep_at = now + SWEEP_INTERVAL
                    await self._sweep(now)
                change = await next_change(changes)  # waits for a second at most
                if change is not None:
                    self._suspect(change["documentKey"]["_id"], now)
                if now >= start_at:
                    start_at = now + CHECK_INTERVAL
                    await self._start_due(now)
                self._followed_at = now

    async def _sweep(self, now: float) -> None:
        """Add all open orders without a running workflow to the suspects; repeat signals that may be lost.

        Raises:
            TemporalUnavailable
        """
        running = {repr(order_id) for order_id in await self._workflows.running()}
        for order_id in await self._orders.open_ids():
            if repr(order_id) not in running:
                self._suspect(order_id, now)
        for order in await self._orders.undelivered():
            try:
                await self._workflows.start(order)
            except TemporalUnavailable:  # perhaps for this order only: go on with the others
                self._sweep_at = now + RETRY_DELAY

    def _suspect(self, order_id: Any, now: float) -> None:
        key = repr(order_id)
        if len(key) <= MAX_ID_LENGTH:
            self._suspects.setdefault(key, (now + GRACE, now, order_id))
        else:
            logger.error("cannot start an order: its _id has %d characters", len(key))

    async def _start_due(self, now: float) -> None:
        """Start the due suspects without a workflow. If one fails, it is retried later, and the others do not wait.

        Raises:
            TemporalUnavailable: the running workflows cannot be listed.
        """
        due = [(key, since, order_id) for key, (when, since, order_id) in self._suspects.items() if when <= now][:BATCH]
        if not due:
            return
        open_ids = await self._orders.open_ids([order_id for _, _, order_id in due])
        running = await self._workflows.running([order_id for order_id in open_ids if isinstance(order_id, str)])
        lost = {repr(order_id) for order_id in open_ids} - {repr(order_id) for order_id in running}
        for key, since, order_id in due:
            try:
                if key in lost:
                    await self._start(order_id)
                del self._suspects[key]
            except Exception as error:
                if is_unavailable(error):
                    raise
                fields = {"order_id": str(order_id)}
                logger.warning("cannot start order %s yet: %s", order_id, type(error).__name__, extra=fields)
                self._suspects[key] = now + FAILED_START_DELAY, since, order_id

    async def _start(self, order_id: Any) -> None:
        """Start the order's workflow, or mark a malformed order as failed."""
        try:
            order = await self._orders.normalize(order_id)
        except ValueError as error:
            failure = Failure(code=MALFORMED, message=why_malformed(error))
            fields = {"order_id": str(order_id)}
            logger.error("order %s is malformed: %s", order_id, failure.message, extra=fields)
            await self._orders.mark_malformed(order_id, failure)
        else:
            if order is not None and order.status not in TERMINAL:
                await self._workflows.start(order)
