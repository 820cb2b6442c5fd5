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
from app.domain import Attempt, Failure, NotFound, StepChange, StepEvent, StepName, StepStatus
from app.messages import OrderRef

if TYPE_CHECKING:
    from app.mongo import Document, Session

STEP = StepName.RESERVE_INVENTORY


@dataclass(frozen=True)
class Request:
    """A request to reserve `quantities` (by SKU) for an order or, if None, to release what it holds."""

    order_id: str
    attempt: Attempt
    quantities: Mapping[str, int] | None = None
    span: tracing.Span = field(default_factory=tracing.current_span, compare=False)


@dataclass(frozen=True)
class Reservation:
    """A reservation after a request. `failure` is set if it was declined, not if a release fenced it."""

    status: StepStatus
    quantities: Mapping[str, int]
    failure: Failure | None = None

    @classmethod
    def from_document(cls, record: Document) -> Reservation:
        quantities = {line["sku"]: line["quantity"] for line in record.get("quantities", [])}
        failure = record.get("failure")
        return cls(StepStatus(record["status"]), quantities, failure and Failure.model_validate(failure))


class Inventory:
    def __init__(self, dependencies: Dependencies) -> None:
        self._mongo = dependencies.mongo
        self._orders = dependencies.orders
        self._products = dependencies.products
        self._requests = GroupCommit(self._commit, affects_batch=self._mongo.is_unavailable)

    @activity.defn(name="ReserveInventory")
    async def reserve(self, ref: OrderRef) -> None:
        order = await self._orders.get(ref.order_id)
        if order.stop_reason is not None:
            raise declined_error(order.stop_reason)
        quantities = {line.sku: line.quantity for line in order.lines}
        request = Request(ref.order_id, current_attempt(), quantities)
        record = order.step(STEP) or await self._requests.submit(request)
        if record.status is not StepStatus.DONE:
            raise step_failed(record.failure)

    @activity.defn(name="ReleaseInventory")
    async def release(self, ref: OrderRef) -> None:
        with suppress(NotFound):  # the order was removed: it holds nothing
            await self._requests.submit(Request(ref.order_id, current_attempt()))

    @tracing.shared_span
    async def _commit(self, requests: list[Request]) -> list[Reservation]:
        return await self._mongo.run_transaction(lambda session: self._decide_all(requests, session))

    async def _decide_all(self, requests: list[Request], session: Session) -> list[Reservation]:
        """Decide all requests on one snapshot, write the changes, and return the reservation of each."""
        records = await self._orders.records(STEP, [request.order_id for request in requests], session)
        held = {order_id: Reservation.from_document(record) for order_id, record in records.items()}
        touched = [request.quantities or {} for request in requests] + [each.quantities for each in held.values()]
        stock = await self._products.available({sku for quantities in touched for sku in quantities}, session)

        changes, remaining = [], dict(stock)
        for request in requests:
            before = held.get(request.order_id)
            after = held[request.order_id] = decide(request, before, remaining)
            if after != before:
                changes.append((request.order_id, _change(after, request.attempt)))
        moved = {sku: remaining[sku] - stock[sku] for sku in stock if remaining[sku] != stock[sku]}
        if changes:
            await self._orders.change_steps(changes, session)
        if moved:
            await self._products.change_available(moved, session)
        return [held[request.order_id] for request in requests]


def decide(request: Request, held: Reservation | None, remaining: dict[str, int]) -> Reservation:
    """Return the reservation after a request, all or nothing over the order's lines, and update `remaining`."""
    if request.quantities is None:
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
    short = [sku for sku, quantity in request.quantities.items() if remaining.get(sku, 0) < quantity]
    if short:
        failure = Failure(code="out_of_stock", message=f"not enough in stock: {', '.join(short)}")
        return Reservation(StepStatus.FAILED, {}, failure)
    for sku, quantity in request.quantities.items():
        remaining[sku] -= quantity
    return Reservation(StepStatus.DONE, request.quantities)


def _change(after: Reservation, attempt: Attempt) -> StepChange:
    """Return the change to write. An order reserved and released in the same batch has two."""
    if after.status is StepStatus.DONE:
        return StepChange(STEP, StepEvent.SUCCEEDED, "reserved", None, attempt, after.quantities)
    if after.status is StepStatus.COMPENSATED:
        return StepChange(STEP, StepEvent.COMPENSATED, "", None, attempt)
    if after.failure is not None:
        return StepChange(STEP, StepEvent.DECLINED, after.failure.message, after.failure, attempt)
    return StepChange(STEP, StepEvent.FENCED, "stopped before it took effect", None, attempt)
