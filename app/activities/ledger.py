"""The fence: how a step that calls a gateway takes effect at most once, and never after its undo (G3, G4).

Every step has one document for each order, `_id` = order id, whose state only moves forward by a conditional write:

    pending -> done -> undone        the step happened, then it was undone
    pending -> void                  the gateway refused it for good, or the undo came first
               void -> undone        but the gateway had heard of it all the same (its reply was lost, or an attempt
                                     was late), and took it back

MongoDB decides every race by these writes. An undo that comes first leaves `void`, and the attempt that comes late runs
into it: it stops, and takes back what it already did at the gateway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pymongo import ReturnDocument
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from app.gateways import Refused
from app.models import Failure, OrderStatus, StepName

if TYPE_CHECKING:
    from app.mongo import Collection, Document
    from app.orders import Orders

PENDING = "pending"
VOID = "void"
FENCED = Failure(code="fenced", message="this step was undone before it took effect")
FENCE_LIFETIME = timedelta(days=30)  # far longer than any attempt can be late: the longest retries for 7 days


def refusal(failure: Failure) -> ApplicationError:
    """The error of a step that will never succeed: its type is the failure's code, and it is not retried.

    It is an outcome of business, hence benign: not logged as an error, nor counted as one.
    """
    return ApplicationError(
        failure.message, type=failure.code, non_retryable=True, category=ApplicationErrorCategory.BENIGN
    )


def fence_expiry() -> datetime:
    """When MongoDB's TTL index may forget a fence that guards nothing any more."""
    return datetime.now(UTC) + FENCE_LIFETIME


class Ledger:
    """The documents of one step, and what it says on the order.

    Args:
        done, undone: the step's own words for the two states, such as `charged` and `refunded`.
        status: what the order becomes when the step is done.
    """

    def __init__(
        self,
        entries: Collection,
        orders: Orders,
        step: StepName,
        *,
        done: str,
        undone: str,
        status: OrderStatus,
    ) -> None:
        self._entries = entries
        self._orders = orders
        self._step = step
        self._done = done
        self._undone = undone
        self._status = status

    async def perform(
        self,
        order_id: str,
        call: Callable[[], Awaitable[str]],
        take_back: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Do the step once. `call` asks the gateway and returns its reference; `take_back` undoes that at the gateway.

        Raises:
            ApplicationError: not retryable; the gateway refused, or the undo came first.
        """
        entry = await self._open(order_id)
        if entry["state"] == PENDING:
            try:
                reference = await call()
            except Refused as refused:
                failure = Failure(code=refused.code, message=str(refused))
                entry = await self._move(order_id, [PENDING], VOID, failure=failure.model_dump())
            else:
                entry = await self._move(order_id, [PENDING], self._done, reference=reference)
                if entry["state"] != self._done and take_back is not None:
                    entry = await self._take_back(order_id, take_back)
        await self._tell(order_id, entry)
        if entry["state"] != self._done:
            raise refusal(Failure.model_validate(entry.get("failure") or FENCED))

    async def undo(self, order_id: str, take_back: Callable[[], Awaitable[bool]]) -> None:
        """Undo the step once, or see to it that it cannot take effect any more.

        The fence comes first, the gateway second: an attempt under way then finds one or the other.
        """
        await self._open(order_id)
        entry = await self._move(order_id, [PENDING], VOID)
        if entry["state"] != self._undone:
            entry = await self._take_back(order_id, take_back)
        await self._tell(order_id, entry)

    async def _take_back(self, order_id: str, take_back: Callable[[], Awaitable[bool]]) -> Document:
        had_effect = await take_back()
        return await self._move(order_id, [self._done, VOID] if had_effect else [self._done], self._undone)

    async def _tell(self, order_id: str, entry: Document) -> None:
        """Say on the order what the document says. Repeated after a crash, it says the same again."""
        if entry["state"] == self._done:
            detail = f"{self._done} {entry['reference']}"
            await self._orders.step_done(order_id, self._step, self._status, detail)
        elif entry["state"] == self._undone:
            await self._orders.step_undone(order_id, self._step, self._undone)
        else:
            failure = entry.get("failure")
            await self._orders.step_failed(
                order_id, self._step, failure["message"] if failure else "did not take effect"
            )

    async def _open(self, order_id: str) -> Document:
        entry = await self._entries.find_one_and_update(
            {"_id": order_id},
            {"$setOnInsert": {"state": PENDING, "at": datetime.now(UTC)}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        assert entry is not None  # upsert: there is one
        return entry

    async def _move(self, order_id: str, before: list[str], after: str, **facts: object) -> Document:
        """Move the document forward if it stands at one of `before`, and return it as it is then, moved or not."""
        fields = {"state": after, "at": datetime.now(UTC), **facts}
        update: Document = {"$set": fields, "$unset": {"expires_at": ""}}
        if after == VOID:  # as far as is known it never took effect: only such a document may be forgotten
            update = {"$set": {**fields, "expires_at": fence_expiry()}}
        moved = await self._entries.find_one_and_update(
            {"_id": order_id, "state": {"$in": before}}, update, return_document=ReturnDocument.AFTER
        )
        return moved or await self._open(order_id)
