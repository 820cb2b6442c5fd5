"""Orders over HTTP: placed in MongoDB, started, signalled and asked in Temporal, read from MongoDB."""

import asyncio
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field, field_validator

from app.api.auth import Caller
from app.api.dependencies import (
    IdempotencyKey,
    JsonOnly,
    MongoDep,
    OrderId,
    OrdersDep,
    SagasDep,
    derived_id,
    fingerprint,
)
from app.api.problems import (
    Conflict,
    FieldError,
    Invalid,
    NotFound,
    Unavailable,
    body_responses,
    responses,
)
from app.models import (
    FINAL,
    MAX_QUANTITY,
    Address,
    AddressChange,
    ApprovalDecision,
    Email,
    Identifier,
    Line,
    Model,
    Money,
    Order,
    OrderProgress,
    OrderStatus,
    Text,
    article_of,
)
from app.mongo import Document, DuplicateKeyError, Mongo
from app.orders import BadCursor, Orders
from app.sagas import SagaRefused, TemporalUnavailable

router = APIRouter(prefix="/orders", tags=["orders"])


class OrderedLine(Model):
    sku: Identifier
    quantity: Annotated[int, Field(strict=True, ge=1, le=MAX_QUANTITY)]


class NewOrder(Model):
    """What a caller says of an order. Prices are not among it: they come from the stock."""

    customer_id: Identifier
    email: Email
    payment_method: Identifier
    lines: Annotated[list[OrderedLine], Field(min_length=1, max_length=50)]
    shipping_address: Address

    @field_validator("lines")
    @classmethod
    def _no_sku_twice(cls, lines: list[OrderedLine]) -> list[OrderedLine]:
        skus = [line.sku for line in lines]
        if doubled := {sku for sku in skus if skus.count(sku) > 1}:
            raise ValueError(f"named twice: {', '.join(sorted(doubled))}")
        return lines


class Reason(Model):
    reason: Text | None = None


class Approval(Model):
    approved: Annotated[bool, Field(strict=True)]
    reason: Text | None = None


class OrderPage(BaseModel):
    items: list[Order]
    next_cursor: str | None


class OrderStatusAnswer(OrderProgress):
    """The workflow's own answer, with what Temporal adds: which attempt of the step it is, and where to look at it."""

    attempt: int | None
    workflow_url: str | None


@router.post("", status_code=202, response_model=Order, responses=body_responses(), dependencies=[JsonOnly])
async def place(
    new: NewOrder,
    response: Response,
    caller: Caller,
    mongo: MongoDep,
    sagas: SagasDep,
    idempotency_key: IdempotencyKey = None,
) -> Order:
    """Place an order. Once it is answered with 202 it is in MongoDB, and reaches a final status whatever breaks."""
    order_id = derived_id("ord", caller, idempotency_key) if idempotency_key else f"ord_{secrets.token_hex(13)}"
    order = await _placed_before(mongo, order_id, new)
    if order is None:
        document = await _document(mongo, order_id, new)
        try:
            await mongo.orders.insert_one(document)
        except DuplicateKeyError:  # the same key at the same time
            order = await _placed_before(mongo, order_id, new)
        else:
            order = Order.from_document(document)
            with suppress(TemporalUnavailable):  # then the relay starts it
                await sagas.start(order)
            response.headers["Location"] = f"/orders/{order_id}"
            return order
    assert order is not None
    response.headers["Location"] = f"/orders/{order_id}"
    response.headers["Idempotency-Replayed"] = "true"
    return order


