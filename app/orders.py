"""The repository of orders, the only code that queries and updates order documents.

One conditional write decides each race and records the outcome: the state of a step, the status and the timeline change
together. Every write can be repeated, and none moves an order backwards.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, Self

from bson import DatetimeMS
from pymongo import ASCENDING, DESCENDING, ReturnDocument, UpdateOne
from pymongo.errors import DuplicateKeyError

from app import domain, metrics, tracing
from app.domain import Failure, Line, NewOrder, Order, OrderStatus, Product, StepChange, StepStatus
from app.messages import AddressChange, OrderState, StatusUpdate
from app.mongo import ChangeStream, Document, Mongo, Session

# Writes are update pipelines: one atomic update checks and writes, by the server's clock.
NOW = "$$NOW"
# Fields that another program may omit when it inserts an order.
DEFAULTS: Document = {"status": OrderStatus.PLACED.value, "created_at": NOW, "updated_at": NOW}
KEPT_ADDRESSES = 5  # newest proposals of an order; an older one is superseded anyway
NOT_FINAL: Document = {"status": {"$nin": list(domain.TERMINAL)}}
EVERY_STATUS = [*OrderStatus, None]  # None: another program may omit it
NOT_CANCELLED: Document = {"$eq": [{"$ifNull": ["$cancellation", None]}, None]}
MAX_COUNT = 10_000  # of a status, so that a count of millions stays cheap
MAX_TIME = 2**63 - 1  # the latest BSON date, in milliseconds


class OrderRepository:
    def __init__(self, mongo: Mongo, customer: str | None = None) -> None:
        self._mongo = mongo
        self._orders = mongo.orders
        # MongoDB would also find an array that has the customer among others.
        own = {"customer_id": {"$eq": customer, "$not": {"$type": "array"}}}
        self._owned: Document = {} if customer is None else own

    def of(self, customer: str | None) -> Self:
        """Return a repository in which only this customer's orders exist; None: every order."""
        return type(self)(self._mongo, customer)

    # --- reads

    async def show(self, order_id: str) -> Order:
        """Return the order for display; a malformed one is shown as failed.

        Raises:
            domain.NotFound
        """
        return Order.from_any_document(await self._find(order_id))

    async def get(self, order_id: str) -> Order:
        """Return the order for the saga.

        Raises:
            domain.NotFound
            ValueError (pydantic.ValidationError is a subclass): the document is malformed.
        """
        return Order.from_document(await self._find(order_id))

    async def page(
        self, statuses: Sequence[OrderStatus | None], customer_id: str | None, limit: int, cursor: str | None
    ) -> tuple[list[Order], str | None]:
        """Return a page of orders, newest first, in any of these statuses if given, and the cursor of the next page.

        A cursor holds the time of the last order shown, and the number of orders with that time shown so far, so it
        works with any `_id`. An order added with that same time, to the millisecond, may be shown twice. An order of a
        status that this program does not know is in no list until the relay marks it as malformed.
        """
        time, _, skip = (cursor or f"{MAX_TIME}.0").partition(".")
        begin = DatetimeMS(max(-MAX_TIME, min(int(time), MAX_TIME)))
        query: Document = {"status": {"$in": statuses or EVERY_STATUS}, "$and": [self._owned]}
        if customer_id is not None:
            query["customer_id"] = customer_id
        query["created_at"] = {"$lte": begin, "$type": "date", "$not": {"$type": "array"}}  # not an array of dates
        newest = self._orders.find(query).sort([("created_at", DESCENDING), ("_id", DESCENDING)])
        documents = await newest.skip(int(skip)).limit(limit + 1).to_list(None)
        orders = [Order.from_any_document(document) for document in documents[:limit]]
        if len(documents) <= limit:
            return orders, None
        times = [document["created_at"] for document in documents[:limit]]
        last = times[-1] if isinstance(times[-1], DatetimeMS) else DatetimeMS(times[-1])
        shown = times.count(times[-1]) + (int(skip) if last == begin else 0)
        return orders, f"{int(last)}.{shown}"

    async def counts(self) -> dict[OrderStatus, int]:
        """Return the number of orders in each status, at most `MAX_COUNT` of each."""
        queries = [{"$and": [{"status": status.value}, self._owned]} for status in OrderStatus]
        numbers = await asyncio.gather(*(self._orders.count_documents(query, limit=MAX_COUNT) for query in queries))
        return dict(zip(OrderStatus, numbers, strict=True))

    async def backlog(self, status: OrderStatus) -> tuple[int, datetime | None]:
        """Return the number of orders in this status, at most `MAX_COUNT`, and when the oldest of them was placed."""
        count = await self._orders.count_documents({"status": status.value}, limit=MAX_COUNT)
        oldest = await self._orders.find_one({"status": status.value}, sort=[("created_at", ASCENDING)])
        return count, Order.from_any_document(oldest).created_at if oldest else None

    async def changed_since(self, then: datetime, until: datetime | None = None) -> AsyncIterator[Order]:
        """Yield the orders whose last change is since then, and before `until` if given, the oldest change first."""
        period = {"$gte": then} | ({"$lt": until} if until else {})
        changed = self._orders.find({**self._owned, "updated_at": period}, batch_size=500)
        async for document in changed.sort("updated_at", ASCENDING):
            yield Order.from_any_document(document)

    async def among(self, order_ids: Sequence[str]) -> dict[str, Order]:
        """Return those of these orders that exist, by id."""
        found = self._orders.find({**self._owned, "_id": {"$in": order_ids}})
        return {document["_id"]: Order.from_any_document(document) async for document in found}

    async def open_ids(self, among: Sequence[Any] | None = None) -> list[Any]:
        """Return the `_id`s of the orders that are not final; if another program wrote one, it may be of any type."""
        query: Document = NOT_FINAL | ({} if among is None else {"_id": {"$in": among}})
        return [document["_id"] async for document in self._orders.find(query, {"_id": 1})]

    async def undelivered(self) -> list[Order]:
        """Return orders that await approval although a decision or a cancel is recorded: the signal may be lost."""
        decided = {"$or": [{"approval": {"$ne": None}}, {"cancellation": {"$ne": None}}]}
        found = self._orders.find({"status": OrderStatus.AWAITING_APPROVAL.value, **decided})
        return [Order.from_any_document(document) async for document in found]

    def watch_inserts(self) -> AbstractAsyncContextManager[ChangeStream]:
        """Open a change stream of the `_id`s of new orders."""
        pipeline: list[Document] = [{"$match": {"operationType": "insert"}}, {"$project": {"documentKey": 1}}]
        return self._mongo.watch(self._orders, pipeline)

    # --- placing

    async def placed(self, order_id: str, fingerprint: str, *, durable: bool = False) -> Order | None:
        """Return the order that an earlier request placed under this id; `durable` waits until a majority has it.

        Raises:
            domain.KeyReused: the earlier request had a different body.
        """
        read = self._mongo.find_durable(self._orders, order_id) if durable else self._orders.find_one({"_id": order_id})
        document = await read
        if document is None:
            return None
        if document.get("fingerprint") != fingerprint:
            raise domain.KeyReused
        return Order.from_any_document(document)

    async def add(
        self, order_id: str, new: NewOrder, products: dict[str, Product], fingerprint: str, placed_by: str | None = None
    ) -> Order | None:
        """Insert the order with the current prices; return None if its id is already taken.

        Raises:
            ValueError: the prices are not in one currency.
        """
        lines = [
            Line(**line.model_dump(), name=products[line.sku].name, unit_price=products[line.sku].unit_price)
            for line in new.lines
        ]
        total = sum(line.quantity * line.unit_price.amount for line in lines)
        now = datetime.now(UTC)
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)  # MongoDB's precision
        document = {
            "_id": order_id,
            **new.model_dump(),
            "lines": [line.model_dump() for line in lines],
            "total": {"amount": total, "currency": lines[0].unit_price.currency},
            "status": OrderStatus.PLACED.value,
            "created_at": now,
            "updated_at": now,
            "fingerprint": fingerprint,
            "placed_by": placed_by,
            "traceparent": tracing.traceparent(),
        }
        order = Order.from_document(document)
        try:
            await self._orders.insert_one(document)
        except DuplicateKeyError:
            return None
        return order

    async def normalize(self, order_id: Any) -> Order | None:
        """Read an order document that another program may have inserted, and add the fields that it may omit.

        Raises:
            ValueError (pydantic.ValidationError is a subclass): the document is malformed.
        """
        defaults = {field: {"$ifNull": [f"${field}", value]} for field, value in DEFAULTS.items()}
        document = await self._update(order_id, defaults)
        return Order.from_document(document) if document else None

    async def mark_malformed(self, order_id: Any, failure: Failure) -> None:
        """Mark a malformed document as failed: nothing in it is reliable.

        A `created_at` that is not a date is replaced: lists are sorted by it and omit documents without one.
        """
        fields: Document = {
            "status": OrderStatus.FAILED.value,
            "failure": {"$literal": failure.model_dump()},
            "created_at": {"$cond": [{"$eq": [{"$type": "$created_at"}, "date"]}, "$created_at", NOW]},
            "updated_at": NOW,
        }
        await self._update(order_id, fields, NOT_FINAL)

    # --- requests of customers and approvers, decided before Temporal is called

    async def request_cancellation(self, order_id: str, reason: str | None = None, by: str | None = None) -> Order:
        """Accept a cancel before the point of no return; `cancellation` of the returned order is the outcome."""
        cancellation = {"$ifNull": ["$cancellation", _decision(False, reason, by)]}
        return await self._decide(order_id, {"cancellation": cancellation}, _in(domain.CANCELLABLE))

    async def decide_approval(
        self, order_id: str, approved: bool, reason: str | None = None, by: str | None = None
    ) -> Order:
        """Record the first decision on an order awaiting approval; `approval` of the returned order is the outcome.

        The caller who placed the order cannot decide.
        """
        awaiting: Document = {**_in([OrderStatus.AWAITING_APPROVAL]), "cancellation": None, "approval": None}
        if by is not None:
            awaiting["placed_by"] = {"$ne": by}
        return await self._decide(order_id, {"approval": _decision(approved, reason, by)}, awaiting)

    async def propose_address(self, order_id: str, address: domain.Address) -> AddressChange | None:
        """Add a proposed address to the order document, for the saga to apply; return None if it is too late.

        MongoDB numbers the proposals, so an earlier one that is applied late cannot overwrite a later one.
        """
        number = {"$add": [{"$ifNull": ["$addresses_proposed", 0]}, 1]}
        proposed = {"number": number, "address": {"$literal": address.model_dump()}}
        proposals = {"$concatArrays": [{"$ifNull": ["$address_changes", []]}, [proposed]]}
        fields = {"addresses_proposed": number, "address_changes": {"$slice": [proposals, -KEPT_ADDRESSES]}}
        document = await self._update(order_id, fields, {**_in(domain.ADDRESS_CHANGEABLE), "cancellation": None})
        return AddressChange(order_id=order_id, number=document["addresses_proposed"]) if document else None

    async def apply_address_change(self, change: AddressChange) -> bool:
        """Apply a proposed address, unless a later one is already applied; return False if it is too late.

        The status is the guard. The write that records the charge changes it, so the carrier, which is called next,
        gets the order's final address.
        """
        applied = {"$ifNull": ["$addresses_applied", 0]}
        proposals = {"$ifNull": ["$address_changes", []]}
        proposed = {"$filter": {"input": proposals, "cond": {"$eq": ["$$this.number", change.number]}}}
        address = {"$let": {"vars": {"proposed": {"$first": proposed}}, "in": "$$proposed.address"}}
        is_later = {"$lt": [applied, change.number]}
        fields: Document = {
            "shipping_address": {"$ifNull": [{"$cond": [is_later, address, None]}, "$shipping_address"]},
            "addresses_applied": {"$max": [applied, change.number]},
            "updated_at": NOW,
        }
        guard = {**_in(domain.ADDRESS_CHANGEABLE), "cancellation": None}
        return await self._update(change.order_id, fields, guard) is not None

    # --- writes of the saga

    async def change_step(self, order_id: str, change: StepChange) -> tuple[domain.StepRecord, Failure | None]:
        """Apply an event to a step, unless it comes too late; return the step's record and the order's stop reason.

        If there is a stop reason, the step must not count.

        Raises:
            domain.NotFound
        """
        document = await self._update(order_id, _step_fields(change))
        if document is None:
            raise domain.NotFound(f"order {order_id}")
        order = Order.from_document(document)
        record = domain.StepRecord(step=change.step, **document["steps"][change.step])
        return record, order.stop_reason

    async def change_steps(self, changes: Iterable[tuple[str, StepChange]], session: Session) -> None:
        """Change a step of several orders, one after the other, in the transaction in which the caller has read them.

        Raises:
            domain.NotFound: one of the orders was removed in the meantime.
        """
        writes = [UpdateOne({"_id": order_id}, [{"$set": _step_fields(change)}]) for order_id, change in changes]
        result = await self._orders.bulk_write(writes, session=session)
        if result.matched_count < len(writes):
            raise domain.NotFound

    async def documents(self, order_ids: Sequence[str], session: Session) -> dict[str, Document]:
        """Return those of these order documents that exist, by id, within a transaction."""
        found = self._orders.find({"_id": {"$in": order_ids}}, session=session)
        return {document["_id"]: document for document in await found.to_list(None)}

    async def update_status(self, update: StatusUpdate) -> OrderState:
        """Write a status that no step writes, if the order may still reach it; return the state after the write.

        The first failure is kept. An accepted cancel overrides a new one, and an approver's reason its message.
        """
        fields: Document = {"status": _forward(update.status), "updated_at": NOW}
        if update.approval is not None:
            awaits = {"$and": [{"$eq": ["$status", OrderStatus.AWAITING_APPROVAL.value]}, NOT_CANCELLED]}
            reason = "no decision in time" if update.approval.timed_out else None
            decided = {"$cond": [awaits, _decision(update.approval.approved, reason, None), "$$REMOVE"]}
            fields["approval"] = {"$ifNull": ["$approval", decided]}
        if update.failure is not None:
            cancelled = {"code": domain.CANCELLED, "message": {"$ifNull": ["$cancellation.reason", domain.CANCELLED]}}
            code: Document = {"$literal": update.failure.code}
            message: Document = {"$literal": update.failure.message}
            if update.step:
                declined = f"$steps.{update.step}.failure"
                message = {"$cond": [{"$eq": [f"{declined}.code", code]}, f"{declined}.message", message]}
            if update.failure.code == domain.NOT_APPROVED:
                message = {"$ifNull": ["$approval.reason", message]}
            failure: Document = {"code": code, "message": message}
            resolved = {"$cond": [NOT_CANCELLED, failure, cancelled]}
            fields["failure"] = {"$ifNull": ["$failure", {"$cond": [_may_become(update.status), resolved, "$$REMOVE"]}]}
            if update.step and update.status is OrderStatus.COMPENSATING:  # its retries have ended: it wrote no record
                ended = {"status": StepStatus.FAILED.value, "at": NOW, "detail": message, "failure": failure}
                stops = {"$and": [_may_become(update.status), NOT_CANCELLED]}
                record = f"steps.{update.step}"
                fields[record] = {"$ifNull": [f"${record}", {"$cond": [stops, ended, "$$REMOVE"]}]}
        document = await self._update(update.order_id, fields)
        # The order was removed: the workflow continues as if the update had applied.
        state = document or update.model_dump(exclude={"order_id"})
        failure_code = (state.get("failure") or {}).get("code")
        approved = (state.get("approval") or {}).get("approved")
        return OrderState(status=state["status"], failure_code=failure_code, approved=approved)

    async def _decide(self, order_id: str, fields: Document, guard: Document) -> Order:
        document = await self._update(order_id, {**fields, "updated_at": NOW}, guard)
        return Order.from_any_document(document or await self._find(order_id))

    async def _find(self, order_id: str) -> Document:
        document = await self._orders.find_one({**self._owned, "_id": order_id})
        if document is None:
            raise domain.NotFound(f"order {order_id}")
        return document

    async def _update(self, order_id: Any, fields: Document, guard: Document | None = None) -> Document | None:
        """Update atomically; return the document after it, or None if the guard does not match."""
        query = {**self._owned, "_id": order_id, **(guard or {})}
        update = [{"$set": {**fields, "status_before": "$status"}}]
        document = await self._orders.find_one_and_update(query, update, return_document=ReturnDocument.AFTER)
        metrics.count_end(document)
        return document


