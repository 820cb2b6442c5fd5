"""The confirmation: once, and the order is completed with it, whatever gets lost on the way (G3)."""

from __future__ import annotations

import asyncio

import pytest
from pymongo.errors import PyMongoError
from temporalio.exceptions import ApplicationError

from app.activities.notifications import Notifications
from app.gateways import Refused
from app.models import Order, OrderRef
from app.mongo import Mongo
from app.orders import Orders
from tests.activities.faults import BEFORE_THE_EFFECT, Gate, failing
from tests.support import order_document, steps_of


class Mailer:
    """Knows its keys, and can be held, or refuse."""

    def __init__(self) -> None:
        self.sent: set[str] = set()
        self.calls = 0
        self.gates: list[Gate] = []
        self.refuses = False

    async def send_confirmation(self, key: str, order: Order) -> None:
        self.calls += 1
        if self.gates:
            await self.gates.pop().hold()
        if self.refuses:
            raise Refused("no such mailbox")
        self.sent.add(key)


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
    return Notifications(mongo, Orders(mongo), mailer)


async def test_sent_once(mongo: Mongo, notifications: Notifications, mailer: Mailer, ref: OrderRef) -> None:
    for _ in range(2):
        await notifications.confirm(ref)
    order = await Orders(mongo).require(ref.order_id)
    assert (order.status, steps_of(order)) == ("completed", {"send_confirmation": "done"})
    assert mailer.calls == 1


async def test_two_attempts_overlap(notifications: Notifications, mailer: Mailer, ref: OrderRef) -> None:
    gate = Gate()
    mailer.gates = [gate]
    late = asyncio.create_task(notifications.confirm(ref))
    await gate.reached()
    await notifications.confirm(ref)
    gate.open()
    await late
    assert mailer.sent == {ref.order_id}  # the same key: the service sends one


async def test_sent_but_the_order_was_not_told(
    mongo: Mongo, notifications: Notifications, mailer: Mailer, ref: OrderRef
) -> None:
    async with failing(mongo, "update", **BEFORE_THE_EFFECT):
        with pytest.raises(PyMongoError):
            await notifications.confirm(ref)
    await notifications.confirm(ref)
    assert mailer.calls == 1
    assert (await Orders(mongo).require(ref.order_id)).status == "completed"


async def test_a_refusal_is_final(mongo: Mongo, notifications: Notifications, mailer: Mailer, ref: OrderRef) -> None:
    mailer.refuses = True
    for _ in range(2):
        with pytest.raises(ApplicationError, match="no such mailbox") as refused:
            await notifications.confirm(ref)
        assert refused.value.non_retryable
    order = await Orders(mongo).require(ref.order_id)
    assert (order.status, order.steps[0].detail) == ("shipped", "no such mailbox")
    assert mailer.calls == 1
