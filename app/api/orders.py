"""Orders over HTTP. MongoDB decides each request before Temporal is called, so the answer is final."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Body, Query, Request, Response
from pydantic import BaseModel, Field

from app import domain, logs
from app.api.auth import ANYONE, Approver, OrderReader, OrderWriter
from app.api.dependencies import Clients, ClientsDep, IdempotencyKey, Order, OrderId, document_id, fingerprint
from app.api.hub import OutcomeDep
from app.api.problems import BODY_PROBLEMS, Problem, in_body, invalid, responses
from app.api.route import ApiRoute, link_to_next
from app.attempts import PendingActivity
from app.domain import TERMINAL, Address, Identifier, Model, NewOrder, OrderStatus, Text
from app.messages import OrderProgress
from app.mongo import NotReplicated
from app.order_workflows import START_TIMEOUT, TemporalUnavailable
from app.orders import MAX_COUNT
from app.validation import CURSOR

router = APIRouter(prefix="/orders", tags=["orders"], route_class=ApiRoute)

CHANGE_PROBLEMS = ("not-found", "temporal-unavailable", *BODY_PROBLEMS)
APPROVAL_PROBLEMS = ("own-order", "not-awaiting-approval", "already-decided")


class Reason(Model):
    reason: Text | None = None


class Approval(Reason):
    approved: Annotated[bool, Field(strict=True)]


class OrderPage(BaseModel):
    items: list[Order]
    next_cursor: str | None


class OrderCounts(Model):
    """The number of orders in each status; `maximum` means so many or more."""

    by_status: dict[OrderStatus, int]
    maximum: int = MAX_COUNT


class OrderStatusAnswer(OrderProgress):
    """The workflow's own answer, its pending activities, and a link to the workflow in Temporal's Web UI."""

    activities: list[PendingActivity]
    workflow_url: str | None


@router.post("", status_code=202, responses=responses("unknown-product", "idempotency-key-reused", *BODY_PROBLEMS))
async def place_order(
    new: NewOrder,
    response: Response,
    caller: OrderWriter,
    clients: ClientsDep,
    outcome: OutcomeDep,
    background: BackgroundTasks,
    key: IdempotencyKey = None,
) -> Order:
    """Place an order. After a 202, it is stored and reaches a final status despite any failure."""
    if caller.customer not in (None, new.customer_id):
        raise invalid(in_body("foreign_customer", "must be your own customer id", "customer_id"))
    orders, body = clients.orders, fingerprint(new)
    order_id = document_id("ord", caller.name, key)
    logs.order_id.set(order_id)
    response.headers["Location"] = f"/orders/{order_id}"
    try:
        order = await _add(clients, order_id, new, body, None if caller is ANYONE else caller.name)
    except Problem:  # the products may have changed since an earlier request with the same key
        order = await orders.placed(order_id, body)
        if order is None:
            raise
    else:
        if order is not None:
            if outcome.prefer or clients.starts_after_answer.locked():
                await _start(clients, order)
            else:
                background.add_task(_start_after_answer, clients, order)
            return await outcome.of(order)
        # An earlier or a concurrent request with the same key.
        order = await orders.placed(order_id, body) or await orders.placed(order_id, body, durable=True)
        if order is None:
            raise NotReplicated
    response.headers["Idempotency-Replayed"] = "true"
    return await outcome.of(order)


async def _add(clients: Clients, order_id: str, new: NewOrder, body: str, placed_by: str | None) -> domain.Order | None:
    """Store the order with the current prices; return None if its id is already taken.

    Raises:
        Problem: 422; a product is unknown, or the prices are not in one currency.
    """
    known = await clients.products.by_sku(line.sku for line in new.lines)
    unknown = [index for index, line in enumerate(new.lines) if line.sku not in known]
    if unknown:
        errors = [in_body("unknown_product", "no such product", "lines", index, "sku") for index in unknown]
        raise invalid(*errors, kind="unknown-product")
    try:
        return await clients.orders.add(order_id, new, known, body, placed_by)
    except ValueError as error:
        raise invalid(in_body("value_error", str(error), "lines")) from error


async def _start(clients: Clients, order: domain.Order) -> None:
    with suppress(TemporalUnavailable):  # the relay starts it then
        await clients.workflows.start(order, START_TIMEOUT)


async def _start_after_answer(clients: Clients, order: domain.Order) -> None:
    async with clients.starts_after_answer:
        await _start(clients, order)


@router.get("", responses=responses())
async def list_orders(
    _: OrderReader,
    clients: ClientsDep,
    request: Request,
    response: Response,
    status: Annotated[list[OrderStatus], Query(description="may be given several times")] = [],  # noqa: B006
    customer_id: Identifier | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=CURSOR)] = None,
) -> OrderPage:
    """List orders, newest first. Paging by cursor is stable while orders come in."""
    items, next_cursor = await clients.orders.page(status, customer_id, limit, cursor)
    link_to_next(request, response, next_cursor)
    return OrderPage(items=[clients.shown(order) for order in items], next_cursor=next_cursor)


@router.get("/counts", responses=responses())
async def count_orders(_: OrderReader, clients: ClientsDep) -> OrderCounts:
    """Count your orders by status."""
    return OrderCounts(by_status=await clients.orders.counts())


@router.get("/{order_id}", responses=responses("not-found"))
async def get_order(_: OrderReader, order_id: OrderId, clients: ClientsDep) -> Order:
    """Return the order from MongoDB, even while Temporal is unavailable and after it has deleted the workflow."""
    return clients.shown(await clients.orders.show(order_id))


@router.get("/{order_id}/status", responses=responses("not-found", "temporal-unavailable", "no-worker"))
async def get_order_status(_: OrderReader, order_id: OrderId, clients: ClientsDep) -> OrderStatusAnswer:
    """Return the workflow's own answer within 2 s, or 503 if it is unavailable."""
    order = await clients.orders.show(order_id)
    progress, activities = await clients.workflows.progress(order)
    url = clients.workflows.workflow_url(order_id)
    return OrderStatusAnswer(**progress.model_dump(), activities=activities, workflow_url=url)


