"""Charge and shipment: at most once, and never after their undo, whatever overlaps (G3, G4, G6).

Every test runs for both steps, and with two services: the sandbox, which refuses what comes after its undo, and one
that does not, for which the late attempt itself has to take back what it did.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.errors import PyMongoError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from app.activities.payments import Payments
from app.activities.shipping import Shipping
from app.gateways import Refused
from app.gateways.sandbox import SandboxCarrier, SandboxPayments
from app.models import Order, OrderRef, OrderStatus, StepName, StepRecord
from app.mongo import Collection, Document, Mongo
from app.orders import Orders
from tests.activities.faults import AFTER_THE_EFFECT, BEFORE_THE_EFFECT, Outside, PlainService, failing
from tests.support import ADDRESS, eventually, order_document

HELD_AT = ["before the gateway acts", "after the gateway acted"]
FAULTS: dict[str, Document] = {"before": BEFORE_THE_EFFECT, "after": AFTER_THE_EFFECT}


@dataclass
class Stage:
    """One step, its undo, and what lies behind them."""

    mongo: Mongo
    orders: Orders
    outside: Outside
    plain: PlainService | None
    name: StepName
    activity: Callable[[OrderRef], Awaitable[None]]
    undo_activity: Callable[[OrderRef], Awaitable[None]]
    entries: Collection
    done: str
    undone: str

    async def order(self, **changes: Any) -> str:
        document = order_document(**changes)
        await self.mongo.orders.insert_one(document)
        order_id: str = document["_id"]
        return order_id

    async def attempt(self, order_id: str) -> str:
        """Run the step. Returns `done`, or the code with which it will never succeed."""
        try:
            await ActivityEnvironment().run(self.activity, OrderRef(order_id=order_id))
        except ApplicationError as error:
            return f"{error.type}" if error.non_retryable else "retried"
        return "done"

    async def undo(self, order_id: str) -> None:
        """As the saga does it: the order is `compensating` by then."""
        await self.orders.mark(order_id, OrderStatus.COMPENSATING, None)
        await self.undo_once(order_id)

    async def undo_once(self, order_id: str) -> None:
        await ActivityEnvironment().run(self.undo_activity, OrderRef(order_id=order_id))

    async def entry(self, order_id: str) -> Document:
        return await self.entries.find_one({"_id": order_id}) or {}

    async def books(self, order_id: str) -> tuple[bool, bool]:
        """Whether the service ever took (money, a parcel), and whether it gave that back; both happen at most once."""
        if self.plain:
            return order_id in self.plain.taken, order_id in self.plain.returned
        kind, took, gave = (
            ("payment", "captured", "refunded")
            if self.name is StepName.CHARGE_PAYMENT
            else ("shipment", "shipped", "called_off")
        )
        book = await self.mongo.sandbox.find_one({"_id": f"{kind}:{order_id}"}) or {}
        assert book.get(gave, 0) in {0, book.get(took, 0)}  # all of it or nothing
        return bool(book.get(took)), bool(book.get(gave))

    async def timeline(self, order_id: str) -> tuple[OrderStatus, StepRecord | None]:
        order: Order = await self.orders.require(order_id)
        return order.status, next((step for step in order.steps if step.step is self.name), None)

    async def is_done(self, order_id: str) -> None:
        """Done once, and document, service and order all say so."""
        entry = await self.entry(order_id)
        assert entry["state"] == self.done
        assert "expires_at" not in entry
        assert await self.books(order_id) == (True, False)
        status, step = await self.timeline(order_id)
        assert status in {OrderStatus.CHARGED, OrderStatus.SHIPPED}
        assert step is not None
        assert (step.status, step.detail) == ("done", f"{self.done} {entry['reference']}")

    async def is_undone(self, order_id: str) -> None:
        """Nothing is left of it, and document, service and order agree whether there ever was anything."""
        entry = await self.entry(order_id)
        status, step = await self.timeline(order_id)
        assert status is OrderStatus.COMPENSATING
        assert step is not None
        took, gave = await self.books(order_id)
        assert gave == took
        assert (entry["state"], step.status) == ((self.undone, "undone") if took else ("void", "failed"))
        # What had an effect is kept for good; a fence that guards nothing any more is forgotten one day.
        assert ("expires_at" in entry) == (not took)
        if not took:
            assert entry["expires_at"] > datetime.now(UTC)


@pytest.fixture(params=["payment", "shipment"])
def step(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["fencing service", "plain service"])
def stage(request: pytest.FixtureRequest, step: str, mongo: Mongo) -> Stage:
    orders = Orders(mongo)
    plain = PlainService() if request.param == "plain service" else None
    sandboxes = SandboxPayments(mongo.sandbox), SandboxCarrier(mongo.sandbox)
    outside = Outside(plain, plain) if plain else Outside(*sandboxes)
    if step == "payment":
        charges = Payments(mongo, orders, outside)
        do, undo, entries, words = charges.charge, charges.refund, mongo.payments, ("charged", "refunded")
        name = StepName.CHARGE_PAYMENT
    else:
        shipping = Shipping(mongo, orders, outside)
        do, undo, entries, words = shipping.create, shipping.cancel, mongo.shipments, ("created", "cancelled")
        name = StepName.CREATE_SHIPMENT
    return Stage(mongo, orders, outside, plain, name, do, undo, entries, *words)


async def test_done_once_however_often_it_is_tried(stage: Stage) -> None:
    order_id = await stage.order()
    assert await stage.attempt(order_id) == "done"
    first = await stage.timeline(order_id)
    assert await stage.attempt(order_id) == "done"
    assert stage.outside.calls == 1  # the document is enough to know
    assert await stage.timeline(order_id) == first
    await stage.is_done(order_id)


@pytest.mark.parametrize("held_at", HELD_AT)
async def test_two_attempts_overlap(stage: Stage, held_at: str) -> None:
    order_id = await stage.order()
    gate = stage.outside.hold_next(held_at)
    late = asyncio.create_task(stage.attempt(order_id))
    await gate.reached()
    assert await stage.attempt(order_id) == "done"
    gate.open()
    assert await late == "done"
    await stage.is_done(order_id)


@pytest.mark.parametrize("held_at", HELD_AT)
async def test_an_attempt_is_held_while_its_retry_and_the_undo_run(stage: Stage, held_at: str) -> None:
    order_id = await stage.order()
    gate = stage.outside.hold_next(held_at)
    late = asyncio.create_task(stage.attempt(order_id))
    await gate.reached()
    assert await stage.attempt(order_id) == "done"
    await stage.undo(order_id)
    gate.open()
    assert await late == "fenced"
    await stage.is_undone(order_id)
    assert await stage.books(order_id) == (True, True)


@pytest.mark.parametrize("held_at", HELD_AT)
async def test_an_attempt_is_held_while_the_undo_runs(stage: Stage, held_at: str) -> None:
    order_id = await stage.order()
    gate = stage.outside.hold_next(held_at)
    late = asyncio.create_task(stage.attempt(order_id))
    await gate.reached()
    await stage.undo(order_id)
    gate.open()
    assert await late == "fenced"
    await stage.is_undone(order_id)
    # Only the service that refuses nothing was reached before the fence was seen, and then took it back.
    took, _ = await stage.books(order_id)
    assert took == (held_at == HELD_AT[1] or stage.plain is not None)

    assert await stage.attempt(order_id) == "fenced"
    await stage.undo(order_id)
    await stage.is_undone(order_id)


async def test_the_undo_overtakes_the_last_write_of_an_attempt(stage: Stage) -> None:
    """Between the step's own document and the order there is a moment; what the order is told late changes nothing."""
    order_id = await stage.order()
    await stage.orders.mark(order_id, OrderStatus.COMPENSATING, None)
    async with failing(stage.mongo, "update", mode={"times": 1}, blockConnection=True, blockTimeMS=500):
        late = asyncio.create_task(stage.attempt(order_id))
        await eventually(lambda: stage.entry(order_id), lambda entry: entry.get("state") == stage.done)
        await stage.undo_once(order_id)
        assert not late.done()
        assert await late == "done"
    await stage.is_undone(order_id)


