"""ReserveInventory and ReleaseInventory.

A reservation is `reserved` or `released`, one document for each order. It changes in the same transaction as the stock
and the order's timeline, so that available + held by active reservations = stocked, at every instant (G5). A release
that comes first leaves `released`, the fence that a late reservation runs into (G4).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pymongo import UpdateOne
from temporalio import activity

from app.activities.group_commit import GroupCommit
from app.activities.ledger import FENCED, fence_expiry, refusal
from app.models import Failure, OrderRef, OrderStatus, StepName
from app.orders import Pipeline, done, failed, undone

if TYPE_CHECKING:
    from app.mongo import Document, Mongo, Session
    from app.orders import Orders

RESERVED = "reserved"
RELEASED = "released"
STEP = StepName.RESERVE_INVENTORY


@dataclass(frozen=True)
class Request:
    """Hold these pieces (by sku) for the order, or, when `pieces` is None, let go of what it holds."""

    order_id: str
    pieces: dict[str, int] | None


@dataclass(frozen=True)
class Reservation:
    state: str
    pieces: dict[str, int]
    failure: Failure | None = None


class Inventory:
    def __init__(self, mongo: Mongo, orders: Orders) -> None:
        self._mongo = mongo
        self._orders = orders
        self._requests = GroupCommit(self._commit, concerns_all=mongo.is_unavailable)

    @activity.defn(name="ReserveInventory")
    async def reserve(self, ref: OrderRef) -> None:
        order = await self._orders.require(ref.order_id)
        pieces = {line.sku: line.quantity for line in order.lines}
        reservation = await self._requests.submit(Request(ref.order_id, pieces))
        if reservation.state != RESERVED:
            raise refusal(reservation.failure or FENCED)

    @activity.defn(name="ReleaseInventory")
    async def release(self, ref: OrderRef) -> None:
        await self._requests.submit(Request(ref.order_id, None))

    async def _commit(self, requests: Sequence[Request]) -> list[Reservation]:
        return await self._mongo.run_transaction(lambda session: self._settle(requests, session))

    async def _settle(self, requests: Sequence[Request], session: Session) -> list[Reservation]:
        """Decide all requests on one snapshot, write what changed, return the reservation of each."""
        before = await self._reservations({request.order_id for request in requests}, session)
        touched = [request.pieces or {} for request in requests] + [held.pieces for held in before.values()]
        stock = await self._stock({sku for pieces in touched for sku in pieces}, session)

        after, left = dict(before), dict(stock)
        for request in requests:
            after[request.order_id] = decide(request, after.get(request.order_id), left)

        changed = {order_id: after[order_id] for order_id in after if after[order_id] != before.get(order_id)}
        moved = [
            UpdateOne({"_id": sku}, {"$inc": {"available": left[sku] - stock[sku]}})
            for sku in stock
            if left[sku] != stock[sku]
        ]
        if changed:
            await self._mongo.reservations.bulk_write([_write(*item) for item in changed.items()], session=session)
            notes = {order_id: _note(changed[order_id], before.get(order_id)) for order_id in changed}
            await self._orders.tell_all(notes, session)
        if moved:
            await self._mongo.inventory.bulk_write(moved, session=session)
        return [after[request.order_id] for request in requests]

    async def _reservations(self, order_ids: Iterable[str], session: Session) -> dict[str, Reservation]:
        found = self._mongo.reservations.find({"_id": {"$in": list(order_ids)}}, session=session)
        return {document["_id"]: _read(document) async for document in found}

    async def _stock(self, skus: Iterable[str], session: Session) -> dict[str, int]:
        found = self._mongo.inventory.find({"_id": {"$in": list(skus)}}, {"available": 1}, session=session)
        stock = {document["_id"]: document.get("available") async for document in found}
        for sku, available in stock.items():
            # Another program may have written anything; NaN, for one, would pass every comparison below.
            if not isinstance(available, int):
                raise TypeError(f"article {sku}: available is not a whole number")
        return stock


def decide(request: Request, held: Reservation | None, left: dict[str, int]) -> Reservation:
    """What becomes of a reservation, all or nothing over the order's lines; takes from, or gives back to, `left`."""
    if request.pieces is None:
        if held is None:
            return Reservation(RELEASED, {})
        if held.state == RESERVED:
            for sku, quantity in held.pieces.items():
                if sku in left:  # an article that is not kept any more has no stock to give back to
                    left[sku] += quantity
        return Reservation(RELEASED, held.pieces, held.failure)
    if held is not None:
        return held
    short = [sku for sku, quantity in request.pieces.items() if left.get(sku, 0) < quantity]
    if short:
        failure = Failure(code="out_of_stock", message=f"not enough in stock: {', '.join(short)}")
        return Reservation(RELEASED, {}, failure)
    for sku, quantity in request.pieces.items():
        left[sku] -= quantity
    return Reservation(RESERVED, request.pieces)


def _note(after: Reservation, before: Reservation | None) -> Pipeline:
    """What the order's timeline says of it."""
    if after.state == RESERVED:
        return done(STEP, OrderStatus.RESERVED, RESERVED)
    if before is not None:
        return undone(STEP, RELEASED)
    return failed(STEP, after.failure.message if after.failure else "did not take effect")


def _read(document: Document) -> Reservation:
    pieces = {line["sku"]: line["quantity"] for line in document["lines"]}
    failure = document.get("failure")
    return Reservation(document["state"], pieces, Failure.model_validate(failure) if failure else None)


def _write(order_id: str, reservation: Reservation) -> UpdateOne:
    document: Document = {
        "state": reservation.state,
        "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in reservation.pieces.items()],
    }
    if reservation.failure:
        document["failure"] = reservation.failure.model_dump()
    if not reservation.pieces:  # it never held anything: a fence
        document["expires_at"] = fence_expiry()
    return UpdateOne({"_id": order_id}, {"$set": document}, upsert=True)
