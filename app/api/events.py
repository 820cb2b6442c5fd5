"""Live progress as server-sent events. A `Last-Event-ID` brings all orders that changed since, within an hour."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import StreamingResponse

from app.api.auth import OrderReader
from app.api.dependencies import ClientsDep, OrderId
from app.api.hub import Messages, each
from app.api.problems import responses
from app.api.route import ApiRoute
from app.validation import EVENT_ID

router = APIRouter(prefix="/orders", tags=["events"], route_class=ApiRoute)

MAX_AGE = timedelta(hours=1)  # of a Last-Event-ID: an older one would bring a large part of the orders
OVERLAP = timedelta(seconds=30)  # the maximum difference of `updated_at` and MongoDB's time of the change
HEADERS = {"X-Accel-Buffering": "no"}  # nginx passes on each event at once
INITIAL_ORDERS = 50  # sent first to a new subscription to all orders


class EventStream(StreamingResponse):
    """Sends events as they were encoded, once for all; FastAPI's own response would encode them for each listener."""

    media_type = "text/event-stream"


# Both subscribe first and then read the current state, so that no change is missed.


async def _all_orders(
    caller: OrderReader,
    clients: ClientsDep,
    request: Request,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", pattern=EVENT_ID)] = None,
) -> AsyncIterator[Messages]:
    async with request.app.state.hub.subscribe(None, caller) as subscription:
        last_seen = datetime.fromtimestamp(int((last_event_id or "0").split(".")[0]), UTC)
        if abs(subscription.since.as_datetime() - last_seen) < MAX_AGE:
            yield subscription.messages(clients.orders.changed_since(last_seen - OVERLAP))
        else:
            # In no variable: it would keep them as long as the stream lasts.
            current = each(reversed((await clients.orders.page((), None, INITIAL_ORDERS, None))[0]))
            yield subscription.messages(current, reset=last_event_id is not None)


async def _one_order(
    caller: OrderReader, order_id: OrderId, clients: ClientsDep, request: Request
) -> AsyncIterator[Messages]:
    await clients.orders.show(order_id)  # 404, before a change stream is opened
    async with request.app.state.hub.subscribe(order_id, caller) as subscription:
        yield subscription.messages(each([await clients.orders.show(order_id)]))


@router.get("/events", response_class=EventStream, responses=responses("too-many-streams"))
async def stream_all_order_events(messages: Annotated[Messages, Depends(_all_orders)]) -> EventStream:
    """Send one `order` event for each change of an order, and one `stock` event for each change of a product.

    Begins with the newest orders or, with a `Last-Event-ID`, with all that changed since. Only the last of these has an
    id: a client that leaves before it has not received all of them. If the id is more than an hour old, a `reset` event
    comes first: forget all orders; the newest follow. Products need `inventory:read`.
    """
    return EventStream(messages, headers=HEADERS)


@router.get("/{order_id}/events", response_class=EventStream, responses=responses("not-found", "too-many-streams"))
async def stream_order_events(messages: Annotated[Messages, Depends(_one_order)]) -> EventStream:
    """Send the current state, then one `order` event for each change; ends when the order is final."""
    return EventStream(messages, headers=HEADERS)