@router.post("/{order_id}/cancel", status_code=202, responses=responses(*CHANGE_PROBLEMS, "too-late-to-cancel"))
async def cancel_order(
    caller: OrderWriter,
    order_id: OrderId,
    clients: ClientsDep,
    outcome: OutcomeDep,
    why: Annotated[Reason, Body(default_factory=Reason)],
) -> Order:
    """Cancel the order. After a 202 it will be compensated; a 409 means that it is shipped or final."""
    order = await clients.orders.show(order_id)
    if order.status not in TERMINAL:
        order = await clients.orders.request_cancellation(order_id, why.reason, caller.name)
    if order.cancellation is None or order.status in TERMINAL:
        raise Problem("too-late-to-cancel", f"cannot cancel: the order is {order.status}")
    await clients.workflows.start(order)
    return await outcome.of(order)


@router.post("/{order_id}/approval", status_code=202, responses=responses(*CHANGE_PROBLEMS, *APPROVAL_PROBLEMS))
async def decide_approval(caller: Approver, order_id: OrderId, decision: Approval, clients: ClientsDep) -> Order:
    """Approve a large order, or reject it, unless you placed it. The first decision counts."""
    order = await clients.orders.show(order_id)
    if order.placed_by == caller.name:
        raise Problem("own-order", "cannot decide: you placed this order, so another caller must decide")
    order = await clients.orders.decide_approval(order_id, decision.approved, decision.reason, caller.name)
    if order.status is not OrderStatus.AWAITING_APPROVAL or order.cancellation:
        state = "cancelled" if order.cancellation else order.status
        raise Problem("not-awaiting-approval", f"cannot decide: the order does not await approval; it is {state}")
    if order.approval is None:
        raise NotReplicated
    if order.approval.approved is not decision.approved:
        raise Problem("already-decided", "cannot decide: a different decision is already recorded")
    await clients.workflows.start(order)
    return clients.shown(order)


@router.put(
    "/{order_id}/shipping-address", responses=responses(*CHANGE_PROBLEMS, "address-not-changeable", "no-worker")
)
async def change_shipping_address(_: OrderWriter, order_id: OrderId, address: Address, clients: ClientsDep) -> Order:
    """Change the shipping address until shipping begins. The workflow decides; the address stays out of Temporal."""
    order = await clients.orders.show(order_id)
    change = await clients.orders.propose_address(order_id, address)
    applied = change is not None and await clients.workflows.change_address(order, change)
    order = await clients.orders.show(order_id)
    if not applied:
        state = "cancelled" if order.cancellation else order.status
        raise Problem("address-not-changeable", f"cannot change the address: the order is {state}")
    return clients.shown(order)
