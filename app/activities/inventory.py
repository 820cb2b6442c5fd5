"""ReserveInventory and ReleaseInventory.

A reservation is the order's `reserve_inventory` step: it holds its `quantities` while it is `done`. It changes in the
same transaction as the stock, so that available + held by reservations = stocked, at every instant (G5). A release that
comes first leaves a fence, which stops a late reservation (G4).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from temporalio import activity

from app import tracing
from app.activities.group_commit import GroupCommit
from app.activities.order_step import Dependencies, current_attempt, declined_error, step_failed
from app.domain import Attempt, Failure, NotFound, Order, StepChange, StepEvent, StepName, StepStatus
from app.messages import OrderRef

if TYPE_CHECKING:
    from app.mongo import Document, Session

STEP = StepName.RESERVE_INVENTORY


@dataclass(frozen=True)
class Request:
    """A request to reserve what an order needs, or to release what it holds."""

    order_id: str
    attempt: Attempt
    release: bool = False
    span: tracing.Span = field(default_factory=tracing.current_span, compare=False)


@dataclass(frozen=True)
class Reservation:
    """The reservation of an order. `failure` is set if it was declined, not if a release fenced it."""

    status: StepStatus
    quantities: Mapping[str, int]
    failure: Failure | None = None

    @classmethod
    def of(cls, document: Document) -> Reservation | None:
        """Return the reservation of an order document, if it has one. The rest of it may be malformed."""
        steps = document.get("steps")
        if not isinstance(steps, Mapping) or STEP not in steps:
            return None
        record = steps[STEP]
        quantities = {line["sku"]: line["quantity"] for line in record.get("quantities", [])}
        failure = record.get("failure")
        return cls(StepStatus(record["status"]), quantities, failure and Failure.model_validate(failure))


Outcome = Reservation | Failure  # a failure: the order was stopped, and nothing has changed


class Inventory:
    def __init__(self, dependencies: Dependencies) -> None:
        self._mongo = dependencies.mongo
        self._orders = dependencies.orders
        self._products = dependencies.products
        self._requests = GroupCommit(self._commit, affects_batch=self._mongo.is_unavailable)

    @activity.defn(name="ReserveInventory")
    async def reserve(self, ref: OrderRef) -> None:
        outcome = await self._requests.submit(Request(ref.order_id, current_attempt()))
        if isinstance(outcome, Failure):
            raise declined_error(outcome)
        if outcome.status is not StepStatus.DONE:
            raise step_failed(outcome.failure)

    @activity.defn(name="ReleaseInventory")
    async def release(self, ref: OrderRef) -> None:
        with suppress(NotFound):  # the order was removed: it holds nothing
            await self._requests.submit(Request(ref.order_id, current_attempt(), release=True))

    @tracing.shared_span
    async def _commit(self, requests: list[Request]) -> list[Outcome]:
        return await self._mongo.run_transaction(lambda session: self._decide_all(requests, session))

    async def _decide_all(self, requests: list[Request], session: Session) -> list[Outcome]:
        """Decide all requests on one snapshot, write the changes, and return the outcome of each.

        Raises:
            NotFound
            ValueError (pydantic.ValidationError is a subclass): an order is malformed.
        """
        documents = await self._orders.documents([request.order_id for request in requests], session)
        held = {order_id: found for order_id, document in documents.items() if (found := Reservation.of(document))}
        orders = {each.order_id: _order(each.order_id, documents) for each in requests if not each.release}
        stopped = {order_id: reason for order_id, order in orders.items() if (reason := order.stop_reason)}
        wanted = {order_id: {line.sku: line.quantity for line in order.lines} for order_id, order in orders.items()}
        touched = [*wanted.values(), *(each.quantities for each in held.values())]
        stock = await self._products.available({sku for quantities in touched for sku in quantities}, session)

        changes, remaining = [], dict(stock)
        for request in requests:
            order_id = request.order_id
            if request.release or order_id not in stopped:
                before = held.get(order_id)
                after = held[order_id] = decide(None if request.release else wanted[order_id], before, remaining)
                if after != before:
                    changes.append((order_id, _change(after, request.attempt)))
        moved = {sku: remaining[sku] - stock[sku] for sku in stock if remaining[sku] != stock[sku]}
        if changes:
            await self._orders.change_steps(changes, session)
        if moved:
            await self._products.change_available(moved, session)
        return [(not each.release and stopped.get(each.order_id)) or held[each.order_id] for each in requests]


def decide(wanted: Mapping[str, int] | None, held: Reservation | None, remaining: dict[str, int]) -> Reservation:
    """Return the reservation after a request for `wanted` quantities (by SKU), or after a release if None.

    A reservation is all or nothing over the order's lines. `remaining` is updated.
    """
    if wanted is None:
        if held is None:
            return Reservation(StepStatus.FAILED, {})
        if held.status is not StepStatus.DONE:
            return held
        for sku, quantity in held.quantities.items():
            if sku in remaining:  # a removed product has no stock to return to
                remaining[sku] += quantity
        return Reservation(StepStatus.COMPENSATED, held.quantities)
    if held is not None:
        return held
    short = [sku for sku, quantity in wanted.items() if remaining.get(sku, 0) < quantity]
    if short:
        failure = Failure(code="out_of_stock", message=f"not enough in stock: {', '.join(short)}")
        return Reservation(StepStatus.FAILED, {}, failure)
    for sku, quantity in wanted.items():
        remaining[sku] -= quantity
    return Reservation(StepStatus.DONE, wanted)


def _order(order_id: str, documents: Mapping[str, Document]) -> Order:
    if order_id not in documents:
        raise NotFound(f"order {order_id}")
    return Order.from_document(documents[order_id])


def _change(after: Reservation, attempt: Attempt) -> StepChange:
    """Return the change to write. An order reserved and released in the same batch has two."""
    if after.status is StepStatus.DONE:
        return StepChange(STEP, StepEvent.SUCCEEDED, "reserved", None, attempt, after.quantities)
    if after.status is StepStatus.COMPENSATED:
        return StepChange(STEP, StepEvent.COMPENSATED, "", None, attempt)
    if after.failure is not None:
        return StepChange(STEP, StepEvent.DECLINED, after.failure.message, after.failure, attempt)
    return StepChange(STEP, StepEvent.FENCED, "stopped before it took effect", None, attempt)
