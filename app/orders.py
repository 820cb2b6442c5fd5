"""The order document: what is read of it, and the guarded writes by which a saga moves it.

Activities write the status as part of their own work. Each write here can be repeated, and none moves an order
backwards: a step that is recorded stays recorded, a status follows only from those that `MAY_FOLLOW` names.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, TypeAdapter
from pymongo import ASCENDING, DESCENDING, ReturnDocument, UpdateOne

from app.models import (
    FINAL,
    MAY_FOLLOW,
    Address,
    AddressChange,
    Failure,
    Order,
    OrderStatus,
    StepName,
    StepStatus,
)

if TYPE_CHECKING:
    from app.mongo import Document, Mongo, Session

Pipeline = list[dict[str, Any]]

# Every write is an update pipeline, so that one atomic update can both look and write, on the server's clock.
NOW = "$$NOW"
FIRST_INSTANT, LAST_INSTANT = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
ADDED: Document = {"status": OrderStatus.PLACED.value, "created_at": NOW, "updated_at": NOW}


class BadCursor(ValueError):
    """A cursor that was not given out by `Orders.page`."""


class Orders:
    def __init__(self, mongo: Mongo) -> None:
        self._orders = mongo.orders
        self._address_changes = mongo.address_changes

    async def find(self, order_id: str) -> Order | None:
        """The order, for display: a malformed one is shown as failed."""
        document = await self._orders.find_one({"_id": order_id})
        return None if document is None else Order.from_any_document(document)

    async def page(
        self, status: OrderStatus | None, customer_id: str | None, limit: int, cursor: str | None
    ) -> tuple[list[Order], str | None]:
        """Some orders, newest first, and the cursor of those that come after them.

        Raises:
            BadCursor: the cursor is not one of ours.
        """
        query: Document = {}
        if status is not None:
            query["status"] = status.value
        if customer_id is not None:
            query["customer_id"] = customer_id
        if cursor is not None:
            created_at, order_id = _read_cursor(cursor)
            query["created_at"] = {"$lte": created_at}
            query["$or"] = [{"created_at": {"$lt": created_at}}, {"_id": {"$lt": order_id}}]
        found = self._orders.find(query).sort([("created_at", DESCENDING), ("_id", DESCENDING)]).limit(limit + 1)
        documents = await found.to_list(None)
        more = len(documents) > limit
        orders = [Order.from_any_document(document) for document in documents[:limit]]
        return orders, _cursor(orders[-1]) if more else None

    async def changed_since(self, then: datetime) -> AsyncIterator[Order]:
        """Oldest change first."""
        async for document in self._orders.find({"updated_at": {"$gte": then}}).sort("updated_at", ASCENDING):
            yield Order.from_any_document(document)

    async def propose_address(self, change: AddressChange, address: Address) -> None:
        """Put a new address down for the saga to take over; one that it refuses is forgotten after an hour."""
        await self._address_changes.insert_one(
            {
                "_id": change.change_id,
                "order_id": change.order_id,
                "address": address.model_dump(),
                "expires_at": datetime.now(UTC) + timedelta(hours=1),
            }
        )

    async def take_over_address(self, change: AddressChange) -> None:
        """Put the address that waits under this change onto the order, unless the carrier was told another already."""
        waiting = await self._address_changes.find_one({"_id": change.change_id, "order_id": change.order_id})
        if waiting is not None:
            address = Address.model_validate(waiting["address"])
            fields = {"shipping_address": {"$literal": address.model_dump()}, "updated_at": NOW}
            not_settled = {"_id": change.order_id, "address_settled": {"$ne": True}}
            await self._orders.update_one(not_settled, [{"$set": fields}])

    async def settle_address(self, order_id: str) -> Order:
        """As `require`, and a fence: no change of address that comes later, however late, is put onto the order."""
        document = await self._orders.find_one_and_update(
            {"_id": order_id}, {"$set": {"address_settled": True}}, return_document=ReturnDocument.AFTER
        )
        return _required(order_id, document)

    async def require(self, order_id: str) -> Order:
        """The order, for a saga, which does not run without one.

        Raises:
            LookupError: there is no such order; the attempt is retried, in case MongoDB is being restored.
            ValueError (of which pydantic.ValidationError is one): the document is malformed.
        """
        return _required(order_id, await self._orders.find_one({"_id": order_id}))

    async def adopt(self, document: Document) -> Order:
        """Read an order document that another program may have inserted, and add what that one need not know.

        Raises:
            ValueError (of which pydantic.ValidationError is one): the document is malformed.
        """
        if any(document.get(field) is None for field in ADDED):
            missing = {field: _first(f"${field}", value) for field, value in ADDED.items()}
            adopted = await self._orders.find_one_and_update(
                {"_id": document["_id"]}, [{"$set": missing}], return_document=ReturnDocument.AFTER
            )
            document = adopted or document
        return Order.from_document(document)

    async def reject(self, order_id: object, failure: Failure) -> None:
        """Mark a malformed document as failed; nothing can be told of what it holds, so nothing in it is relied on.

        A `created_at` that is none is replaced: lists are sorted by it, and their cursors hold it.
        """
        # To MongoDB all values have an order, in which only dates lie between two dates.
        is_time = {"$and": [{"$gt": ["$created_at", FIRST_INSTANT]}, {"$lt": ["$created_at", LAST_INSTANT]}]}
        fields: Document = {
            "status": OrderStatus.FAILED.value,
            "failure": {"$literal": failure.model_dump()},
            "created_at": {"$cond": [is_time, "$created_at", NOW]},
            "updated_at": NOW,
        }
        await self._orders.update_one(
            {"_id": order_id, "status": {"$nin": [status.value for status in FINAL]}}, [{"$set": fields}]
        )

    async def step_done(self, order_id: str, step: StepName, status: OrderStatus, detail: str) -> None:
        await self._orders.update_one({"_id": order_id}, done(step, status, detail))

    async def step_failed(self, order_id: str, step: StepName, detail: str) -> None:
        await self._orders.update_one({"_id": order_id}, failed(step, detail))

    async def step_undone(self, order_id: str, step: StepName, detail: str) -> None:
        await self._orders.update_one({"_id": order_id}, undone(step, detail))

    async def mark(self, order_id: str, status: OrderStatus, failure: Failure | None) -> None:
        fields: Document = {"status": _forward(status), "updated_at": NOW}
        if failure is not None:
            fields["failure"] = _first("$failure", {"$literal": failure.model_dump()})
        await self._orders.update_one({"_id": order_id}, [{"$set": fields}])

    async def tell_all(self, changes: Mapping[str, Pipeline], session: Session) -> None:
        """Several orders within a transaction: `done`, `failed` or `undone` by order id."""
        writes = [UpdateOne({"_id": order_id}, change) for order_id, change in changes.items()]
        await self._orders.bulk_write(writes, ordered=False, session=session)


def _required(order_id: str, document: Document | None) -> Order:
    if document is None:
        raise LookupError(f"order {order_id} is not in MongoDB")
    return Order.from_document(document)


def done(step: StepName, status: OrderStatus, detail: str) -> Pipeline:
    """The step took effect: recorded once, and the status moves forward."""
    record = _first(f"$steps.{step}", _record(StepStatus.DONE, detail))
    return [{"$set": {f"steps.{step}": record, "status": _forward(status), "updated_at": NOW}}]


def failed(step: StepName, detail: str) -> Pipeline:
    """The step had no effect and will have none."""
    record = _first(f"$steps.{step}", _record(StepStatus.FAILED, detail))
    return [{"$set": {f"steps.{step}": record, "updated_at": NOW}}]


def undone(step: StepName, detail: str) -> Pipeline:
    """The step took effect and was undone; said once."""
    before = f"$steps.{step}"
    record: Document = {
        "$cond": [{"$eq": [f"{before}.status", StepStatus.UNDONE]}, before, _record(StepStatus.UNDONE, detail)]
    }
    return [{"$set": {f"steps.{step}": record, "updated_at": NOW}}]


def _record(status: StepStatus, detail: str) -> Document:
    # $literal: a detail may begin with a dollar sign, which would otherwise be read as the name of a field.
    return {"status": status.value, "at": NOW, "detail": {"$literal": detail}}


def _first(field: str, value: Any) -> Document:
    """The field as it is, or the value where there is none yet."""
    return {"$ifNull": [field, value]}


def _forward(status: OrderStatus) -> Document:
    # A document that another program inserted may have no status: it is as good as placed.
    before = {"$ifNull": ["$status", OrderStatus.PLACED.value]}
    may_follow = [earlier.value for earlier in MAY_FOLLOW[status]]
    return {"$cond": [{"$in": [before, may_follow]}, status.value, before]}


_POSITION: TypeAdapter[tuple[AwareDatetime, str]] = TypeAdapter(tuple[AwareDatetime, str])


def _cursor(order: Order) -> str:
    position = _POSITION.dump_json((order.created_at, order.order_id))
    return base64.urlsafe_b64encode(position).decode()


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        created_at, order_id = _POSITION.validate_json(base64.urlsafe_b64decode(cursor))
        return created_at.astimezone(UTC), order_id
    except (ValueError, OverflowError) as error:
        raise BadCursor from error
