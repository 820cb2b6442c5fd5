"""Charge and shipment: at most once, and never after their compensation, whatever overlaps (G3, G4, G6).

Every test runs for both steps, and with two services: the sandbox, which refuses what comes after its compensation, and
one that does not, for which a late attempt itself takes back what it did.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.errors import PyMongoError
from temporalio.exceptions import ApplicationError

from app.activities.payments import Payments
from app.activities.shipping import Shipping
from app.domain import STATUS_AFTER, NotFound, OrderStatus, StepName, StepRecord
from app.gateways import Declined, Misconfigured
from app.gateways.sandbox import SandboxCarrier, SandboxPayments
from app.messages import OrderRef, StatusUpdate
from app.mongo import Document, Mongo
from app.orders import OrderRepository
from tests.kit.attempts import SCHEDULED, STARTED, attempt, outcome
from tests.kit.faults import (
    AFTER_THE_EFFECT,
    BEFORE_THE_EFFECT,
    FaultyServices,
    PlainService,
    failing,
    recorded_commands,
)
from tests.kit.orders import ADDRESS, order_document
from tests.kit.shop import dependencies
from tests.kit.waiting import eventually

HELD_AT = ["before the gateway acts", "after the gateway acted"]
FAULTS: dict[str, Document] = {"before": BEFORE_THE_EFFECT, "after": AFTER_THE_EFFECT}
CHARGE, SHIP = StepName.CHARGE_PAYMENT, StepName.CREATE_SHIPMENT
SHIPPED = OrderStatus.SHIPPED


@dataclass
class Stage:
    """One step, its compensation, and the services and documents behind them."""

    mongo: Mongo
    orders: OrderRepository
    services: FaultyServices
    plain: PlainService | None
    name: StepName
    activity: Callable[[OrderRef], Awaitable[None]]
    compensation: Callable[[OrderRef], Awaitable[None]]

    async def order(self, **changes: Any) -> str:
        """An order that has come to this step."""
        before = list(StepName)[: list(StepName).index(self.name)]
        done = {"status": "done", "first_attempt_at": STARTED, "at": STARTED, "attempts": 1, "detail": "-"}
        status = STATUS_AFTER[before[-1]].value
        document = order_document(**{"status": status, "steps": dict.fromkeys(before, done), **changes})
        await self.mongo.orders.insert_one(document)
        order_id: str = document["_id"]
        return order_id

    async def attempt(self, order_id: str, number: int = 1) -> str:
        """Run the step: `done`, or the code of its final failure."""
        return await outcome(self.activity, order_id, number)

    async def compensate(self, order_id: str) -> None:
        """As the saga does it: the order is `compensating` by then."""
        before = await self.record(order_id)
        await self.orders.update_status(StatusUpdate(order_id=order_id, status=OrderStatus.COMPENSATING))
        await self.compensate_only(order_id)
        if before:  # nothing of the timeline is overwritten
            assert _without_compensation(await self.record(order_id)) == _without_compensation(before)

    async def compensate_only(self, order_id: str) -> None:
        await attempt(self.compensation, OrderRef(order_id=order_id), 7)

    async def record(self, order_id: str) -> Document:
        document = await self.mongo.orders.find_one({"_id": order_id}) or {}
        record: Document = document.get("steps", {}).get(self.name, {})
        return record

    async def books(self, order_id: str) -> tuple[bool, bool]:
        """Whether the service ever took money or a parcel, and whether it returned it; each at most once."""
        if self.plain:
            return order_id in self.plain.taken, order_id in self.plain.returned
        kind, took, returned = (
            ("payment", "captured", "refunded") if self.name is CHARGE else ("shipment", "shipped", "called_off")
        )
        book = await self.mongo.sandbox.find_one({"_id": f"{kind}:{order_id}"}) or {}
        assert book.get(returned, 0) in {0, book.get(took, 0)}  # all of it or nothing
        return bool(book.get(took)), bool(book.get(returned))

    async def timeline(self, order_id: str) -> tuple[OrderStatus, StepRecord | None]:
        order = await self.orders.get(order_id)
        return order.status, order.step(self.name)

    async def is_done(self, order_id: str, attempts: int = 1) -> None:
        """Done once; timeline and service say so."""
        assert await self.books(order_id) == (True, False)
        status, record = await self.timeline(order_id)
        assert status is STATUS_AFTER[self.name]
        assert record is not None
        assert (record.status, record.attempts, record.compensated_at, record.failure) == ("done", attempts, None, None)
        assert record.first_attempt_at == (STARTED if attempts == 1 else SCHEDULED)
        _is_recent(record.at)
        assert record.detail.endswith(order_id)  # the service's reference

    async def is_compensated(self, order_id: str) -> None:
        """Nothing is left of it; timeline and service agree on whether there ever was an effect."""
        status, record = await self.timeline(order_id)
        # A shipped order is not compensated any more; the fence must hold whether or not the order says so.
        assert status in ({OrderStatus.COMPENSATING} if self.name is CHARGE else {OrderStatus.COMPENSATING, SHIPPED})
        assert record is not None
        took, returned = await self.books(order_id)
        assert returned == took
        assert record.status == ("compensated" if took else "failed")
        assert (record.compensated_at is not None) == took
        _is_recent(record.at)
        if record.compensated_at:
            _is_recent(record.compensated_at)
            assert record.at <= record.compensated_at


def _is_recent(time: datetime) -> None:
    assert abs(datetime.now(UTC) - time).total_seconds() < 60


def _without_compensation(record: Document) -> Document:
    return {field: value for field, value in record.items() if field not in {"status", "compensated_at"}}


@pytest.fixture(params=["payment", "shipment"])
def step(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["fencing service", "plain service"])
def stage(request: pytest.FixtureRequest, step: str, mongo: Mongo) -> Stage:
    plain = PlainService() if request.param == "plain service" else None
    sandboxes = SandboxPayments(mongo.sandbox), SandboxCarrier(mongo.sandbox)
    services = FaultyServices(plain, plain) if plain else FaultyServices(*sandboxes)
    needed = dependencies(mongo, payments=services, carrier=services)
    if step == "payment":
        payments = Payments(needed)
        return Stage(mongo, needed.orders, services, plain, CHARGE, payments.charge, payments.refund)
    shipping = Shipping(needed)
    return Stage(mongo, needed.orders, services, plain, SHIP, shipping.create, shipping.cancel)


# --- attempts and compensations that overlap


async def test_repeated_attempt_takes_effect_once(stage: Stage) -> None:
    order_id = await stage.order()
    assert await stage.attempt(order_id) == "done"
    first = await stage.record(order_id)
    assert await stage.attempt(order_id, 2) == "done"
    assert stage.services.calls == 1  # the document is enough to know
    assert await stage.record(order_id) == first
    await stage.is_done(order_id)


@pytest.mark.parametrize("held_at", HELD_AT)
async def test_two_overlapping_attempts_take_effect_once(stage: Stage, held_at: str) -> None:
    order_id = await stage.order()
    gate = stage.services.hold_next(held_at)
    late = asyncio.create_task(stage.attempt(order_id))
    await gate.reached()
    assert await stage.attempt(order_id, 2) == "done"
    gate.open()
    assert await late == "done"
    await stage.is_done(order_id, attempts=2)


@pytest.mark.parametrize("held_at", HELD_AT)
async def test_attempt_held_during_retry_and_compensation_is_fenced(stage: Stage, held_at: str) -> None:
    order_id = await stage.order()
    gate = stage.services.hold_next(held_at)
    late = asyncio.create_task(stage.attempt(order_id))
    await gate.reached()
    assert await stage.attempt(order_id, 2) == "done"
    await stage.compensate(order_id)
    gate.open()
    assert await late == "fenced"
    await stage.is_compensated(order_id)
    assert await stage.books(order_id) == (True, True)


@pytest.mark.parametrize("held_at", HELD_AT)
async def test_attempt_held_during_compensation_is_fenced(stage: Stage, held_at: str) -> None:
    order_id = await stage.order()
    gate = stage.services.hold_next(held_at)
    late = asyncio.create_task(stage.attempt(order_id))
    await gate.reached()
    await stage.compensate(order_id)
    gate.open()
    assert await late == "fenced"
    await stage.is_compensated(order_id)
    # Only the service that refuses nothing acts after the fence; the attempt then takes it back.
    took, _ = await stage.books(order_id)
    assert took == (held_at == HELD_AT[1] or stage.plain is not None)

    assert await stage.attempt(order_id, 2) == "fenced"
    await stage.compensate(order_id)
    await stage.is_compensated(order_id)


@pytest.mark.parametrize("held_at", HELD_AT)
async def test_attempt_ending_between_fence_and_refund_is_fenced(stage: Stage, held_at: str) -> None:
    order_id = await stage.order()
    gate = stage.services.hold_next(held_at)
    late = asyncio.create_task(stage.attempt(order_id))
    await gate.reached()
    compensation_gate = stage.services.hold_next_compensation()
    compensation = asyncio.create_task(stage.compensate(order_id))
    await compensation_gate.reached()
    gate.open()
    assert await late == "fenced"
    compensation_gate.open()
    await compensation
    await stage.is_compensated(order_id)
    assert await stage.books(order_id) == (True, True)


async def test_compensation_before_attempt_fences_every_attempt(stage: Stage) -> None:
    order_id = await stage.order()
    await stage.compensate(order_id)
    assert await stage.attempt(order_id) == "fenced"
    assert stage.services.calls == 0
    await stage.is_compensated(order_id)
    record = await stage.record(order_id)
    assert (record["detail"], record.get("attempts"), record.get("first_attempt_at")) == (
        "stopped before it took effect",
        None,
        None,
    )
    _, shown = await stage.timeline(order_id)
    assert shown is not None
    assert shown.interrupted
    assert shown.attempts == 0


async def test_fence_stops_attempt_before_gateway_call(stage: Stage) -> None:
    """Also where the order itself does not say that it was stopped."""
    order_id = await stage.order()
    await stage.compensate_only(order_id)
    assert await stage.attempt(order_id) == "fenced"
    assert stage.services.calls == 0


async def test_repeated_compensation_takes_effect_once(stage: Stage) -> None:
    order_id = await stage.order()
    assert await stage.attempt(order_id, 3) == "done"
    await stage.compensate(order_id)
    first = await stage.record(order_id)
    assert (first["first_attempt_at"], first["attempts"]) == (SCHEDULED, 3)
    assert first["at"] <= first["compensated_at"]
    await stage.compensate(order_id)
    await asyncio.gather(*(stage.compensate(order_id) for _ in range(4)))
    assert await stage.record(order_id) == first
    await stage.is_compensated(order_id)


async def test_simultaneous_attempts_and_compensations_leave_no_effect(stage: Stage) -> None:
    order_ids = [await stage.order() for _ in range(10)]
    work = [
        run(order_id)
        for order_id in order_ids
        for run in (stage.attempt, stage.attempt, stage.attempt, stage.compensate, stage.compensate)
    ]
    random.shuffle(work)
    await asyncio.gather(*work)
    for order_id in order_ids:
        await stage.is_compensated(order_id)


async def test_ten_simultaneous_attempts_take_effect_once(stage: Stage) -> None:
    order_id = await stage.order()
    assert set(await asyncio.gather(*(stage.attempt(order_id) for _ in range(10)))) == {"done"}
    await stage.is_done(order_id)


# --- replies, refusals


async def test_effect_with_lost_reply_is_found_by_retry_and_compensation(stage: Stage) -> None:
    done, compensated = await stage.order(), await stage.order()
    stage.services.lost_replies = 2
    for order_id in (done, compensated):
        with pytest.raises(ConnectionResetError):
            await stage.attempt(order_id)
    assert await stage.attempt(done, 2) == "done"
    await stage.is_done(done, attempts=2)
    await stage.compensate(compensated)  # no attempt ever saw that it took effect
    await stage.is_compensated(compensated)
    assert await stage.books(compensated) == (True, True)


@pytest.mark.parametrize("fault", FAULTS)
async def test_repeated_attempt_returns_the_same_decline(stage: Stage, fault: str) -> None:
    """Also when its record was lost, or the reply to it."""
    order_id = await stage.order(
        payment_method="pm_card_declined", shipping_address={**ADDRESS, "postal_code": "00000"}
    )
    code = "payment_declined" if stage.name is CHARGE else "address_unserviceable"
    if stage.plain:  # it accepts any card and address
        stage.services.errors = [_declined(code), _declined(code)]
    async with failing(stage.mongo, "findAndModify", **FAULTS[fault]):
        with pytest.raises(PyMongoError):
            await stage.attempt(order_id)
    if fault == "after":  # on the majority within a moment
        await eventually(lambda: stage.record(order_id))
    assert await stage.attempt(order_id, 2) == code
    assert await stage.attempt(order_id, 3) == code
    # A record that was written is enough to know.
    assert stage.services.calls == (2 if fault == "before" else 1)
    record = await stage.record(order_id)
    assert record["failure"]["code"] == code
    assert record["attempts"] == (2 if fault == "before" else 1)
    await stage.compensate(order_id)
    assert await stage.record(order_id) == record
    _, shown = await stage.timeline(order_id)
    assert shown is not None
    assert not shown.interrupted
    await stage.is_compensated(order_id)


async def test_decline_overlapping_a_success_leaves_no_effect(stage: Stage) -> None:
    """A service that answers a key in two ways breaks its contract; no money may stay with it all the same."""
    order_id = await stage.order()
    gate = stage.services.hold_next("after the gateway acted")
    late = asyncio.create_task(stage.attempt(order_id))
    await gate.reached()
    stage.services.errors = [_declined("limit_exceeded")]
    assert await stage.attempt(order_id, 2) == "limit_exceeded"
    declined = await stage.record(order_id)
    gate.open()
    assert await late == "limit_exceeded"
    assert _without_compensation(await stage.record(order_id)) == _without_compensation(declined)
    await stage.compensate(order_id)
    await stage.is_compensated(order_id)


async def test_misconfigured_service_is_not_retried_and_only_logged(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    order_id = await stage.order()
    stage.services.errors = [Misconfigured("wrong API key sk_live_…")]
    with caplog.at_level(logging.ERROR, logger="app.activities.order_step"), pytest.raises(ApplicationError) as error:
        await attempt(stage.activity, OrderRef(order_id=order_id))
    assert error.value.non_retryable
    assert (error.value.type, error.value.message) == ("misconfigured", "the service is misconfigured")
    (entry,) = caplog.records
    assert all(word in entry.getMessage() for word in (order_id, stage.name, "wrong API key sk_live_…"))
    assert await stage.record(order_id) == {}  # nothing is known of an effect: the compensation asks the service

    stage.services.compensation_errors = [Misconfigured("wrong API key"), Misconfigured("wrong API key")]
    for _ in range(2):
        with pytest.raises(Misconfigured):  # Temporal retries it, until the key is right
            await stage.compensate(order_id)
    await stage.compensate(order_id)
    await stage.is_compensated(order_id)


# --- cancels


async def test_cancel_during_gateway_call_stops_the_step(stage: Stage) -> None:
    order_id = await stage.order()
    before, _ = await stage.timeline(order_id)
    gate = stage.services.hold_next("after the gateway acted")
    late = asyncio.create_task(stage.attempt(order_id))
    await gate.reached()
    cancelled = await stage.orders.request_cancellation(order_id, "changed my mind")
    assert cancelled.cancellation is not None
    gate.open()
    assert await late == "cancelled"
    status, record = await stage.timeline(order_id)
    assert status is before  # not shipped: the cancel was accepted
    assert record is not None
    assert record.status == "done"
    assert await stage.attempt(order_id, 2) == "cancelled"
    await stage.compensate(order_id)
    await stage.is_compensated(order_id)
    assert await stage.books(order_id) == (True, True)


async def test_cancel_before_attempt_stops_it(stage: Stage) -> None:
    order_id = await stage.order()
    await stage.orders.request_cancellation(order_id, "changed my mind")
    with pytest.raises(ApplicationError, match=r"^cancelled: cancelled$"):
        await attempt(stage.activity, OrderRef(order_id=order_id))
    assert stage.services.calls == 0
    assert await stage.record(order_id) == {}


async def test_cancel_after_step_is_refused_only_once_shipped(stage: Stage) -> None:
    order_id = await stage.order()
    assert await stage.attempt(order_id) == "done"
    order = await stage.orders.request_cancellation(order_id, "changed my mind")
    assert (order.cancellation is not None) == (stage.name is CHARGE)
    assert await stage.attempt(order_id) == ("cancelled" if stage.name is CHARGE else "done")
    await stage.is_done(order_id)


async def test_simultaneous_cancels_and_attempts_agree(stage: Stage) -> None:
    """Either the cancel was accepted and the step raises, or the order has moved on and the step is done."""
    order_ids = [await stage.order() for _ in range(20)]

    async def race(order_id: str) -> tuple[str, bool]:
        result, order = await asyncio.gather(
            stage.attempt(order_id), stage.orders.request_cancellation(order_id, "changed my mind")
        )
        return result, order.cancellation is not None

    for order_id, (result, accepted) in zip(order_ids, await asyncio.gather(*map(race, order_ids)), strict=True):
        status, _ = await stage.timeline(order_id)
        if stage.name is SHIP:
            assert (result, accepted, status) in {("done", False, "shipped"), ("cancelled", True, "charged")}
        else:  # a charged order can still be cancelled
            assert accepted
            assert (result, status) in {("done", "charged"), ("cancelled", "reserved"), ("cancelled", "charged")}


# --- orders that are gone


async def test_removed_order_is_not_attempted(stage: Stage) -> None:
    with pytest.raises(NotFound):
        await stage.attempt("gone")
    assert stage.services.calls == 0


async def test_order_removed_during_gateway_call_is_compensated(stage: Stage) -> None:
    order_id = await stage.order()
    gate = stage.services.hold_next("after the gateway acted")
    late = asyncio.create_task(stage.attempt(order_id))
    await gate.reached()
    await stage.mongo.orders.delete_one({"_id": order_id})
    gate.open()
    with pytest.raises(NotFound):
        await late
    await stage.compensate(order_id)
    assert await stage.books(order_id) == (True, True)
    assert await stage.mongo.orders.count_documents({}) == 0  # nothing is made anew


# --- deaths


async def test_attempt_interrupted_at_any_command_can_be_repeated_or_compensated(stage: Stage) -> None:
    """MongoDB goes away at each command, before it or after its effect; then the step runs again, or is compensated."""
    points = 0
    for fault, after_commands in itertools.product(FAULTS, range(5)):
        again, compensated = await stage.order(), await stage.order()
        if not await _dies(stage, stage.attempt(again), fault, after_commands):
            continue
        assert await _dies(stage, stage.attempt(compensated), fault, after_commands)
        points += 1
        assert await stage.attempt(again) == "done"
        await stage.is_done(again)
        await stage.compensate(compensated)
        assert await stage.attempt(compensated) == "fenced"
        await stage.is_compensated(compensated)
    # Read the order, write the record; a read has no effect to die after. The sandbox's books are in MongoDB as well.
    assert points == 2 + 1 + 2 * (stage.plain is None)


@pytest.mark.parametrize("begun", ["done", "never begun", "reply lost"])
async def test_compensation_interrupted_at_any_command_can_be_repeated(stage: Stage, begun: str) -> None:
    points = 0
    for fault, after_commands in itertools.product(FAULTS, range(5)):
        order_id = await stage.order()
        if begun == "done":
            assert await stage.attempt(order_id) == "done"
        elif begun == "reply lost":
            stage.services.lost_replies = 1
            with pytest.raises(ConnectionResetError):
                await stage.attempt(order_id)
        await stage.orders.update_status(StatusUpdate(order_id=order_id, status=OrderStatus.COMPENSATING))
        points += await _dies(stage, stage.compensate_only(order_id), fault, after_commands)
        await stage.compensate(order_id)
        await stage.is_compensated(order_id)
        assert await stage.books(order_id) == ((False, False) if begun == "never begun" else (True, True))
    # The fence, the service's books, and, if there was an effect, its compensation.
    assert points == len(FAULTS) * (1 + (stage.plain is None) + (begun != "never begun"))


@pytest.mark.parametrize("fault", FAULTS)
async def test_late_attempt_interrupted_after_compensation_leaves_no_effect(stage: Stage, fault: str) -> None:
    """The service acted before the compensation; the attempt dies at each command that is left to it."""
    for after_commands in range(3):
        order_id = await stage.order()
        gate = stage.services.hold_next("after the gateway acted")
        late = asyncio.create_task(stage.attempt(order_id))
        await gate.reached()
        await stage.compensate(order_id)
        gate.open()
        with_fault = failing(stage.mongo, "findAndModify", mode={"skip": after_commands}, **FAULTS[fault])
        try:
            async with with_fault:
                await late
        except PyMongoError:
            assert await stage.attempt(order_id, 2) == "fenced"
        await stage.is_compensated(order_id)
        assert await stage.books(order_id) == (True, True)


# --- costs


async def test_attempt_costs_one_read_and_one_majority_write(stage: Stage) -> None:
    order_id = await stage.order()
    async with recorded_commands(stage.mongo) as commands:
        assert await stage.attempt(order_id) == "done"
    read, write = [entry["command"] for entry in commands]
    assert (read["find"], read["readConcern"]["level"]) == ("orders", "majority")
    assert (write["findAndModify"], write["writeConcern"]["w"]) == ("orders", "majority")

    async with recorded_commands(stage.mongo) as commands:
        assert await stage.attempt(order_id, 2) == "done"
    assert [next(iter(entry["command"])) for entry in commands] == ["find"]

    async with recorded_commands(stage.mongo) as commands:
        await stage.compensate_only(order_id)
    assert [next(iter(entry["command"])) for entry in commands] == ["findAndModify", "findAndModify"]


def _declined(code: str) -> Declined:
    declined = Declined("no")
    declined.code = code
    return declined


async def _dies(stage: Stage, work: Awaitable[object], fault: str, after_commands: int) -> bool:
    """Run it on a MongoDB that goes away after so many commands; whether it died of that."""
    try:
        async with failing(
            stage.mongo, "find", "findAndModify", "update", mode={"skip": after_commands}, **FAULTS[fault]
        ):
            await work
    except PyMongoError:
        return True
    return False