@router.get("", responses=responses())
async def page(
    _: Caller,
    orders: OrdersDep,
    status: OrderStatus | None = None,
    customer_id: Identifier | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> OrderPage:
    """Newest first. Paging by cursor is stable while orders come in."""
    try:
        items, next_cursor = await orders.page(status, customer_id, limit, cursor)
    except BadCursor as error:
        raise Invalid.field("cursor", "is not one that this API gave out") from error
    return OrderPage(items=items, next_cursor=next_cursor)


@router.get("/{order_id}", responses=responses(NotFound))
async def read(_: Caller, order_id: OrderId, orders: OrdersDep) -> Order:
    """The order, from MongoDB: also while Temporal is away, and after it has forgotten the workflow."""
    return await _known(orders, order_id)


@router.get("/{order_id}/status", responses=responses(NotFound))
async def status(_: Caller, order_id: OrderId, orders: OrdersDep, sagas: SagasDep) -> OrderStatusAnswer:
    """The workflow's own answer, within 2 s; 503 when it cannot be had."""
    await _known(orders, order_id)
    progress, attempt = await asyncio.gather(sagas.progress(order_id), sagas.attempt(order_id))
    return OrderStatusAnswer(
        **progress.model_dump(),
        attempt=attempt,
        workflow_url=sagas.workflow_url(order_id),
    )


@router.post(
    "/{order_id}/cancel",
    status_code=202,
    responses=body_responses(NotFound, Conflict),
    dependencies=[JsonOnly],
)
async def cancel(
    _: Caller, order_id: OrderId, orders: OrdersDep, sagas: SagasDep, request: Reason | None = None
) -> Order:
    """Cancel the order: the signal. 202 says that it will be undone, 409 that it is too late."""
    order = await _known(orders, order_id)
    if order.status in FINAL:
        raise Conflict(f"the order is {order.status}")
    progress = await sagas.cancel(order, request.reason if request else None)
    if progress is not None and not progress.cancel_requested:
        raise Conflict(f"too late to cancel: the order is {progress.status}")
    order = await _known(orders, order_id)
    cancelled = order.failure is not None and order.failure.code == "cancelled"
    if progress is None and not order.cancellable and not cancelled:
        # No worker tells, and the signal may have come after the shipment. (Where the order is cancellable still, it
        # came before: a step is written here before Temporal hears of it.)
        raise Unavailable("it is not known yet whether the cancel came in time; ask again")
    return order


@router.post(
    "/{order_id}/approval",
    status_code=202,
    responses=body_responses(NotFound, Conflict),
    dependencies=[JsonOnly],
)
async def approve(_: Caller, order_id: OrderId, decision: Approval, orders: OrdersDep, sagas: SagasDep) -> Order:
    """Approve a large order, or decline it: the signal. The first answer counts."""
    order = await _known(orders, order_id)
    if order.status is not OrderStatus.AWAITING_APPROVAL:
        raise Conflict(f"the order does not wait for an approval: it is {order.status}")
    progress = await sagas.approve(order, ApprovalDecision(**decision.model_dump()))
    if progress is None:
        raise Unavailable("it is not known yet whether this answer was the first; ask again")
    if progress.cancel_requested:
        raise Conflict("the order was cancelled before")
    if progress.approved is not decision.approved:
        raise Conflict("it was decided otherwise before")
    return await _known(orders, order_id)


@router.put("/{order_id}/shipping-address", responses=body_responses(NotFound, Conflict), dependencies=[JsonOnly])
async def change_shipping_address(
    _: Caller, order_id: OrderId, address: Address, mongo: MongoDep, orders: OrdersDep, sagas: SagasDep
) -> Order:
    """Change where the order goes, until shipping begins. The saga decides; the address stays out of Temporal."""
    order = await _known(orders, order_id)
    if order.status in FINAL:
        raise Conflict(f"the order is {order.status}")
    change = AddressChange(order_id=order_id, change_id=secrets.token_hex(13))
    await orders.propose_address(change, address)
    try:
        await sagas.change_address(order, change)
    except SagaRefused as error:
        raise Conflict(str(error)) from error
    return await _known(orders, order_id)


async def _known(orders: Orders, order_id: str) -> Order:
    order = await orders.find(order_id)
    if order is None:
        raise NotFound(f"there is no order {order_id}")
    return order


async def _placed_before(mongo: Mongo, order_id: str, new: NewOrder) -> Order | None:
    """The order of this id, if there is one.

    Raises:
        Invalid: it was made of another body.
    """
    document = await mongo.orders.find_one({"_id": order_id})
    if document is None:
        return None
    if document.get("fingerprint") != fingerprint(new):
        raise Invalid.field("Idempotency-Key", "was used for another order")
    return Order.from_any_document(document)


async def _document(mongo: Mongo, order_id: str, new: NewOrder) -> Document:
    """The order as it goes into MongoDB, with the prices of this moment.

    Raises:
        Invalid: an article is unknown, or the prices are in several currencies.
    """
    found = mongo.inventory.find({"_id": {"$in": [line.sku for line in new.lines]}})
    articles = {article.sku: article async for document in found if (article := article_of(document))}
    unknown = [
        FieldError(field=f"lines.{index}.sku", message="there is no such article")
        for index, line in enumerate(new.lines)
        if line.sku not in articles
    ]
    if unknown:
        raise Invalid("; ".join(f"{error.field}: {error.message}" for error in unknown), unknown)
    currencies = {article.unit_price.currency for article in articles.values()}
    if len(currencies) > 1:
        raise Invalid.field("lines", f"prices in several currencies: {', '.join(sorted(currencies))}")

    lines = [
        Line(
            sku=line.sku,
            name=articles[line.sku].name,
            quantity=line.quantity,
            unit_price=articles[line.sku].unit_price,
        )
        for line in new.lines
    ]
    total = Money(amount=sum(line.quantity * line.unit_price.amount for line in lines), currency=currencies.pop())
    now = datetime.now(UTC)
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)  # as MongoDB keeps it
    return {
        "_id": order_id,
        "customer_id": new.customer_id,
        "email": new.email,
        "payment_method": new.payment_method,
        "shipping_address": new.shipping_address.model_dump(),
        "lines": [line.model_dump() for line in lines],
        "total": total.model_dump(),
        "status": OrderStatus.PLACED.value,
        "created_at": now,
        "updated_at": now,
        "fingerprint": fingerprint(new),
    }