async def test_the_undo_comes_first(stage: Stage) -> None:
    order_id = await stage.order()
    await stage.undo(order_id)
    assert await stage.attempt(order_id) == "fenced"
    assert stage.outside.calls == 0
    await stage.is_undone(order_id)


async def test_undone_once_however_often_it_is_tried(stage: Stage) -> None:
    order_id = await stage.order()
    assert await stage.attempt(order_id) == "done"
    await stage.undo(order_id)
    first = await stage.timeline(order_id)
    await stage.undo(order_id)
    await asyncio.gather(*(stage.undo(order_id) for _ in range(4)))
    assert await stage.timeline(order_id) == first
    await stage.is_undone(order_id)


async def test_attempts_and_undos_in_any_order_at_once(stage: Stage) -> None:
    order_ids = [await stage.order() for _ in range(10)]
    work = [
        run(order_id)
        for order_id in order_ids
        for run in (stage.attempt, stage.attempt, stage.attempt, stage.undo, stage.undo)
    ]
    random.shuffle(work)
    await asyncio.gather(*work)
    for order_id in order_ids:
        await stage.is_undone(order_id)


async def test_the_reply_of_the_service_is_lost(stage: Stage) -> None:
    done, undone = await stage.order(), await stage.order()
    stage.outside.lost_replies = 2
    for order_id in (done, undone):
        with pytest.raises(ConnectionResetError):
            await stage.attempt(order_id)
    assert await stage.attempt(done) == "done"
    await stage.is_done(done)
    await stage.undo(undone)  # no attempt ever saw that it took effect
    await stage.is_undone(undone)
    assert await stage.books(undone) == (True, True)


