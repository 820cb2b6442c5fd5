"""Live changes: one change stream per process feeds all subscriptions, and each request that waits for an outcome.

Every event carries the whole state, so a duplicate is harmless, and a subscription that fell behind needs only the
latest. The event's id is MongoDB's time of the change. A caller receives only what it may read, until its token
expires.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from bson import Timestamp
from fastapi import Depends, Header, Request, Response
from fastapi.sse import format_sse_event
from pymongo.errors import PyMongoError

from app import domain
from app.api.auth import AnyCaller, Caller
from app.api.dependencies import Clients, ClientsDep, Order
from app.api.problems import Problem
from app.domain import TERMINAL, Product
from app.mongo import Document, is_unavailable, next_change
from app.settings import Scope

logger = logging.getLogger(__name__)


Messages = AsyncIterator[bytes]

MAX_STREAMS = 2_000  # of this process; each takes a file descriptor and about 100 KB
MAX_STREAMS_OF_CALLER = 1_000
MAX_STREAMS_OF_CUSTOMER = 20  # of a caller for one customer: it must not delay the events of others
DAY = 86_400.0  # seconds, after which a stream ends in any case
SLICE, BREAK = 32, 0.002  # so many subscriptions receive an event at once; then, for so many seconds, others run
PING_INTERVAL = 15  # seconds without an event, after which a comment keeps proxies from closing the connection
MAX_QUEUED = 256  # events; a subscription further behind is ended, and reconnects with its Last-Event-ID
COLLECTIONS = {"$in": ["orders", "inventory"]}
PIPELINE: list[Document] = [{"$match": {"ns.coll": COLLECTIONS, "fullDocument": {"$exists": True}}}]
MAX_WAIT = 30  # seconds that a client may prefer to wait for a final status
PREFER = f"`wait=N` answers when the order is final, or after N seconds (1 to {MAX_WAIT}) with its latest state."


@dataclass(frozen=True)
class Event:
    """The state of an order or a product, MongoDB's time of it, and the customer as stored, even if it is malformed."""

    state: Order | Product
    at: Timestamp
    customer: Any = None

    @cached_property
    def message(self) -> bytes:  # encoded once for all subscribers
        return self.encode(f"{self.at.time}.{self.at.inc}")

    def encode(self, event_id: str | None = None) -> bytes:
        name = "order" if isinstance(self.state, Order) else "stock"
        return format_sse_event(event=name, data_str=self.state.model_dump_json(), id=event_id)


class Subscription:
    """To one order or to all. Changes up to `since` are in the current state, which the subscriber reads itself."""

    def __init__(self, order_id: str | None, caller: Caller, shown: Callable[[domain.Order], Order]) -> None:
        self.order_id, self.since = order_id, Timestamp(0, 0)
        self._caller, self._shown = caller, shown
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(MAX_QUEUED)
        self._has_ended = False

    def _accepts(self, event: Event) -> bool:
        if isinstance(event.state, Product):
            return self.order_id is None and Scope.INVENTORY_READ in self._caller.scopes
        return self.order_id in {None, event.state.order_id} and self._caller.customer in (None, event.customer)

    def offer(self, event: Event) -> bool:
        """Queue an event, if the subscriber may receive it. A subscription that is too far behind is ended."""
        is_accepted = not self._has_ended and event.at > self.since and self._accepts(event)
        if is_accepted and self._queue.full():
            self.end()
        elif is_accepted:
            self._queue.put_nowait(event)
        return is_accepted

    def end(self) -> None:
        self._has_ended = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    async def messages(self, current: AsyncIterator[domain.Order], *, reset: bool = False) -> Messages:
        """Yield the current state, then the changes; for one order, until it is final.

        Only the last of the current orders has an id: a subscriber that leaves before it has not received all of them.
        """
        if reset:
            yield format_sse_event(event="reset", data_str="{}")
        event: Event | None = None
        async for order in current:
            if self._has_ended:
                return
            if event:
                yield event.encode()
            event = Event(self._shown(order), self.since)
        while True:
            if event:
                yield event.message
                if self.order_id and isinstance(event.state, Order) and event.state.status in TERMINAL:
                    break
            try:
                async with asyncio.timeout(PING_INTERVAL):
                    event = await self._queue.get()
            except TimeoutError:
                yield b": ping\n\n"
                event = None
            else:
                if event is None:
                    break


