"""The confirmation is sent once and completes the order, even if calls fail (G3)."""

from __future__ import annotations

import asyncio

import pytest
from pymongo.errors import PyMongoError
from temporalio.exceptions import ApplicationError

from app.activities.notifications import Notifications
from app.domain import Order
from app.gateways import Declined
from app.messages import OrderRef
from app.mongo import Mongo
from app.orders import OrderRepository
from tests.kit.attempts import attempt
from tests.kit.faults import AFTER_THE_EFFECT, BEFORE_THE_EFFECT, Gate, failing, recorded_commands
from tests.kit.orders import order_document, steps_of
from tests.kit.shop import dependencies
from tests.kit.waiting import eventually


class Mailer:
    """A mailer that sends once per key. A test can block it or make it decline."""

    def __init__(self) -> None:
        self.sent: set[str] = set()
        self.calls = 0
        self.gates: list[Gate] = []
        self.declines = False

    async def send_confirmation(self, idempotency_key: str, order: Order) -> None:
        self.calls += 1
        if self.gates:
            await self.gates.pop().hold()
        if self.declines:
            raise Declined("no such mailbox")
        self.sent.add(idempotency_key)


@pytest.fixture
async def ref(mongo: Mongo) -> OrderRef:
    document = order_document(status="shipped")
    await mongo.orders.insert_one(document)
    return OrderRef(order_id=document["_id"])


@pytest.fixture
def mailer() -> Mailer:
    return Mailer()


@pytest.fixture
def notifications(mongo: Mongo, mailer: Mailer) -> Notifications:
    return Notifications(dependencies(mongo, mailer=mailer))


async def test_repeated_confirmation_is_sent_once(
    mongo: Mongo, notifications: Notifications, mailer: Mailer, ref: OrderRef
) -> None:
    for number in (1, 2):
        await attempt(notifications.confirm, ref, number)
    order = await OrderRepository(mongo).get(ref.order_id)
    assert (order.status, steps_of(order)) == ("completed", {"send_confirmation": "done"})
    assert mailer.calls == 1


async def test_two_attempts_overlapping_send_once(notifications: Notifications, mailer: Mailer, ref: OrderRef) -> None:
    gate = Gate()
    mailer.gates = [gate]
    late = asyncio.create_task(attempt(notifications.confirm, ref))
    await gate.reached()
    await attempt(notifications.confirm, ref, 2)
    gate.open()
    await late
    assert mailer.sent == {ref.order_id}  # the same key: the service sends one mail


@pytest.mark.parametrize("fault", [BEFORE_THE_EFFECT, AFTER_THE_EFFECT], ids=["before", "after"])
async def test_attempt_interrupted_at_its_record_completes_when_repeated(
    mongo: Mongo, notifications: Notifications, mailer: Mailer, ref: OrderRef, fault: dict[str, object]
) -> None:
    async with failing(mongo, "findAndModify", **fault):
        with pytest.raises(PyMongoError):
            await attempt(notifications.confirm, ref)
    orders = OrderRepository(mongo)
    if fault is AFTER_THE_EFFECT:  # majority-committed shortly after
        await eventually(lambda: orders.get(ref.order_id), lambda order: bool(order.steps))
    await attempt(notifications.confirm, ref, 2)
    assert mailer.calls == (2 if fault is BEFORE_THE_EFFECT else 1)
    assert mailer.sent == {ref.order_id}
    assert (await orders.get(ref.order_id)).status == "completed"


async def test_declined_confirmation_is_not_retried(
    mongo: Mongo, notifications: Notifications, mailer: Mailer, ref: OrderRef
) -> None:
    mailer.declines = True
    for number in (1, 2):
        with pytest.raises(ApplicationError, match="declined") as declined:
            await attempt(notifications.confirm, ref, number)
        assert declined.value.non_retryable
    order = await OrderRepository(mongo).get(ref.order_id)
    assert order.status == "shipped"
    assert [(step.detail, step.interrupted) for step in order.steps] == [("no such mailbox", False)]
    assert mailer.calls == 1


async def test_confirmation_costs_one_read_and_one_majority_write(
    mongo: Mongo, notifications: Notifications, ref: OrderRef
) -> None:
    async with recorded_commands(mongo) as commands:
        await attempt(notifications.confirm, ref)
    read, write = [entry["command"] for entry in commands]
    assert (read["find"], read["readConcern"]["level"]) == ("orders", "majority")
    assert (write["findAndModify"], write["writeConcern"]["w"]) == ("orders", "majority")