async def test_a_refusal_stays_the_same_refusal(stage: Stage) -> None:
    """Whether it gets lost on its way from the service, or between the step's document and the order."""
    order_id = await stage.order(
        payment_method="pm_card_declined", shipping_address={**ADDRESS, "postal_code": "00000"}
    )
    code = "payment_declined" if stage.name is StepName.CHARGE_PAYMENT else "address_unserviceable"
    if stage.plain:  # it takes any card and address: let it refuse, once, and be asked no more
        stage.outside.instead = [_refusal(code, "no")]
    async with failing(stage.mongo, "update", **BEFORE_THE_EFFECT):
        with pytest.raises(PyMongoError):
            await stage.attempt(order_id)
    assert await stage.attempt(order_id) == code
    assert await stage.attempt(order_id) == code
    assert stage.outside.calls == 1
    _, before = await stage.timeline(order_id)
    await stage.undo(order_id)
    _, after = await stage.timeline(order_id)
    assert before == after
    await stage.is_undone(order_id)


async def test_one_attempt_is_refused_and_an_overlapping_one_is_not(stage: Stage) -> None:
    """A service that answers a key in two ways breaks its contract; no money may be left with it all the same."""
    order_id = await stage.order()
    gate = stage.outside.hold_next("after the gateway acted")
    late = asyncio.create_task(stage.attempt(order_id))
    await gate.reached()
    stage.outside.instead = [_refusal("limit_exceeded", "no")]
    assert await stage.attempt(order_id) == "limit_exceeded"
    gate.open()
    assert await late == "limit_exceeded"
    await stage.undo(order_id)
    await stage.is_undone(order_id)


async def test_an_attempt_dies_between_any_two_commands(stage: Stage) -> None:
    """MongoDB goes away at each command, before it or after its effect; then the step runs again, or its undo."""
    points = 0
    for fault, after_commands in itertools.product(FAULTS, range(6)):
        again, undone = await stage.order(), await stage.order()
        if not await _dies(stage, stage.attempt(again), fault, after_commands):
            continue
        assert await _dies(stage, stage.attempt(undone), fault, after_commands)
        points += 1
        assert await stage.attempt(again) == "done"
        await stage.is_done(again)
        await stage.undo(undone)
        assert await stage.attempt(undone) == "fenced"
        await stage.is_undone(undone)
    # Read the order, open the document, move the document, tell the order; a read has no effect to die after.
    settles_the_address = stage.name is StepName.CREATE_SHIPMENT  # then that is no mere read
    in_the_books = stage.plain is None  # the sandbox's books are in MongoDB, too
    assert points == 4 + 3 + settles_the_address + 2 * in_the_books


@pytest.mark.parametrize("begun", ["done", "never begun", "reply lost"])
async def test_an_undo_dies_between_any_two_commands(stage: Stage, begun: str) -> None:
    points = 0
    for fault, after_commands in itertools.product(FAULTS, range(6)):
        order_id = await stage.order()
        if begun == "done":
            assert await stage.attempt(order_id) == "done"
        elif begun == "reply lost":
            stage.outside.lost_replies = 1
            with pytest.raises(ConnectionResetError):
                await stage.attempt(order_id)
        await stage.orders.mark(order_id, OrderStatus.COMPENSATING, None)
        points += await _dies(stage, stage.undo_once(order_id), fault, after_commands)
        await stage.undo(order_id)
        await stage.is_undone(order_id)
        assert await stage.books(order_id) == ((False, False) if begun == "never begun" else (True, True))
    assert points >= len(FAULTS) * 4


async def test_many_begin_at_the_same_instant(stage: Stage) -> None:
    order_id = await stage.order()
    assert set(await asyncio.gather(*(stage.attempt(order_id) for _ in range(10)))) == {"done"}
    await stage.is_done(order_id)


async def test_fences_are_forgotten_by_a_ttl_index(mongo: Mongo) -> None:
    await mongo.create_indexes()
    await mongo.create_indexes()
    for name in ("reservations", "payments", "shipments", "notifications"):
        indexes = await mongo.database[name].index_information()
        assert indexes["expires_at_1"]["expireAfterSeconds"] == 0


def _refusal(code: str, message: str) -> Refused:
    refused = Refused(message)
    refused.code = code
    return refused


async def _dies(stage: Stage, work: Awaitable[object], fault: str, after_commands: int) -> bool:
    """Run it on a MongoDB that goes away after so many commands. Whether it died of that, or needs no more of them."""
    try:
        async with failing(
            stage.mongo, "find", "findAndModify", "update", mode={"skip": after_commands}, **FAULTS[fault]
        ):
            await work
    except PyMongoError:
        return True
    return False