class Hub:
    """The change stream of this process, open while there are subscriptions."""

    def __init__(self, clients: Clients) -> None:
        self._mongo, self._shown = clients.mongo, clients.shown
        self._subscriptions: set[Subscription] = set()
        self._streams = Counter[str]()  # by the caller's name
        self._running: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def subscribe(self, order_id: str | None, caller: Caller) -> AsyncIterator[Subscription]:
        """Subscribe from now on, by MongoDB's time. A subscriber that then reads the current state misses nothing.

        Raises:
            Problem: 503; there are too many streams.
        """
        limit = MAX_STREAMS_OF_CALLER if caller.customer is None else MAX_STREAMS_OF_CUSTOMER
        if self._streams[caller.name] >= limit or self._streams.total() >= MAX_STREAMS:
            raise Problem("too-many-streams", "cannot open another event stream: close some, or try again later")
        subscription = Subscription(order_id, caller, self._shown)
        lasts = DAY if caller.expires_at is None else min(DAY, caller.expires_at - time.time())
        expiry = asyncio.get_running_loop().call_later(lasts, subscription.end)
        self._streams[caller.name] += 1
        try:
            subscription.since = await self._mongo.ping()
            self._subscriptions.add(subscription)
            if self._running is None or self._running.done():
                # In a context of its own, without the id of this request.
                self._running = asyncio.create_task(self._run(subscription.since), context=Context())
            yield subscription
        finally:
            expiry.cancel()
            self._streams -= Counter([caller.name])
            self._subscriptions.discard(subscription)
            if self._running is not None and not self._subscriptions:
                self._running.cancel()
                self._running = None

    async def _run(self, start: Timestamp) -> None:
        begin: Document = {"start_at_operation_time": start, "full_document": "updateLookup"}
        while True:
            try:
                async with self._mongo.watch(self._mongo.database, PIPELINE, **begin) as changes:
                    while True:
                        await self._dispatch(await next_change(changes))
                        begin = {"resume_after": changes.resume_token, "full_document": "updateLookup"}
            except Exception as error:  # noqa: BLE001  (any: the subscriptions depend on this task)
                logger.warning("live events interrupted: %s", type(error).__name__)
                if not is_unavailable(error):  # the stream cannot resume
                    break
                await asyncio.sleep(0.5)
        for subscription in self._subscriptions:  # they reconnect, and read the orders again
            subscription.end()

    async def _dispatch(self, change: Document | None) -> None:
        if not change or not change["fullDocument"]:  # none at the moment, or deleted in the meantime
            return
        document, is_order = change["fullDocument"], change["ns"]["coll"] == "orders"
        state = self._shown(domain.Order.from_any_document(document)) if is_order else Product.from_document(document)
        if state:
            event = Event(state, change["clusterTime"], document.get("customer_id"))
            accepted = 0
            for subscription in list(self._subscriptions):
                accepted += subscription.offer(event)
                if accepted == SLICE:
                    accepted = 0
                    await asyncio.sleep(BREAK)


async def each(orders: Iterable[domain.Order]) -> AsyncIterator[domain.Order]:
    for order in orders:
        yield order


@dataclass
class Outcome:
    """Shows an order after a request that changes it; with `Prefer: wait=N` (RFC 7240), when it is final."""

    request: Request
    response: Response
    caller: Caller
    clients: Clients
    prefer: str | None

    async def of(self, order: domain.Order) -> Order:
        """Return the order as it is when it is final, or else after the time that the client prefers to wait."""
        preferred = re.search(r"(?:^|[,;])\s*wait\s*=\s*\"?0*([1-9][0-9]{0,8})", self.prefer or "", re.IGNORECASE)
        if preferred and order.status not in TERMINAL:
            wait, state, orders = min(int(preferred[1]), MAX_WAIT), self.request.state, self.clients.orders
            state.deadline.reschedule(state.deadline.when() + wait)
            state.leave()
            # The request has taken effect in any case. The server cancels when it stops.
            with suppress(Problem, PyMongoError, asyncio.CancelledError):
                async with self.request.app.state.hub.subscribe(order.order_id, self.caller) as subscription:
                    self.response.headers["Preference-Applied"] = f"wait={wait}"
                    left = asyncio.ensure_future(self.request.receive())  # after the body: the client has left
                    left.add_done_callback(lambda _: subscription.end())
                    with suppress(TimeoutError):
                        async with asyncio.timeout(wait):
                            async for _ in subscription.messages(each([await orders.show(order.order_id)])):
                                pass
                order = await orders.show(order.order_id)
        return self.clients.shown(order)


async def _outcome(
    request: Request,
    response: Response,
    caller: AnyCaller,
    clients: ClientsDep,
    prefer: Annotated[str | None, Header(alias="Prefer", description=PREFER)] = None,
) -> Outcome:  # FastAPI would call the class itself on a thread
    return Outcome(request, response, caller, clients, prefer)


OutcomeDep = Annotated[Outcome, Depends(_outcome)]