def _step_fields(change: StepChange) -> Document:
    """Return the conditional write of a step, derived from `domain.next_status`: a late event changes nothing."""
    before = f"$steps.{change.step}"
    applies_to = [status for status in (None, *StepStatus) if domain.next_status(status, change.event) is not status]
    applies = {"$in": [{"$ifNull": [f"{before}.status", None]}, applies_to]}
    record: Document = {"status": domain.next_status(applies_to[0], change.event), "at": NOW}
    # $literal: a detail that begins with a dollar sign would otherwise be read as a field name.
    record["detail"] = {"$literal": change.detail}
    if change.event is domain.StepEvent.COMPENSATED:
        record = {"$mergeObjects": [before, {"status": StepStatus.COMPENSATED, "compensated_at": NOW}]}
    elif change.event is not domain.StepEvent.FENCED:
        record |= {"first_attempt_at": change.attempt.first_at, "attempts": change.attempt.number}
    if change.failure is not None:
        record["failure"] = {"$literal": change.failure.model_dump()}
    if change.quantities is not None:
        quantities = [{"sku": sku, "quantity": quantity} for sku, quantity in change.quantities.items()]
        record["quantities"] = {"$literal": quantities}
    fields: Document = {
        f"steps.{change.step}": {"$cond": [applies, record, before]},
        "updated_at": {"$cond": [applies, NOW, "$updated_at"]},
    }
    if change.event is domain.StepEvent.SUCCEEDED:
        advances = {"$and": [applies, NOT_CANCELLED]}
        fields["status"] = {"$cond": [advances, _forward(domain.STATUS_AFTER[change.step]), "$status"]}
    return fields


def _may_become(status: OrderStatus) -> Document:
    # A document inserted by another program may have no status: it counts as placed.
    return {"$in": [{"$ifNull": ["$status", OrderStatus.PLACED.value]}, domain.ALLOWED_FROM[status]]}


def _forward(status: OrderStatus) -> Document:
    return {"$cond": [_may_become(status), status, {"$ifNull": ["$status", OrderStatus.PLACED.value]}]}


def _in(statuses: Sequence[OrderStatus]) -> Document:
    return {"status": {"$in": [*statuses, *([None] if OrderStatus.PLACED in statuses else [])]}}


def _decision(approved: bool, reason: str | None, by: str | None) -> Document:
    return {"approved": approved, "reason": {"$literal": reason}, "by": {"$literal": by}, "at": NOW}
