"""Live progress as server-sent events, fed by one change stream of the process, however many listen.

Every event carries the whole state, so a duplicate does no harm, and a subscription that fell behind needs only the
latest. Its id is MongoDB's time of it. A `Last-Event-ID` brings all orders that changed since.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from bson import Timestamp
from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.api.auth import Caller
from app.api.dependencies import ClientsDep, OrderId, get_or_404
from app.api.problems import Invalid, NotFound, responses
from app.domain import TERMINAL, Order, Product
from app.mongo import Document, Mongo, is_unavailable
from app.orders import OrderRepository

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/orders", tags=["events"])

QUEUE = 256  # changes that a subscription may be behind before it is let go, to come back with its Last-Event-ID
OVERLAP = timedelta(seconds=30)  # by which `updated_at` may differ from MongoDB's time of the change
FIRST_LOOK = 50  # orders that a new subscription to all of them is told first


@dataclass(frozen=True)
class Event:
    """An order's state, or a product's, and when it was so."""

    name: str
    subject: str
    data: str
    at: Timestamp
    final: bool = False

    @classmethod
    def of_order(cls, order: Order, at: Timestamp) -> Event:
        return cls("order", order.order_id, order.model_dump_json(), at, order.status in TERMINAL)

    def encoded(self, *, resumable: bool = True) -> ServerSentEvent:
        """Not `resumable`: a subscription that comes back now would have to be told what it was told before."""
        event_id = f"{self.at.time}.{self.at.inc}" if resumable else None
        return ServerSentEvent(event=self.name, raw_data=self.data, id=event_id)


class Subscription:
    """To one order or to all. `since`: what it reads for itself holds all that changed until then."""

    def __init__(self, order_id: str | None, since: Timestamp) -> None:
        self.since = since
        self._order_id = order_id
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(QUEUE)

    def offer(self, event: Event) -> None:
        """Hand an event over, if it is of interest. A subscription too far behind is ended."""
        if self._order_id in {None, event.subject} and event.at > self.since:
            if self._queue.full():
                self.end()
            else:
                self._queue.put_nowait(event)

    def end(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._queue.get()) is not None:
            yield event


class Hub:
    """The change stream of this process, open while there are subscriptions."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._subscriptions: set[Subscription] = set()
        self._running: asyncio.Task[None] | None = None

    @contextmanager
    def listening(self, order_id: str | None, now: Timestamp) -> Iterator[Subscription]:
        """Listen from `now` on, MongoDB's time. A subscriber that reads the current state after it misses nothing."""
        subscription = Subscription(order_id, now)
        self._subscriptions.add(subscription)
        if self._running is None:
            self._running = asyncio.create_task(self._run(now))
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            if not self._subscriptions:
                self._close()

    def _close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            self._running = None

    async def _run(self, start: Timestamp) -> None:
        begin: Document = {"start_at_operation_time": start}
        while True:
            try:
                await self._follow(begin)
            except Exception as error:  # noqa: BLE001  (any: the subscriptions depend on this task)
                logger.warning("live events interrupted: %s", type(error).__name__)
                if not is_unavailable(error):  # it cannot resume where it was
                    break
                await asyncio.sleep(0.5)
        self._running = None
        self._close()
        for subscription in self._subscriptions:  # they come back, and are told from the orders
            subscription.end()

    async def _follow(self, begin: Document) -> None:
        """Hand over what happens, and note in `begin` how to go on after an interruption."""
        changed = {"ns.coll": {"$in": [self._mongo.orders.name, self._mongo.inventory.name]}}
        pipeline: list[Document] = [{"$match": {**changed, "fullDocument": {"$exists": True}}}]
        async with self._mongo.watch(self._mongo.database, pipeline, full_document="updateLookup", **begin) as changes:
            while True:
                change = await changes.next()
                event = _event(change) if change else None
                if event:
                    for subscription in self._subscriptions:
                        subscription.offer(event)
                begin.clear()
                begin["resume_after"] = changes.resume_token


def _event(change: Document) -> Event | None:
    document, at = change["fullDocument"], change["clusterTime"]
    if document is None:  # deleted in the meantime
        return None
    if change["ns"]["coll"] == "orders":
        return Event.of_order(Order.from_any_document(document), at)
    product = Product.from_document(document)
    return Event("stock", product.sku, product.model_dump_json(), at) if product else None


async def _last_seen(
    last_event_id: Annotated[str | None, Header(description="To be told all that changed since that event")] = None,
) -> Timestamp | None:
    if last_event_id is None:
        return None
    try:
        time, inc = last_event_id.split(".")
        return Timestamp(int(time), int(inc))
    except ValueError as error:
        raise Invalid.field("Last-Event-ID", "is not one that this API gave out") from error


async def _to_all(_: Caller, clients: ClientsDep, request: Request) -> AsyncIterator[Subscription]:
    with request.app.state.hub.listening(None, await clients.mongo.operation_time()) as subscription:
        yield subscription


async def _to_one(_: Caller, order_id: OrderId, clients: ClientsDep, request: Request) -> AsyncIterator[Subscription]:
    await get_or_404(clients.orders, order_id)
    with request.app.state.hub.listening(order_id, await clients.mongo.operation_time()) as subscription:
        yield subscription


# Both begin with listening and then read the current state, so that nothing falls in between.


@router.get("/events", response_class=EventSourceResponse, responses=responses())
async def of_all(
    last_seen: Annotated[Timestamp | None, Depends(_last_seen)],
    subscription: Annotated[Subscription, Depends(_to_all)],
    clients: ClientsDep,
) -> AsyncIterator[ServerSentEvent]:
    """One `order` event for each change of any order, one `stock` event for each change of the stock.

    Begins with the newest orders or, with a `Last-Event-ID`, with all that changed since. Of these only the last has
    an id: who leaves before it has not been told all of them.
    """
    latest: Event | None = None
    async for order in _current(clients.orders, last_seen):
        if latest:
            yield latest.encoded(resumable=False)
        latest = Event.of_order(order, subscription.since)
    if latest:
        yield latest.encoded()
    async for event in subscription.events():
        yield event.encoded()


@router.get("/{order_id}/events", response_class=EventSourceResponse, responses=responses(NotFound))
async def of_one(
    order_id: OrderId, subscription: Annotated[Subscription, Depends(_to_one)], clients: ClientsDep
) -> AsyncIterator[ServerSentEvent]:
    """One `order` event for each change, the current state first; ends when that is final."""
    event = Event.of_order(await get_or_404(clients.orders, order_id), subscription.since)
    yield event.encoded()
    if event.final:
        return
    async for event in subscription.events():
        yield event.encoded()
        if event.final:
            return


async def _current(orders: OrderRepository, last_seen: Timestamp | None) -> AsyncIterator[Order]:
    """Oldest change first."""
    if last_seen is None:
        newest, _ = await orders.page(None, None, FIRST_LOOK, None)
        for order in reversed(newest):
            yield order
    else:
        async for order in orders.changed_since(last_seen.as_datetime() - OVERLAP):
            yield order
