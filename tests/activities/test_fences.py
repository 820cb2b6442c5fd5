"""Charge and shipment take effect at most once, and never after their compensation, even if calls overlap (G3, G4, G6).

Every test runs for both steps and with two services. The sandbox declines a call that arrives after its compensation.
The plain service accepts it, so the late attempt has to compensate its own effect.
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
from app.gateways.sandbox import SandboxCarrier, SandboxPayments, records
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
from tests.kit.orders import ADDRESS, CHARGING, order_document
from tests.kit.shop import dependencies
from tests.kit.waiting import eventually

HELD_AT = ["before the gateway acts", "after the gateway acted"]
FAULTS: dict[str, Document] = {"before": BEFORE_THE_EFFECT, "after": AFTER_THE_EFFECT}
CHARGE, SHIP = StepName.CHARGE_PAYMENT, StepName.CREATE_SHIPMENT
SHIPPED = OrderStatus.SHIPPED


@dataclass
class StepHarness:
    """One step and its compensation, with the service and the database that they use."""

    mongo: Mongo
    orders: OrderRepository
    services: FaultyServices
    plain: PlainService | None
    name: StepName
    activity: Callable[[OrderRef], Awaitable[None]]
    compensation: Callable[[OrderRef], Awaitable[None]]

    async def order(self, **changes: Any) -> str:
        """Insert an order for which this step is next. Returns its id."""
        before = list(StepName)[: list(StepName).index(self.name)]
        done = {"status": "done", "first_attempt_at": STARTED, "at": STARTED, "attempts": 1, "detail": "-"}
        status = STATUS_AFTER[before[-1]].value
        document = order_document(**{"status": status, "steps": dict.fromkeys(before, done), **changes})
        await self.mongo.orders.insert_one(document)
        order_id: str = document["_id"]
        return order_id

    async def attempt(self, order_id: str, number: int = 1) -> str:
        """Run one attempt. Returns `done`, or the code of a non-retryable failure."""
        return await outcome(self.activity, order_id, number)

    async def compensate(self, order_id: str) -> None:
        """Compensate as the saga does: first set the order to `compensating`."""
        before = await self.record(order_id)
        await self.orders.update_status(StatusUpdate(order_id=order_id, status=OrderStatus.COMPENSATING))
        await self.compensate_only(order_id)
        if before:  # the compensation must not overwrite the record
            assert _without_compensation(await self.record(order_id)) == _without_compensation(before)

    async def compensate_only(self, order_id: str) -> None:
        await attempt(self.compensation, OrderRef(order_id=order_id), 7)

    async def record(self, order_id: str) -> Document:
        document = await self.mongo.orders.find_one({"_id": order_id}) or {}
        record: Document = document.get("steps", {}).get(self.name, {})
        return record

    async def effects(self, order_id: str) -> tuple[bool, bool]:
        """Two flags: the service took money or a parcel, and it returned it. Checks that each happened at most once."""
        if self.plain:
            return order_id in self.plain.taken, order_id in self.plain.returned
        kind, took, returned = (
            ("payment", "captured", "refunded") if self.name is CHARGE else ("shipment", "shipped", "called_off")
        )
        record = await records(self.mongo).find_one({"_id": f"{kind}:{order_id}"}) or {}
        assert record.get(returned, 0) in {0, record.get(took, 0)}  # refunded in full or not at all
        return bool(record.get(took)), bool(record.get(returned))

    async def timeline(self, order_id: str) -> tuple[OrderStatus, StepRecord | None]:
        order = await self.orders.get(order_id)
        return order.status, order.step(self.name)

    async def assert_done(self, order_id: str, attempts: int = 1) -> None:
        """Check that record and service agree that the step was done once."""
        assert await self.effects(order_id) == (True, False)
        status, record = await self.timeline(order_id)
        assert status is STATUS_AFTER[self.name]
        assert record is not None
        assert (record.status, record.attempts, record.compensated_at, record.failure) == ("done", attempts, None, None)
        assert record.first_attempt_at == (STARTED if attempts == 1 else SCHEDULED)
        _assert_recent(record.at)
        assert record.detail.endswith(order_id)  # the service's reference

    async def assert_compensated(self, order_id: str) -> None:
        """Check that no effect is left, and that record and service agree on the past effect, if any."""
        status, record = await self.timeline(order_id)
        # In the saga, a shipped order is never compensated. The fence must hold even if one is.
        assert status in ({OrderStatus.COMPENSATING} if self.name is CHARGE else {OrderStatus.COMPENSATING, SHIPPED})
        assert record is not None
        took, returned = await self.effects(order_id)
        assert returned == took
        assert record.status == ("compensated" if took else "failed")
        assert (record.compensated_at is not None) == took
        _assert_recent(record.at)
        if record.compensated_at:
            _assert_recent(record.compensated_at)
            assert record.at <= record.compensated_at


def _assert_recent(time: datetime) -> None:
    assert abs(datetime.now(UTC) - time).total_seconds() < 60


def _without_compensation(record: Document) -> Document:
    return {field: value for field, value in record.items() if field not in {"status", "compensated_at"}}


# A normal run has each step and each kind of service; `--exhaustive` has all four combinations.
COMBINATIONS = [
    pytest.param((step, service), id=f"{service}-{step}", marks=() if chosen else pytest.mark.exhaustive)
    for step, service, chosen in [
        ("payment", "fencing service", True),
        ("shipment", "plain service", True),
        ("payment", "plain service", False),
        ("shipment", "fencing service", False),
    ]
]


@pytest.fixture(params=COMBINATIONS)
def harness(request: pytest.FixtureRequest, mongo: Mongo) -> StepHarness:
    step, service = request.param
    plain = PlainService() if service == "plain service" else None
    sandboxes = SandboxPayments(mongo), SandboxCarrier(mongo)
    services = FaultyServices(plain, plain) if plain else FaultyServices(*sandboxes)
    needed = dependencies(mongo, payments=services, carrier=services)
    if step == "payment":
        payments = Payments(needed)
        return StepHarness(mongo, needed.orders, services, plain, CHARGE, payments.charge, payments.refund)
    shipping = Shipping(needed)
    return StepHarness(mongo, needed.orders, services, plain, SHIP, shipping.create, shipping.cancel)


# --- attempts and compensations that overlap


async def test_repeated_attempt_takes_effect_once(harness: StepHarness) -> None:
    order_id = await harness.order()
    assert await harness.attempt(order_id) == "done"
    first = await harness.record(order_id)
    assert await harness.attempt(order_id, 2) == "done"
    assert harness.services.calls == 1  # the second attempt finds the record
    assert await harness.record(order_id) == first
    await harness.assert_done(order_id)


@pytest.mark.parametrize("held_at", HELD_AT)
async def test_two_overlapping_attempts_take_effect_once(harness: StepHarness, held_at: str) -> None:
    order_id = await harness.order()
    gate = harness.services.hold_next(held_at)
    late = asyncio.create_task(harness.attempt(order_id))
    await gate.reached()
    assert await harness.attempt(order_id, 2) == "done"
    gate.open()
    assert await late == "done"
    await harness.assert_done(order_id, attempts=2)


@pytest.mark.parametrize("held_at", HELD_AT)
async def test_attempt_held_during_retry_and_compensation_is_fenced(harness: StepHarness, held_at: str) -> None:
    order_id = await harness.order()
    gate = harness.services.hold_next(held_at)
    late = asyncio.create_task(harness.attempt(order_id))
    await gate.reached()
    assert await harness.attempt(order_id, 2) == "done"
    await harness.compensate(order_id)
    gate.open()
    assert await late == "fenced"
    await harness.assert_compensated(order_id)
    assert await harness.effects(order_id) == (True, True)


@pytest.mark.parametrize("held_at", HELD_AT)
async def test_attempt_held_during_compensation_is_fenced(harness: StepHarness, held_at: str) -> None:
    order_id = await harness.order()
    gate = harness.services.hold_next(held_at)
    late = asyncio.create_task(harness.attempt(order_id))
    await gate.reached()
    await harness.compensate(order_id)
    gate.open()
    assert await late == "fenced"
    await harness.assert_compensated(order_id)
    # Only the plain service acts after the fence. The attempt then compensates its own effect.
    took, _ = await harness.effects(order_id)
    assert took == (held_at == HELD_AT[1] or harness.plain is not None)

    assert await harness.attempt(order_id, 2) == "fenced"
    await harness.compensate(order_id)
    await harness.assert_compensated(order_id)


@pytest.mark.parametrize("held_at", HELD_AT)
async def test_attempt_ending_between_fence_and_refund_is_fenced(harness: StepHarness, held_at: str) -> None:
    order_id = await harness.order()
    gate = harness.services.hold_next(held_at)
    late = asyncio.create_task(harness.attempt(order_id))
    await gate.reached()
    compensation_gate = harness.services.hold_next_compensation()
    compensation = asyncio.create_task(harness.compensate(order_id))
    await compensation_gate.reached()
    gate.open()
    assert await late == "fenced"
    compensation_gate.open()
    await compensation
    await harness.assert_compensated(order_id)
    assert await harness.effects(order_id) == (True, True)


async def test_compensation_before_attempt_fences_every_attempt(harness: StepHarness) -> None:
    order_id = await harness.order()
    await harness.compensate(order_id)
    assert await harness.attempt(order_id) == "fenced"
    assert harness.services.calls == 0
    await harness.assert_compensated(order_id)
    record = await harness.record(order_id)
    assert (record["detail"], record.get("attempts"), record.get("first_attempt_at")) == (
        "stopped before it took effect",
        None,
        None,
    )
    _, shown = await harness.timeline(order_id)
    assert shown is not None
    assert shown.interrupted
    assert shown.attempts == 0


async def test_fence_stops_attempt_before_gateway_call(harness: StepHarness) -> None:
    """The fence works even if the status of the order does not stop the attempt."""
    order_id = await harness.order()
    await harness.compensate_only(order_id)
    assert await harness.attempt(order_id) == "fenced"
    assert harness.services.calls == 0


async def test_repeated_compensation_takes_effect_once(harness: StepHarness) -> None:
    order_id = await harness.order()
    assert await harness.attempt(order_id, 3) == "done"
    await harness.compensate(order_id)
    first = await harness.record(order_id)
    assert (first["first_attempt_at"], first["attempts"]) == (SCHEDULED, 3)
    assert first["at"] <= first["compensated_at"]
    await harness.compensate(order_id)
    await asyncio.gather(*(harness.compensate(order_id) for _ in range(4)))
    assert await harness.record(order_id) == first
    await harness.assert_compensated(order_id)


async def test_simultaneous_attempts_and_compensations_leave_no_effect(harness: StepHarness) -> None:
    order_ids = [await harness.order() for _ in range(10)]
    work = [
        run(order_id)
        for order_id in order_ids
        for run in (harness.attempt, harness.attempt, harness.attempt, harness.compensate, harness.compensate)
    ]
    random.shuffle(work)
    await asyncio.gather(*work)
    for order_id in order_ids:
        await harness.assert_compensated(order_id)


async def test_ten_simultaneous_attempts_take_effect_once(harness: StepHarness) -> None:
    order_id = await harness.order()
    assert set(await asyncio.gather(*(harness.attempt(order_id) for _ in range(10)))) == {"done"}
    await harness.assert_done(order_id)


# --- lost replies, declines


async def test_effect_with_lost_reply_is_found_by_retry_and_compensation(harness: StepHarness) -> None:
    done, compensated = await harness.order(), await harness.order()
    harness.services.lost_replies = 2
    for order_id in (done, compensated):
        with pytest.raises(ConnectionResetError):
            await harness.attempt(order_id)
    assert await harness.attempt(done, 2) == "done"
    await harness.assert_done(done, attempts=2)
    await harness.compensate(compensated)  # no attempt recorded the effect
    await harness.assert_compensated(compensated)
    assert await harness.effects(compensated) == (True, True)


@pytest.mark.parametrize("fault", FAULTS)
async def test_repeated_attempt_returns_the_same_decline(harness: StepHarness, fault: str) -> None:
    """This holds even if the write of the record fails, or its reply is lost."""
    order_id = await harness.order(
        payment_method="pm_card_declined", shipping_address={**ADDRESS, "postal_code": "00000"}
    )
    code = "payment_declined" if harness.name is CHARGE else "address_unserviceable"
    if harness.plain:  # it accepts any card and address
        harness.services.errors = [_declined(code), _declined(code)]
    async with failing(harness.mongo, "findAndModify", **FAULTS[fault]):
        with pytest.raises(PyMongoError):
            await harness.attempt(order_id)
    if fault == "after":  # majority-committed shortly after
        await eventually(lambda: harness.record(order_id))
    assert await harness.attempt(order_id, 2) == code
    assert await harness.attempt(order_id, 3) == code
    # If the record was written, the next attempt does not call the service.
    assert harness.services.calls == (2 if fault == "before" else 1)
    record = await harness.record(order_id)
    assert record["failure"]["code"] == code
    assert record["attempts"] == (2 if fault == "before" else 1)
    await harness.compensate(order_id)
    assert await harness.record(order_id) == record
    _, shown = await harness.timeline(order_id)
    assert shown is not None
    assert not shown.interrupted
    await harness.assert_compensated(order_id)


async def test_decline_overlapping_a_success_leaves_no_effect(harness: StepHarness) -> None:
    """A service that gives two answers for one key breaks its contract. Even so, it must not keep the money."""
    order_id = await harness.order()
    gate = harness.services.hold_next("after the gateway acted")
    late = asyncio.create_task(harness.attempt(order_id))
    await gate.reached()
    harness.services.errors = [_declined("limit_exceeded")]
    assert await harness.attempt(order_id, 2) == "limit_exceeded"
    declined = await harness.record(order_id)
    gate.open()
    assert await late == "limit_exceeded"
    assert _without_compensation(await harness.record(order_id)) == _without_compensation(declined)
    await harness.compensate(order_id)
    await harness.assert_compensated(order_id)


async def test_misconfigured_service_is_not_retried_and_only_logged(
    harness: StepHarness, caplog: pytest.LogCaptureFixture
) -> None:
    order_id = await harness.order()
    harness.services.errors = [Misconfigured("wrong API key sk_live_…")]
    with caplog.at_level(logging.ERROR, logger="app.activities.order_step"), pytest.raises(ApplicationError) as error:
        await attempt(harness.activity, OrderRef(order_id=order_id))
    assert error.value.non_retryable
    assert (error.value.type, error.value.message) == ("misconfigured", "the service is misconfigured")
    (entry,) = caplog.records
    assert all(word in entry.getMessage() for word in (order_id, harness.name, "Misconfigured"))
    assert "sk_live" not in entry.getMessage()
    assert await harness.record(order_id) == {}  # the effect is unknown, so the compensation calls the service

    harness.services.compensation_errors = [Misconfigured("wrong API key"), Misconfigured("wrong API key")]
    for _ in range(2):
        with pytest.raises(Misconfigured):  # Temporal retries it until the key is corrected
            await harness.compensate(order_id)
    await harness.compensate(order_id)
    await harness.assert_compensated(order_id)


# --- cancels


async def test_cancel_during_gateway_call_stops_the_step(harness: StepHarness) -> None:
    order_id = await harness.order()
    before, _ = await harness.timeline(order_id)
    gate = harness.services.hold_next("after the gateway acted")
    late = asyncio.create_task(harness.attempt(order_id))
    await gate.reached()
    cancelled = await harness.orders.request_cancellation(order_id, "changed my mind")
    assert cancelled.cancellation is not None
    gate.open()
    assert await late == "cancelled"
    status, record = await harness.timeline(order_id)
    assert status is before  # not shipped: the cancel was accepted
    assert record is not None
    assert record.status == "done"
    assert await harness.attempt(order_id, 2) == "cancelled"
    await harness.compensate(order_id)
    await harness.assert_compensated(order_id)
    assert await harness.effects(order_id) == (True, True)


async def test_cancel_before_attempt_stops_it(harness: StepHarness) -> None:
    order_id = await harness.order()
    await harness.orders.request_cancellation(order_id, "changed my mind")
    with pytest.raises(ApplicationError, match=r"^cancelled: cancelled$"):
        await attempt(harness.activity, OrderRef(order_id=order_id))
    assert harness.services.calls == 0
    assert await harness.record(order_id) == {}


async def test_cancel_after_step_is_refused_only_once_shipped(harness: StepHarness) -> None:
    order_id = await harness.order()
    assert await harness.attempt(order_id) == "done"
    order = await harness.orders.request_cancellation(order_id, "changed my mind")
    assert (order.cancellation is not None) == (harness.name is CHARGE)
    assert await harness.attempt(order_id) == ("cancelled" if harness.name is CHARGE else "done")
    await harness.assert_done(order_id)


async def test_simultaneous_cancels_and_attempts_agree(harness: StepHarness) -> None:
    """Either the cancel was accepted and the step raises, or the order has moved on and the step is done."""
    order_ids = [await harness.order() for _ in range(20)]

    async def race(order_id: str) -> tuple[str, bool]:
        result, order = await asyncio.gather(
            harness.attempt(order_id), harness.orders.request_cancellation(order_id, "changed my mind")
        )
        return result, order.cancellation is not None

    for order_id, (result, accepted) in zip(order_ids, await asyncio.gather(*map(race, order_ids)), strict=True):
        status, _ = await harness.timeline(order_id)
        if harness.name is SHIP:
            assert (result, accepted, status) in {("done", False, "shipped"), ("cancelled", True, "charged")}
        else:  # a charged order can still be cancelled
            assert accepted
            assert (result, status) in {("done", "charged"), ("cancelled", CHARGING), ("cancelled", "charged")}


# --- removed orders


async def test_removed_order_is_not_attempted(harness: StepHarness) -> None:
    with pytest.raises(NotFound):
        await harness.attempt("gone")
    assert harness.services.calls == 0


async def test_order_removed_during_gateway_call_is_compensated(harness: StepHarness) -> None:
    order_id = await harness.order()
    gate = harness.services.hold_next("after the gateway acted")
    late = asyncio.create_task(harness.attempt(order_id))
    await gate.reached()
    await harness.mongo.orders.delete_one({"_id": order_id})
    gate.open()
    with pytest.raises(NotFound):
        await late
    await harness.compensate(order_id)
    assert await harness.effects(order_id) == (True, True)
    assert await harness.mongo.orders.count_documents({}) == 0  # the order is not recreated


# --- interruptions


async def test_attempt_interrupted_at_any_command_can_be_repeated_or_compensated(harness: StepHarness) -> None:
    """MongoDB fails at each command, before or after its effect. Then the step is retried or compensated."""
    points = 0
    for fault, after_commands in itertools.product(FAULTS, range(5)):
        again, compensated = await harness.order(), await harness.order()
        if not await _is_interrupted(harness, harness.attempt(again), fault, after_commands):
            continue
        assert await _is_interrupted(harness, harness.attempt(compensated), fault, after_commands)
        points += 1
        assert await harness.attempt(again) == "done"
        await harness.assert_done(again)
        await harness.compensate(compensated)
        assert await harness.attempt(compensated) == "fenced"
        await harness.assert_compensated(compensated)
    # Commands: read the order, write the record. A read has no effect to fail after. The sandbox writes to MongoDB too.
    assert points == 2 + 1 + 2 * (harness.plain is None)


@pytest.mark.parametrize("begun", ["done", "never begun", "reply lost"])
async def test_compensation_interrupted_at_any_command_can_be_repeated(harness: StepHarness, begun: str) -> None:
    points = 0
    for fault, after_commands in itertools.product(FAULTS, range(5)):
        order_id = await harness.order()
        if begun == "done":
            assert await harness.attempt(order_id) == "done"
        elif begun == "reply lost":
            harness.services.lost_replies = 1
            with pytest.raises(ConnectionResetError):
                await harness.attempt(order_id)
        await harness.orders.update_status(StatusUpdate(order_id=order_id, status=OrderStatus.COMPENSATING))
        points += await _is_interrupted(harness, harness.compensate_only(order_id), fault, after_commands)
        await harness.compensate(order_id)
        await harness.assert_compensated(order_id)
        assert await harness.effects(order_id) == ((False, False) if begun == "never begun" else (True, True))
    # Commands: the fence, the sandbox's own write, and the record of the compensation if there was an effect.
    assert points == len(FAULTS) * (1 + (harness.plain is None) + (begun != "never begun"))


@pytest.mark.parametrize("fault", FAULTS)
async def test_late_attempt_interrupted_after_compensation_leaves_no_effect(harness: StepHarness, fault: str) -> None:
    """The service acted before the compensation. The attempt fails at each of its remaining commands."""
    for after_commands in range(3):
        order_id = await harness.order()
        gate = harness.services.hold_next("after the gateway acted")
        late = asyncio.create_task(harness.attempt(order_id))
        await gate.reached()
        await harness.compensate(order_id)
        gate.open()
        with_fault = failing(harness.mongo, "findAndModify", mode={"skip": after_commands}, **FAULTS[fault])
        try:
            async with with_fault:
                await late
        except PyMongoError:
            assert await harness.attempt(order_id, 2) == "fenced"
        await harness.assert_compensated(order_id)
        assert await harness.effects(order_id) == (True, True)


# --- costs


async def test_attempt_costs_one_read_and_one_majority_write(harness: StepHarness) -> None:
    order_id = await harness.order()
    async with recorded_commands(harness.mongo) as commands:
        assert await harness.attempt(order_id) == "done"
    read, write = [entry["command"] for entry in commands]
    assert (read["find"], read["readConcern"]["level"]) == ("orders", "majority")
    assert (write["findAndModify"], write["writeConcern"]["w"]) == ("orders", "majority")

    async with recorded_commands(harness.mongo) as commands:
        assert await harness.attempt(order_id, 2) == "done"
    assert [next(iter(entry["command"])) for entry in commands] == ["find"]

    async with recorded_commands(harness.mongo) as commands:
        await harness.compensate_only(order_id)
    assert [next(iter(entry["command"])) for entry in commands] == ["findAndModify", "findAndModify"]


def _declined(code: str) -> Declined:
    declined = Declined("no")
    declined.code = code
    return declined


async def _is_interrupted(harness: StepHarness, work: Awaitable[object], fault: str, after_commands: int) -> bool:
    """Run `work` while MongoDB fails after this many commands. Returns True if that interrupted it."""
    try:
        async with failing(
            harness.mongo, "find", "findAndModify", "update", mode={"skip": after_commands}, **FAULTS[fault]
        ):
            await work
    except PyMongoError:
        return True
    return False
