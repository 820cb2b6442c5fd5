"""Live progress as server-sent events, fed by one change stream of the process, however many listen.

Every event carries the whole state, so a duplicate does no harm, and a subscription that fell behind needs only the
latest. Its id is MongoDB's time of it. A `Last-Event-ID` brings all orders that changed since.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated

from bson import Timestamp
from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.api.auth import Caller
from app.api.dependencies import ClientsDep, OrderId
from app.api.problems import responses
from app.api.route import ApiRoute
from app.domain import TERMINAL, Order, Product
from app.mongo import Document, Mongo, is_unavailable, next_change
from app.validation import EVENT_ID

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/orders", tags=["events"], route_class=ApiRoute)

Messages = AsyncIterator[ServerSentEvent]

QUEUE = 256  # changes that a subscription may be behind before it is let go, to come back with its Last-Event-ID
OVERLAP = timedelta(seconds=30)  # by which `updated_at` may differ from MongoDB's time of the change
COLLECTIONS = {"$in": ["orders", "inventory"]}
PIPELINE: list[Document] = [{"$match": {"ns.coll": COLLECTIONS, "fullDocument": {"$exists": True}}}]
FIRST_LOOK = 50  # orders that a new subscription to all of them is told first


@dataclass(frozen=True)
class Event:
    """The state of an order or a product, and MongoDB's time of it."""

    state: Order | Product
    at: Timestamp

    @cached_property
    def message(self) -> ServerSentEvent:
        name = "order" if isinstance(self.state, Order) else "stock"
        return ServerSentEvent(event=name, raw_data=self.state.model_dump_json(), id=f"{self.at.time}.{self.at.inc}")


class Subscription:
    """To one order or to all. `since`: what it reads for itself holds all that changed until then."""

    def __init__(self, order_id: str | None, since: Timestamp) -> None:
        self.order_id, self.since = order_id, since
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(QUEUE)

    def offer(self, event: Event) -> None:
        """Hand an event over, if it is of interest. A subscription too far behind is ended."""
        of_interest = self.order_id is None or self.order_id == getattr(event.state, "order_id", None)
        if of_interest and event.at > self.since:
            if self._queue.full():
                self.end()
            else:
                self._queue.put_nowait(event)

    def end(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    async def messages(self, current: AsyncIterator[Order]) -> Messages:
        """The current state, then the changes; of one order, until it is final.

        Of the current orders only the last has an id: a subscriber that leaves before it has not been told all of them.
        """
        event: Event | None = None
        async for order in current:
            if event:
                yield event.message.model_copy(update={"id": None})
            event = Event(order, self.since)
        event = event or await self._queue.get()
        while event:
            yield event.message
            if self.order_id and isinstance(event.state, Order) and event.state.status in TERMINAL:
                break
            event = await self._queue.get()


class Hub:
    """The change stream of this process, open while there are subscriptions."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._subscriptions: set[Subscription] = set()
        self._running: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def listening(self, order_id: str | None) -> AsyncIterator[Subscription]:
        """Listen from now on, by MongoDB's time. A subscriber that then reads the current state misses nothing."""
        subscription = Subscription(order_id, await self._mongo.ping())
        self._subscriptions.add(subscription)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(subscription.since))
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            if not self._subscriptions:
                self._running.cancel()
                self._running = None

    async def _run(self, start: Timestamp) -> None:
        begin: Document = {"start_at_operation_time": start, "full_document": "updateLookup"}
        while True:
            try:
                async with self._mongo.watch(self._mongo.database, PIPELINE, **begin) as changes:
                    while True:
                        self._hand_over(await next_change(changes))
                        begin = {"resume_after": changes.resume_token, "full_document": "updateLookup"}
            except Exception as error:  # noqa: BLE001  (any: the subscriptions depend on this task)
                logger.warning("live events interrupted: %s", type(error).__name__)
                if not is_unavailable(error):  # it cannot resume where it was
                    break
                await asyncio.sleep(0.5)
        for subscription in self._subscriptions:  # they come back, and are told from the orders
            subscription.end()

    def _hand_over(self, change: Document | None) -> None:
        if not change or not change["fullDocument"]:  # none at the moment, or deleted in the meantime
            return
        read = Order.from_any_document if change["ns"]["coll"] == "orders" else Product.from_document
        if state := read(change["fullDocument"]):
            event = Event(state, change["clusterTime"])
            for subscription in self._subscriptions:
                subscription.offer(event)


async def _each(orders: Iterable[Order]) -> AsyncIterator[Order]:
    for order in orders:
        yield order


# Both begin with listening and then read the current state, so that nothing falls in between.


async def _of_all(
    _: Caller,
    clients: ClientsDep,
    request: Request,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", pattern=EVENT_ID)] = None,
) -> AsyncIterator[Messages]:
    async with request.app.state.hub.listening(None) as subscription:
        if last_event_id is None:
            newest, _next = await clients.orders.page(None, None, FIRST_LOOK, None)
            yield subscription.messages(_each(reversed(newest)))
        else:
            last_seen = datetime.fromtimestamp(int(last_event_id.split(".")[0]), UTC)
            yield subscription.messages(clients.orders.changed_since(last_seen - OVERLAP))


async def _of_one(_: Caller, order_id: OrderId, clients: ClientsDep, request: Request) -> AsyncIterator[Messages]:
    await clients.orders.show(order_id)  # before a change stream is opened for it
    async with request.app.state.hub.listening(order_id) as subscription:
        yield subscription.messages(_each([await clients.orders.show(order_id)]))


@router.get("/events", response_class=EventSourceResponse, responses=responses())
async def of_all(messages: Annotated[Messages, Depends(_of_all)]) -> Messages:
    """One `order` event for each change of any order, one `stock` event for each change of the stock.

    Begins with the newest orders or, with a `Last-Event-ID`, with all that changed since. Of these only the last has
    an id: who leaves before it has not been told all of them.
    """
    async for message in messages:
        yield message


@router.get("/{order_id}/events", response_class=EventSourceResponse, responses=responses(404))
async def of_one(messages: Annotated[Messages, Depends(_of_one)]) -> Messages:
    """One `order` event for each change, the current state first; ends when that is final."""
    async for message in messages:
        yield message
